"""CandleHub: publishes candles of the pipeline to clients. Publishing never waits; each client has a bounded outbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from klinesync.core.candle import Applied, Forming
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.ws import protocol
from klinesync.ws.outbox import (
    CLOSE_DEFECT,
    CLOSE_GOING_AWAY,
    CLOSE_TRY_AGAIN_LATER,
    USUAL_CLIENTS,
    ClientLimits,
    Outbox,
    Wire,
)
from klinesync.ws.session import Announcement, Subscription

log = Log(__name__)

# Seconds between two log lines about clients that were too slow.
LOG_EVERY_S = 10.0


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
