"""CandleHub: from the pipeline to the clients. Publishing awaits nobody; each client has a bounded outbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from klinesync.core.candle import Applied, Forming
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.ws import protocol
from klinesync.ws.session import Announcement, Subscription

log = Log(__name__)

# What may wait for one client. A client that lets more pile up is closed with 1013 and resumes with `since`.
OUTBOX_MAX_MESSAGES = 10_000
OUTBOX_MAX_BYTES = 16 << 20
# Up to so much may wait for a client when the next catch-up of that client is read: a catch-up is paced by the
# client's reading, and alone never fills the outbox.
ROOM_MESSAGES = 500
ROOM_BYTES = 256 << 10
# A client that takes nothing for so long, in seconds, while a catch-up waits for room is too slow.
ROOM_PATIENCE_S = 60.0
# What is handed to a wire in one write, so that what a slow client has not read stays here, where it is counted.
WRITE_BYTES = 64 << 10

# At most one line of clients that were too slow.
LOG_EVERY_S = 10.0

CLOSE_GOING_AWAY = 1001
CLOSE_POLICY_VIOLATION = 1008
CLOSE_DEFECT = 1011
CLOSE_TRY_AGAIN_LATER = 1013


class Wire(Protocol):
    """The way to one client. Only its outbox writes to it, and it tells its outbox to `pause` and to `resume`."""

    @property
    def write(self) -> Callable[[Sequence[bytes]], None]:
        """Takes whole frames, which go out together, in order."""

    def ending(self) -> None:
        """The connection is to be closed behind what waits: cut it off when that takes too long."""

    def close(self, code: int) -> None:
        """Close the connection with `code`, behind what was written. Nothing is written after that."""


class Outbox:
    """What waits for one client: frames in order, none dropped, and of each series the latest forming candle.

    While the wire takes what comes nothing waits, and frames go straight to it. `ended` is the code to close the
    connection with, once set; from then on nothing is taken in.
    """

    __slots__ = ("_bytes", "_forming", "_messages", "_paused", "_room", "_taken", "_warned", "_wire", "_write", "ended")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._write = wire.write
        self._messages: list[bytes] = []
        self._bytes = 0
        self._forming: dict[SeriesId, tuple[int, bytes]] = {}
        self._paused = False
        self._warned = False
        self._taken = 0  # writes to the wire, of what had waited
        self._room: asyncio.Future[None] | None = None
        self.ended: int | None = None

    @property
    def waiting(self) -> tuple[int, int]:
        """Messages that wait, and bytes of those that must arrive."""
        return len(self._messages) + len(self._forming), self._bytes

    def put(self, messages: Sequence[bytes]) -> None:
        """Send messages that must arrive. When more wait than may, the outbox ends with 1013, and forgets them."""
        if self.ended is not None:
            return
        if not self._paused and len(messages) == 1:
            self._write(messages)
            return
        self._messages += messages
        self._bytes += sum(map(len, messages))
        if len(self._messages) > OUTBOX_MAX_MESSAGES or self._bytes > OUTBOX_MAX_BYTES:
            self._forget()
            self.end(CLOSE_TRY_AGAIN_LATER)
        else:
            self._flush()

    def warning_due(self) -> bool:
        """Whether the outbox is half full now, and was not since it was empty: the client is to be told, once."""
        if self._warned or self.ended is not None:
            return False
        self._warned = len(self._messages) > OUTBOX_MAX_MESSAGES // 2 or self._bytes > OUTBOX_MAX_BYTES // 2
        return self._warned

    def put_first(self, message: bytes) -> None:
        """Send a message ahead of all that waits."""
        if self.ended is None:
            self._messages.insert(0, message)
            self._bytes += len(message)
            self._flush()

    @property
    def has_room(self) -> bool:
        """Whether so little waits that the next catch-up may be read."""
        return len(self._messages) <= ROOM_MESSAGES and self._bytes <= ROOM_BYTES

    async def room(self) -> None:
        """Returns once little waits, or the outbox has ended: a client that takes nothing for `ROOM_PATIENCE_S` is
        closed with 1013."""
        while self.ended is None and not self.has_room:
            taken, self._room = self._taken, asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(ROOM_PATIENCE_S):
                    await self._room
            except TimeoutError:
                if self._taken == taken:
                    self._forget()
                    self.end(CLOSE_TRY_AGAIN_LATER)
            finally:
                self._room = None

    def _tell_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def put_forming(self, series: SeriesId, candle_time: int, messages: Sequence[bytes]) -> None:
        """Send a forming candle, one message; while it waits, a later one of the series takes its place."""
        if self.ended is not None:
            return
        if self._paused:
            self._forming[series] = (candle_time, messages[0])
        else:
            self._write(messages)

    def drop_forming(self, series: SeriesId, until: int | None) -> None:
        """Forget a waiting forming candle at or before `until` (None: any): a newer closed one overtakes it."""
        waiting = self._forming.get(series)
        if waiting is not None and (until is None or waiting[0] <= until):
            del self._forming[series]

    def end(self, code: int) -> None:
        """Close the connection with `code` after what waits."""
        if self.ended is None:
            self.ended = code
            self._tell_room()
            self._forming.clear()
            self._wire.ending()
            if not self._messages:
                self._wire.close(code)

    def abandon(self) -> None:
        """The client is gone: nothing is sent any more."""
        self.ended = self.ended or CLOSE_GOING_AWAY
        self._tell_room()
        self._forget()
        self._paused = True

    def pause(self) -> None:
        """The wire wants no more for now."""
        self._paused = True

    def resume(self) -> None:
        """The wire takes more again."""
        self._paused = False
        self._flush()

    def _flush(self) -> None:
        """What must arrive, in order, then the forming candles, until the wire wants no more."""
        while self._messages and not self._paused:
            count = size = 0
            for message in self._messages:
                count, size = count + 1, size + len(message)
                if size >= WRITE_BYTES:
                    break
            taken = self._messages[:count]
            del self._messages[:count]
            self._bytes -= size
            self._taken += 1
            self._write(taken)
            self._tell_room()
        if self._messages:
            return
        self._warned = False
        if self.ended is not None:
            self._wire.close(self.ended)
        elif self._forming and not self._paused:
            forming = [message for _, message in self._forming.values()]
            self._forming.clear()
            self._write(forming)

    def _forget(self) -> None:
        self._messages.clear()
        self._forming.clear()
        self._bytes = 0


class Client:
    """One connection: its subscriptions, and its outbox onto `wire`."""

    __slots__ = ("outbox", "subscriptions")

    def __init__(self, wire: Wire) -> None:
        self.outbox = Outbox(wire)
        self.subscriptions: dict[SeriesId, Subscription] = {}


@dataclass(frozen=True, slots=True)
class HubStatus:
    """What waits for clients now, and since the start the messages and the clients that were too slow (1013)."""

    clients: int
    subscriptions: int
    waiting_messages: int
    waiting_bytes: int
    messages: int
    slow_clients: int


class CandleHub:
    """Who watches what."""

    def __init__(self, bulkheads: Bulkheads | None = None) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._messages = 0  # live ones: catch-ups go from the coordinator straight to the client
        self._slow_clients = 0
        self._log_limit = LogLimit(LOG_EVERY_S)
        self._watchers: dict[SeriesId, dict[Client, Subscription]] = {}
        self._clients: dict[Client, None] = {}  # in order of connecting
        self._empty = asyncio.Event()
        self._ending = False

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._clients)

    @property
    def status(self) -> HubStatus:
        """How it stands; looks at every client."""
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
        """A client is there."""
        self._clients[client] = None
        self._empty.clear()
        if self._ending:
            client.outbox.end(CLOSE_GOING_AWAY)

    def disconnected(self, client: Client) -> None:
        """A client is gone: it watches nothing any more."""
        self._clients.pop(client, None)
        if client.outbox.ended == CLOSE_TRY_AGAIN_LATER:
            self._slow_clients += 1
            if (more := self._log_limit.allow("slow", asyncio.get_running_loop().time())) is not None:
                log.warning("ws.client_slow", "a client read too slowly, and was closed with 1013", suppressed=more)
        if not self._clients:
            self._empty.set()
        for series in list(client.subscriptions):
            self.detach(client, series)
        client.outbox.abandon()

    async def end(self, timeout_s: float) -> None:
        """The service stops: end every connection with 1001, also those to come; wait until all are gone, or
        `timeout_s`."""
        self._ending = True
        for client in list(self._clients):
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

    def any_watched(self, series: Iterable[SeriesId]) -> bool:
        """Whether anybody watches one of the series."""
        return not self._watchers.keys().isdisjoint(series)

    def publish(self, applied: Applied) -> None:
        """Closed candles, after their commit, in commit order."""
        watchers = self._watchers.get(applied.series)
        if not watchers or not applied.told:
            return
        announcement = Announcement(applied)
        for client, subscription in watchers.items():
            try:
                messages = subscription.announce(announcement)
                if messages:
                    self._messages += len(messages)
                    client.outbox.drop_forming(applied.series, announcement.newest)
                    self._put(client, applied.series, messages)
            except Exception as error:  # noqa: BLE001  # a bulkhead, without the cost of `contained` for each client
                self._broke(client, error)

    def resync(self, series: SeriesId) -> None:
        """What was published of the series may be incomplete: its clients are closed, and resume with `since`."""
        for client in self._watchers.get(series, {}):
            client.outbox.end(CLOSE_DEFECT)

    def show(self, forming: Forming) -> None:
        """A forming candle."""
        watchers = self._watchers.get(forming.series)
        if not watchers:
            return
        messages = [protocol.candle_forming(forming.series, forming.candle)]
        self._messages += len(watchers)
        for client, subscription in watchers.items():
            try:
                if subscription.wants_forming(forming.candle):
                    client.outbox.put_forming(forming.series, forming.candle.time, messages)
            except Exception as error:  # noqa: BLE001  # as in `publish`
                self._broke(client, error)

    def tell(self, series: SeriesId, message: bytes) -> None:
        """A `system` message for all who watch the series, behind what waits for them already."""
        watchers = self._watchers.get(series, {})
        self._messages += len(watchers)
        for client, subscription in watchers.items():
            if not subscription.holding:  # `subscribed` comes first, and says how the stream stands
                self._put(client, series, [message])

    def _put(self, client: Client, series: SeriesId, messages: Sequence[bytes]) -> None:
        """Live messages of `series`. A client that reads too slowly is warned while there is time."""
        outbox = client.outbox
        outbox.put(messages)
        if outbox.warning_due():
            sentence = "half of what may wait for this connection does: read faster, or it is closed with 1013"
            waiting, size = outbox.waiting
            facts = {
                "waiting_messages": waiting,
                "max_messages": OUTBOX_MAX_MESSAGES,
                "waiting_bytes": size,
                "max_bytes": OUTBOX_MAX_BYTES,
            }
            outbox.put_first(protocol.system(series, "slow", sentence, facts))

    def _broke(self, client: Client, error: Exception) -> None:
        """A defect in what is done for one client: the connection ends, and the client resumes with `since`."""
        self._bulkheads.defect(Part.CLIENT, "publishing", error)
        client.outbox.end(CLOSE_DEFECT)
