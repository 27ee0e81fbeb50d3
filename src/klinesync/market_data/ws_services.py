"""WsSubscriptionCoordinator: what a client's message does. Attach first, then catch up, then live."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from klinesync.core.errors import Rejected, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.market_data.read_services import CandleReader
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.ws import protocol
from klinesync.ws.hub import CandleHub, Client
from klinesync.ws.protocol import BadMessage, Ping, Subscribe, Unsubscribe, WsMessageParser
from klinesync.ws.session import Subscription

log = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS = 2000


class TooManySubscriptions(Rejected):
    """One connection asks for more series than it may have."""

    code = "too_many_subscriptions"

    def __init__(self) -> None:
        super().__init__(f"a connection takes {MAX_SUBSCRIPTIONS} subscriptions; open another one")


@dataclass(frozen=True, slots=True)
class Ingest:
    """Ingest on demand: each subscription holds a reference. `acquire` raises `Rejected` when there is no capacity;
    what is not covered (a series that only comes from outside) is served from the store."""

    covers: Callable[[SeriesId], bool]
    acquire: Callable[[SeriesId], None]
    release: Callable[[SeriesId], None]


class WsSubscriptionCoordinator:
    """Subscribe, unsubscribe, disconnect.

    hub: who watches what.
    reader: reads catch-ups.
    stream_state: where a series' upstream stands.
    ingest: what subscriptions start; None where they start nothing.
    now_s: what time it is on the exchange of a series, in UTC seconds.
    """

    def __init__(
        self,
        hub: CandleHub,
        reader: CandleReader,
        stream_state: Callable[[SeriesId], str],
        ingest: Ingest | None,
        now_s: Callable[[SeriesId], float],
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self._now_s = now_s
        self.bulkheads = bulkheads or Bulkheads()
        self._hub = hub
        self._reader = reader
        self._stream_state = stream_state
        self._ingest = ingest
        self._parser = WsMessageParser()
        self._held: dict[Client, set[SeriesId]] = {}  # by connected client: what it holds a reference to

    def connected(self, client: Client) -> None:
        """A client is there."""
        self._held[client] = set()
        self._hub.connected(client)

    def disconnected(self, client: Client) -> None:
        """A client is gone, in whatever state: everything that it held is given back."""
        self._hub.disconnected(client)
        for series in self._held.pop(client, ()):
            self._release(series)

    async def handle(self, client: Client, text: str | bytes) -> None:
        """Do what one message asks. Every answer, errors too, goes through the client's outbox."""
        series_id: str | None = None
        try:
            message = self._parser.parse(text)
            match message:
                case Subscribe(series):
                    series_id = str(series)
                    await self._subscribe(client, message)
                case Unsubscribe(series):
                    self._unsubscribe(client, series)
                case Ping():
                    client.outbox.put([protocol.pong()])
        except BadMessage as error:
            client.outbox.put([protocol.error_message(error.code, str(error), error.series_id)])
        except Rejected as error:
            client.outbox.put([protocol.error_message(error.code, str(error), series_id)])
        except StoreError as error:
            log.error("%s: a subscription failed: %s", series_id, error)
            sentence = "the store cannot be read at present; subscribe again later"
            client.outbox.put([protocol.error_message(error.code, sentence, series_id)])

    async def _subscribe(self, client: Client, message: Subscribe) -> None:
        series = message.series
        if series not in client.subscriptions:
            if len(client.subscriptions) >= MAX_SUBSCRIPTIONS:
                raise TooManySubscriptions
            await self._reader.check_known_or_stored(series)
        held = self._held.get(client)
        if held is None:
            return  # gone meanwhile
        if series not in held and self._ingest is not None and self._ingest.covers(series):
            self._ingest.acquire(series)
            held.add(series)
        await client.outbox.room()
        if client not in self._held or client.outbox.ended is not None:
            return  # gone meanwhile
        since = message.since
        if since is not None and since > self._now_s(series):
            try:
                # In the future: it counts as the head. (Our clock may be behind the exchange's, whose time may not be
                # known yet: what is stored is not in the future.)
                head = await self._reader.head(series)
                since = head if head is None else min(since, head)
            except StoreError:
                if series not in client.subscriptions:
                    self._unsubscribe(client, series)
                raise
            if client not in self._held:
                return  # gone meanwhile
        subscription = Subscription(series, since, supports_batch=message.supports_batch, what=message.what)
        self._hub.attach(client, subscription)
        try:
            catch_up = await self._reader.catch_up(series, since)
        except StoreError:
            if client.subscriptions.get(series) is subscription:
                self._unsubscribe(client, series)
            raise
        if client.subscriptions.get(series) is not subscription:
            return  # gone meanwhile
        if message.ack:
            client.outbox.put([protocol.subscribed(series, catch_up.head, self._stream_state(series))])
        client.outbox.put(
            subscription.caught_up(catch_up.rows, catch_up.first, catch_up.newer, catch_up.commit, catch_up.gaps)
        )
        if message.ack:
            heads = [time for time in (catch_up.head, subscription.newest) if time is not None]
            client.outbox.put([protocol.caught_up(series, max(heads, default=None))])

    def _unsubscribe(self, client: Client, series: SeriesId) -> None:
        self._hub.detach(client, series)
        held = self._held.get(client)
        if held is not None and series in held:
            held.remove(series)
            self._release(series)

    def _release(self, series: SeriesId) -> None:
        if self._ingest is not None:
            self._ingest.release(series)
