"""Link: one socket to Binance's streams, and the requests by which streams are subscribed on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import aiohttp
import msgspec

from klinesync.core.errors import KlinesyncError
from klinesync.core.network_errors import unreachable
from klinesync.exchanges.binance.frames import Answer
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import WebSocket

# Most stream names in one SUBSCRIBE, and the pause after each message in seconds: spot closes a connection that sends
# more than 5 messages a second.
NAMES_PER_MESSAGE = 100
MESSAGE_PACE_S = 0.35


class Refused(KlinesyncError):
    """The exchange answered a request with an error."""

    code = "refused"


class Link:
    """One socket, and the streams that were requested on it.

    socket: the connection.
    connected_s: when it was connected, monotonic seconds.
    connected_ms: the same by the exchange's clock, in UTC ms; None when unknown.
    answer_timeout_s: longest wait for an answer, in seconds.
    """

    def __init__(
        self, socket: WebSocket, connected_s: float, connected_ms: int | None, answer_timeout_s: float
    ) -> None:
        self._answer_timeout_s = answer_timeout_s
        self.socket = socket
        self.connected_s = connected_s
        self.connected_ms = connected_ms
        self.sent: dict[str, None] = {}
        self.attached: set[str] = set()
        self.renewed: set[str] = set()
        self.changed = asyncio.Event()
        self.changed.set()
        self.received = False
        self.shutdown_announced = False  # the exchange has announced that it ends this socket
        self.request = 0
        self.answer: asyncio.Future[str | None] | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.task is not None and self.task.done()

    async def end(self) -> None:
        """Close the socket; returns when the link's task has ended."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    def is_due(self, clock: ExchangeClock, rotate_s: float, now_s: float) -> bool:
        """Whether the link must be replaced.

        clock: the exchange's time.
        rotate_s: longest life of the socket, in seconds, by either clock.
        now_s: monotonic seconds.
        """
        if self.shutdown_announced or now_s - self.connected_s > rotate_s:
            return True
        now_ms = clock.estimate_ms(now_s)
        if self.connected_ms is None:
            self.connected_ms = now_ms  # the exchange's time became known after the connect
        return now_ms is not None and self.connected_ms is not None and now_ms - self.connected_ms > rotate_s * 1000

    async def ask(self, method: str, names: Sequence[str]) -> None:
        """Send one request, wait for its answer, then pause for `MESSAGE_PACE_S`. Raises `Refused`, TimeoutError,
        ConnectionError.

        method: `SUBSCRIBE` or `UNSUBSCRIBE`.
        names: of streams, `NAMES_PER_MESSAGE` at most.
        """
        self.request += 1
        self.answer = asyncio.get_running_loop().create_future()
        request = msgspec.json.encode({"method": method, "params": names, "id": self.request})
        async with asyncio.timeout(self._answer_timeout_s):
            await self.socket.send_str(request.decode())
            error = await self.answer
        if error is not None:
            raise Refused(f"{method} was answered with {error}")
        await asyncio.sleep(MESSAGE_PACE_S)

    def answered(self, answer: Answer) -> None:
        """An answer has arrived. The error of a request that the exchange cannot read carries no id; it belongs to the
        only request in flight."""
        waiting = self.answer
        if waiting is not None and not waiting.done() and answer.id in (self.request, None):
            waiting.set_result(answer.error)


def why_not_subscribed(
    url: str, error: aiohttp.ClientError | ConnectionError | TimeoutError | Refused, answer_timeout_s: float
) -> str:
    """A sentence about a subscription that failed.

    url: of the market's streams.
    error: what happened.
    answer_timeout_s: longest wait for an answer, in seconds.
    """
    if isinstance(error, Refused):
        return f"the exchange refuses a subscription: {error}"
    if isinstance(error, TimeoutError):
        return f"the exchange has not answered a subscription within {answer_timeout_s:g} s"
    return unreachable(url, error)


def portions(names: list[str]) -> Iterable[list[str]]:
    """The names in batches of one message each."""
    return (names[start : start + NAMES_PER_MESSAGE] for start in range(0, len(names), NAMES_PER_MESSAGE))
