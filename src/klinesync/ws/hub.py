"""CandleHub: from the pipeline to the clients. Publishing awaits nobody; each client has a bounded outbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from klinesync.core.candle import Applied, Forming
from klinesync.core.series_id import SeriesId
from klinesync.ws import protocol
from klinesync.ws.session import Announcement, Subscription

# What may wait for one client. A client that lets more pile up is closed with 1013 and resumes with `since`.
OUTBOX_MAX_MESSAGES = 10_000
OUTBOX_MAX_CHARS = 16 << 20


CLOSE_GOING_AWAY = 1001
CLOSE_TRY_AGAIN_LATER = 1013


class Outbox:
    """What waits for one client: messages in order, none dropped, and of each series the latest forming candle.

    `ended` is the code to close the connection with, once set; from then on nothing is taken in.
    """

    def __init__(self) -> None:
        self._messages: deque[str] = deque()
        self._chars = 0
        self._forming: dict[SeriesId, tuple[int, str]] = {}
        self._waiting = asyncio.Event()
        self._ended = asyncio.Event()
        self.ended: int | None = None

    def put(self, messages: Sequence[str]) -> None:
        """Queue messages that must arrive. Past the limits the outbox ends with 1013, and forgets what waits."""
        if self.ended is not None:
            return
        self._messages.extend(messages)
        self._chars += sum(map(len, messages))
        if len(self._messages) > OUTBOX_MAX_MESSAGES or self._chars > OUTBOX_MAX_CHARS:
            self._messages.clear()
            self.end(CLOSE_TRY_AGAIN_LATER)
        self._waiting.set()

    def put_forming(self, series: SeriesId, candle_time: int, message: str) -> None:
        """Queue a forming candle in place of the series' earlier one."""
        if self.ended is None:
            self._forming[series] = (candle_time, message)
            self._waiting.set()

    def drop_forming(self, series: SeriesId, until: int | None) -> None:
        """Forget a waiting forming candle at or before `until` (None: any): a newer closed one overtakes it."""
        waiting = self._forming.get(series)
        if waiting is not None and (until is None or waiting[0] <= until):
            del self._forming[series]

    def end(self, code: int) -> None:
        """Close the connection with `code` after what waits."""
        if self.ended is None:
            self.ended = code
            self._forming.clear()
            self._waiting.set()
            self._ended.set()

    async def wait_ended(self) -> None:
        """Returns once the connection is to be closed."""
        await self._ended.wait()

    async def take(self) -> list[str]:
        """All that waits: first what must arrive, in order, then the forming candles. Empty only when ended."""
        while not (self._messages or self._forming or self.ended):
            self._waiting.clear()
            await self._waiting.wait()
        taken = [*self._messages, *(message for _, message in self._forming.values())]
        self._messages.clear()
        self._forming.clear()
        self._chars = 0
        return taken


class Client:
    """One connection: its subscriptions and its outbox."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.subscriptions: dict[SeriesId, Subscription] = {}


class CandleHub:
    """Who watches what."""

    def __init__(self) -> None:
        self._watchers: dict[SeriesId, dict[Client, Subscription]] = {}
        self._clients: dict[Client, None] = {}  # in order of connecting
        self._empty = asyncio.Event()
        self._ending = False

    def connected(self, client: Client) -> None:
        """A client is there."""
        self._clients[client] = None
        self._empty.clear()
        if self._ending:
            client.outbox.end(CLOSE_GOING_AWAY)

    def disconnected(self, client: Client) -> None:
        """A client is gone: it watches nothing any more."""
        self._clients.pop(client, None)
        if not self._clients:
            self._empty.set()
        for series in list(client.subscriptions):
            self.detach(client, series)

    async def end(self, timeout_s: float) -> None:
        """The service stops: end every connection with 1001, also those to come; wait until all are gone, or
        `timeout_s`."""
        self._ending = True
        for client in self._clients:
            client.outbox.end(CLOSE_GOING_AWAY)
        if self._clients:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    def attach(self, client: Client, subscription: Subscription) -> None:
        """From now on the client gets the series' live candles; an earlier subscription of it ends."""
        series = subscription.series
        client.subscriptions[series] = subscription
        self._watchers.setdefault(series, {})[client] = subscription

    def detach(self, client: Client, series: SeriesId) -> None:
        """The client watches the series no more."""
        client.subscriptions.pop(series, None)
        client.outbox.drop_forming(series, None)
        watchers = self._watchers.get(series)
        if watchers is not None:
            watchers.pop(client, None)
            if not watchers:
                del self._watchers[series]

    def watched(self, series: SeriesId) -> bool:
        """Whether anybody watches the series."""
        return series in self._watchers

    def publish(self, applied: Applied) -> None:
        """Closed candles, after their commit, in commit order."""
        watchers = self._watchers.get(applied.series)
        if not watchers:
            return
        announcement = Announcement(applied)
        newest = applied.candles[-1].time
        for client, subscription in watchers.items():
            messages = subscription.announce(announcement)
            if messages:
                client.outbox.drop_forming(applied.series, newest)
                client.outbox.put(messages)

    def show(self, forming: Forming) -> None:
        """A forming candle."""
        watchers = self._watchers.get(forming.series)
        if not watchers:
            return
        message = protocol.candle_forming(forming.series, forming.candle)
        for client, subscription in watchers.items():
            if subscription.wants_forming(forming.candle):
                client.outbox.put_forming(forming.series, forming.candle.time, message)

    def tell(self, series: SeriesId, text: str) -> None:
        """A `system` message for all who watch the series, behind what waits for them already."""
        for client in self._watchers.get(series, ()):
            client.outbox.put([text])
