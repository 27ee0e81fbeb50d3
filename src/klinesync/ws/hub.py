"""CandleHub: publishes candles of the pipeline to clients. Publishing never waits; each client has a bounded outbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from klinesync.core.candle import Applied, Forming
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.ws import protocol
from klinesync.ws.rate import USUAL_RATE, RateLimits
from klinesync.ws.session import CATCH_UP_MAX_CANDLES, Announcement, Subscription

log = Log(__name__)

# Largest backlog, in messages and in bytes, with which the next catch-up of a client is read: catch-ups are paced by
# the client's reading, and never fill the outbox by themselves.
ROOM_MESSAGES = 500
ROOM_BYTES = 256 << 10
# Most bytes of one write to a wire. The rest of a backlog stays in the outbox, where it is counted.
WRITE_BYTES = 64 << 10

# Seconds between two log lines about clients that were too slow.
LOG_EVERY_S = 10.0

CLOSE_GOING_AWAY = 1001
CLOSE_POLICY_VIOLATION = 1008
CLOSE_DEFECT = 1011
CLOSE_TRY_AGAIN_LATER = 1013


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The limits of clients.

    clients: most clients; fewer than the connections of the server, so that HTTP always has some.
    max_messages, max_bytes: largest backlog of one client. A client with a larger one is closed with 1013, and resumes
        with `since`.
    room_patience_s: seconds without reading after which a client whose catch-up waits for room is closed as too slow.
    catch_up_candles: most candles of one catch-up.
    rate: rate limit of one client's messages.
    """

    clients: int = 10_000
    max_messages: int = 10_000
    max_bytes: int = 16 << 20
    room_patience_s: float = 60.0
    catch_up_candles: int = CATCH_UP_MAX_CANDLES
    rate: RateLimits = USUAL_RATE


USUAL_CLIENTS = ClientLimits()


class Wire(Protocol):
    """The connection to one client. Only the client's outbox writes to the wire; the wire calls the outbox's `pause`
    and `resume`."""

    @property
    def write(self) -> Callable[[Sequence[bytes]], None]:
        """Writes whole frames together, in order."""

    def ending(self) -> None:
        """The connection will be closed after the backlog; the wire cuts it off when the client takes too long."""

    def close(self, code: int) -> None:
        """Close the connection with `code`, after everything that was written."""


class Outbox:
    """The backlog of one client: frames in order, none dropped, and the latest forming candle of each series.

    While the wire accepts frames, a frame goes straight to the wire. Those that follow within the same step of the
    event loop are joined, and written together at the end of the step: a write is a system call, during which other
    threads take the interpreter.

    ended: the close code of an ended outbox, which accepts no more frames; otherwise None.
    later: arranges a call of `end_joining` at the end of the step; None: nothing is joined.
    """

    __slots__ = (
        "_bytes", "_forming", "_joining", "_limits", "_messages", "_paused", "_room", "_warned", "_wire", "_write",
        "_writes", "ended", "later",
    )  # fmt: skip

    def __init__(self, wire: Wire, limits: ClientLimits = USUAL_CLIENTS) -> None:
        self._limits = limits
        self._wire = wire
        self._write = wire.write
        self._messages: list[bytes] = []
        self._bytes = 0
        self._forming: dict[SeriesId, tuple[int, bytes]] = {}
        self._paused = False
        self._joining = False
        self.later: Callable[[Outbox], None] | None = None
        self._warned = False
        self._writes = 0  # number of writes of backlog to the wire
        self._room: asyncio.Future[None] | None = None
        self.ended: int | None = None

    @property
    def waiting(self) -> tuple[int, int]:
        """The backlog: the number of messages, and the bytes of those that must be delivered."""
        return len(self._messages) + len(self._forming), self._bytes

    def put(self, messages: Sequence[bytes]) -> None:
        """Send messages that must be delivered. When the backlog exceeds its limit, the outbox ends with 1013 and drops
        the backlog."""
        if self.ended is not None:
            return
        if not (self._paused or self._joining) and len(messages) == 1:
            self._write(messages)
            self._join()
            return
        self._messages += messages
        self._bytes += sum(map(len, messages))
        if len(self._messages) > self._limits.max_messages or self._bytes > self._limits.max_bytes:
            self._clear()
            self.end(CLOSE_TRY_AGAIN_LATER)
        elif not self._joining or self._bytes >= WRITE_BYTES:
            self._flush()
            self._join()

    def _join(self) -> None:
        """From now on, messages of this step of the event loop wait for its end."""
        if self.later is not None and not self._joining:
            self._joining = True
            self.later(self)

    def end_joining(self) -> None:
        """The step of the event loop is over: write what was joined."""
        self._joining = False
        if self._messages or self._forming:
            self._flush()

    def warning_due(self) -> bool:
        """Whether the outbox became half full for the first time since it was empty; the client is warned once."""
        if self._warned or self.ended is not None:
            return False
        limits = self._limits
        self._warned = len(self._messages) > limits.max_messages // 2 or self._bytes > limits.max_bytes // 2
        return self._warned

    def put_first(self, message: bytes) -> None:
        """Send a message ahead of the backlog."""
        if self.ended is None:
            self._messages.insert(0, message)
            self._bytes += len(message)
            self._flush()

    @property
    def has_room(self) -> bool:
        """Whether the backlog is small enough for the next catch-up to be read."""
        return len(self._messages) <= ROOM_MESSAGES and self._bytes <= ROOM_BYTES

    async def room(self) -> None:
        """Wait until the backlog is small, or the outbox has ended. A client that reads nothing for `room_patience_s`
        is closed with 1013."""
        while self.ended is None and not self.has_room:
            writes, self._room = self._writes, asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._limits.room_patience_s):
                    await self._room
            except TimeoutError:
                if self._writes == writes:
                    self._clear()
                    self.end(CLOSE_TRY_AGAIN_LATER)
            finally:
                self._room = None

    def _wake_waiting(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def put_forming(self, series: SeriesId, candle_time: int, messages: Sequence[bytes]) -> None:
        """Send a forming candle, one message. In the backlog a later forming candle of the series replaces it."""
        if self.ended is not None:
            return
        if self._paused or self._joining:
            self._forming[series] = (candle_time, messages[0])
        else:
            self._write(messages)
            self._join()

    def drop_forming(self, series: SeriesId, until: int | None) -> None:
        """Drop the waiting forming candle of a series at or before `until` (None: any): a newer closed candle
        exists."""
        waiting = self._forming.get(series)
        if waiting is not None and (until is None or waiting[0] <= until):
            del self._forming[series]

    def end(self, code: int) -> None:
        """Close the connection with `code`, after the backlog."""
        if self.ended is None:
            self.ended = code
            self._wake_waiting()
            self._forming.clear()
            self._wire.ending()
            if not self._messages:
                self._wire.close(code)

    def abandon(self) -> None:
        """The client has disconnected: drop the backlog and all later messages."""
        self.ended = self.ended or CLOSE_GOING_AWAY
        self._wake_waiting()
        self._clear()
        self._paused = True

    def pause(self) -> None:
        """The wire accepts no more frames for now."""
        self._paused = True

    def resume(self) -> None:
        """The wire accepts frames again."""
        self._paused = False
        self._flush()

    def _flush(self) -> None:
        """Write the messages that must be delivered, in order, then the forming candles, until the wire pauses."""
        while self._messages and not self._paused:
            count = size = 0
            for message in self._messages:
                count, size = count + 1, size + len(message)
                if size >= WRITE_BYTES:
                    break
            batch = self._messages[:count]
            del self._messages[:count]
            self._bytes -= size
            self._writes += 1
            self._write(batch)
            self._wake_waiting()
        if self._messages:
            return
        self._warned = False
        if self.ended is not None:
            self._wire.close(self.ended)
        elif self._forming and not self._paused:
            forming = [message for _, message in self._forming.values()]
            self._forming.clear()
            self._write(forming)

    def _clear(self) -> None:
        self._messages.clear()
        self._forming.clear()
        self._bytes = 0


class Client:
    """One connection: its subscriptions, and its outbox onto `wire`."""

    __slots__ = ("outbox", "subscriptions")

    def __init__(self, wire: Wire, limits: ClientLimits = USUAL_CLIENTS) -> None:
        self.outbox = Outbox(wire, limits)
        self.subscriptions: dict[SeriesId, Subscription] = {}


@dataclass(frozen=True, slots=True)
class HubStatus:
    """The current backlog of all clients; and, since the start, the numbers of messages and of clients that were closed
    as too slow (1013)."""

    clients: int
    subscriptions: int
    waiting_messages: int
    waiting_bytes: int
    messages: int
    slow_clients: int


class CandleHub:
    """Publishes to the subscribers of each series. Publishing never waits.

    bulkheads: contains defects; a new one by default.
    monotonic: monotonic seconds.
    limits: of clients.
    """

    def __init__(
        self,
        bulkheads: Bulkheads | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        limits: ClientLimits = USUAL_CLIENTS,
    ) -> None:
        self.limits = limits
        self._monotonic = monotonic
        self._bulkheads = bulkheads or Bulkheads()
        self._messages = 0  # live messages; the coordinator sends catch-ups itself
        self._slow_clients = 0
        self._log_limit = LogLimit(LOG_EVERY_S)
        self._watchers: dict[SeriesId, dict[Client, Subscription]] = {}
        self._clients: dict[Client, None] = {}  # in order of connecting
        self._empty = asyncio.Event()
        self._ending = False
        self._joining: list[Outbox] = []  # in this step of the event loop

    @property
    def clients(self) -> int:
        """The number of connected clients."""
        return len(self._clients)

    @property
    def is_full(self) -> bool:
        """Whether the limit of clients is reached."""
        return len(self._clients) >= self.limits.clients

    @property
    def status(self) -> HubStatus:
        """The counts now. Visits every client."""
        waiting = [client.outbox.waiting for client in self._clients]
        return HubStatus(
            clients=len(self._clients),
            subscriptions=sum(map(len, self._watchers.values())),
            waiting_messages=sum(messages for messages, _ in waiting),
            waiting_bytes=sum(size for _, size in waiting),
            messages=self._messages,
            slow_clients=self._slow_clients,
        )

    def connected(self, client: Client) -> None:
        """A client has connected."""
        self._clients[client] = None
        client.outbox.later = self._join
        self._empty.clear()
        if self._ending:
            client.outbox.end(CLOSE_GOING_AWAY)

    def disconnected(self, client: Client) -> None:
        """A client has disconnected: its subscriptions end."""
        self._clients.pop(client, None)
        if client.outbox.ended == CLOSE_TRY_AGAIN_LATER:
            self._slow_clients += 1
            if (more := self._log_limit.allow("slow", self._monotonic())) is not None:
                log.warning("ws.client_slow", "a client read too slowly, and was closed with 1013", suppressed=more)
        if not self._clients:
            self._empty.set()
        for series in list(client.subscriptions):
            self.detach(client, series)
        client.outbox.abandon()

    async def end(self, timeout_s: float) -> None:
        """Close every connection with 1001, later ones too, because the service stops. Waits at most `timeout_s`
        seconds for the clients to disconnect."""
        self._ending = True
        for client in list(self._clients):
            client.outbox.end(CLOSE_GOING_AWAY)
        if self._clients:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    def attach(self, client: Client, subscription: Subscription) -> None:
        """Send live candles of the series to the client from now on. Replaces an earlier subscription of the series."""
        series = subscription.series
        client.subscriptions[series] = subscription
        self._watchers.setdefault(series, {})[client] = subscription

    def detach(self, client: Client, series: SeriesId) -> None:
        """End the client's subscription of the series."""
        client.subscriptions.pop(series, None)
        client.outbox.drop_forming(series, None)
        watchers = self._watchers.get(series)
        if watchers is not None:
            watchers.pop(client, None)
            if not watchers:
                del self._watchers[series]

    def watched(self, series: SeriesId) -> bool:
        """Whether the series has a subscriber."""
        return series in self._watchers

    def any_watched(self, series: Iterable[SeriesId]) -> bool:
        """Whether one of the series has a subscriber."""
        return not self._watchers.keys().isdisjoint(series)

    def publish(self, applied: Applied) -> None:
        """Publish closed candles: after their commit, in commit order."""
        watchers = self._watchers.get(applied.series)
        if not watchers or not applied.told:
            return
        announcements: dict[bool, Announcement] = {}  # by whether candles have their order flow
        for client, subscription in watchers.items():
            try:
                announcement = announcements.get(subscription.full)
                if announcement is None:
                    announcement = announcements[subscription.full] = Announcement(applied, full=subscription.full)
                messages = subscription.announce(announcement)
                if messages:
                    self._messages += len(messages)
                    client.outbox.drop_forming(applied.series, announcement.newest)
                    self._put(client, applied.series, messages)
            except Exception as error:  # noqa: BLE001  # a bulkhead, without the cost of `contained` for each client
                self._close_after_defect(client, error)

    def resync(self, series: SeriesId) -> None:
        """Close the subscribers of a series after a publication may have been lost; they resume with `since`."""
        for client in self._watchers.get(series, {}):
            client.outbox.end(CLOSE_DEFECT)

    def show(self, forming: Forming) -> None:
        """Publish a forming candle."""
        watchers = self._watchers.get(forming.series)
        if not watchers:
            return
        encoded: dict[bool, list[bytes]] = {}  # by whether the candle has its order flow
        self._messages += len(watchers)
        for client, subscription in watchers.items():
            try:
                if subscription.wants_forming(forming.candle):
                    messages = encoded.get(subscription.full)
                    if messages is None:
                        frame = protocol.candle_forming(forming.series, forming.candle, full=subscription.full)
                        messages = encoded[subscription.full] = [frame]
                    client.outbox.put_forming(forming.series, forming.candle.time, messages)
            except Exception as error:  # noqa: BLE001  # as in `publish`
                self._close_after_defect(client, error)

    def tell(self, series: SeriesId, message: bytes) -> None:
        """Send a `system` message to the subscribers of the series, after their backlogs."""
        watchers = self._watchers.get(series, {})
        self._messages += len(watchers)
        for client, subscription in watchers.items():
            if not subscription.holding:  # `subscribed` comes first, with the state of the stream
                self._put(client, series, [message])

    def _put(self, client: Client, series: SeriesId, messages: Sequence[bytes]) -> None:
        """Send live messages of `series` to a client. A client that reads too slowly is warned before it is closed."""
        outbox = client.outbox
        outbox.put(messages)
        if outbox.warning_due():
            sentence = "the backlog is half of its limit: read faster, or the connection is closed with 1013"
            waiting, size = outbox.waiting
            facts = {
                "waiting_messages": waiting,
                "max_messages": self.limits.max_messages,
                "waiting_bytes": size,
                "max_bytes": self.limits.max_bytes,
            }
            outbox.put_first(protocol.system(series, "slow", sentence, facts))

    def _join(self, outbox: Outbox) -> None:
        if not self._joining:
            asyncio.get_running_loop().call_soon(self._end_joining)
        self._joining.append(outbox)

    def _end_joining(self) -> None:
        outboxes, self._joining = self._joining, []
        for outbox in outboxes:
            try:
                outbox.end_joining()
            except Exception as error:  # noqa: BLE001  # as in `publish`
                self._bulkheads.defect(Part.CLIENT, "publishing", error)
                outbox.end(CLOSE_DEFECT)

    def _close_after_defect(self, client: Client, error: Exception) -> None:
        """A defect in the handling of one client: close its connection; the client resumes with `since`."""
        self._bulkheads.defect(Part.CLIENT, "publishing", error)
        client.outbox.end(CLOSE_DEFECT)
