"""WsSubscriptionCoordinator: handles the messages of WebSocket clients. Attach first, then catch up, then live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from klinesync.core.errors import Rejected, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.contact import StreamStatus
from klinesync.market_data.on_demand import OnDemand
from klinesync.market_data.read_services import CandleReader
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.ws import protocol
from klinesync.ws.hub import CandleHub, Client
from klinesync.ws.outbox import CLOSE_DEFECT, ClientLimits
from klinesync.ws.protocol import BadMessage, Ping, Subscribe, Unsubscribe, WsMessageParser
from klinesync.ws.session import Subscription

log = Log(__name__)

# Most subscriptions of a connection.
MAX_SUBSCRIPTIONS = 2000
# Longest time, in seconds, that the message after a `subscribe` waits for its catch-up, so that answers usually come in
# the order of the messages.
IN_ORDER_S = 1.0
# Pause before a catch-up that the store could not read is read again, in seconds.
STORE_RETRY_S = 1.0
# Shortest time between two log lines about subscriptions that failed because of the store, in seconds.
LOG_EVERY_S = 60.0


class TooManySubscriptions(Rejected):
    """A connection has reached `MAX_SUBSCRIPTIONS`."""

    code = "too_many_subscriptions"

    def __init__(self) -> None:
        super().__init__(f"a connection takes {MAX_SUBSCRIPTIONS} subscriptions; open another one")


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """An acknowledged subscription whose catch-up waits."""

    message: Subscribe


_NO_TURNS: Mapping[SeriesId, Turn] = {}


class WsSubscriptionCoordinator:
    """Subscribes, unsubscribes, and cleans up after a disconnect.

    hub: has clients and subscriptions.
    reader: reads catch-ups.
    stream: status of a series' stream from the exchange.
    ingest: follows series on demand; None: subscriptions start nothing.
    now_s: the time of a series' exchange, UTC seconds.
    bulkheads: contains defects; a new one by default.
    monotonic: monotonic seconds; the transport limits the rate of messages by it.
    """

    def __init__(
        self,
        hub: CandleHub,
        reader: CandleReader,
        stream: Callable[[SeriesId], StreamStatus],
        ingest: OnDemand | None,
        now_s: Callable[[SeriesId], float],
        bulkheads: Bulkheads | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self.monotonic = monotonic
        self._now_s = now_s
        self.bulkheads = bulkheads or Bulkheads()
        self._hub = hub
        self._reader = reader
        self._stream = stream
        self._ingest = ingest
        self._parser = WsMessageParser()
        self._held: dict[Client, set[SeriesId]] = {}  # series to which a connected client has a reference
        # Waiting catch-ups of a client, in order; the first is in flight. And the task that sends them.
        self._turns: dict[Client, dict[SeriesId, Turn]] = {}
        self._catching_up: dict[Client, asyncio.Task[None]] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)

    @property
    def limits(self) -> ClientLimits:
        """The limits of clients."""
        return self._hub.limits

    def connected(self, client: Client) -> None:
        """A client has connected."""
        self._held[client] = set()
        self._hub.connected(client)

    def disconnected(self, client: Client) -> None:
        """A client has disconnected, in any state: release its references and subscriptions."""
        self._hub.disconnected(client)
        self._turns.pop(client, None)
        if (task := self._catching_up.pop(client, None)) is not None:
            task.cancel()
        for series in self._held.pop(client, ()):
            self._release(series)

    async def handle(self, client: Client, text: str | bytes) -> None:
        """Handle a message. Every answer, errors too, goes through the client's outbox."""
        series: SeriesId | None = None
        try:
            message = self._parser.parse(text)
            match message:
                case Subscribe(series):
                    await self._subscribe(client, message)
                case Unsubscribe(series):
                    self._unsubscribe(client, series)
                case Ping():
                    client.outbox.put([protocol.pong()])
        except BadMessage as error:
            client.outbox.put([protocol.error_message(error.code, str(error), error.series_id)])
        except Rejected as error:
            name = None if series is None else str(series)
            client.outbox.put([protocol.error_message(error.code, str(error), name, error.detail)])
        except StoreError as error:
            self._tell_store_error(client, series, error)

    async def _subscribe(self, client: Client, message: Subscribe) -> None:
        series = message.series
        turns = self._turns.get(client, _NO_TURNS)
        if series not in client.subscriptions and series not in turns:
            if len(client.subscriptions.keys() | turns.keys()) >= MAX_SUBSCRIPTIONS:
                raise TooManySubscriptions
            await self._reader.check_known_or_stored(series)
        held = self._held.get(client)
        if held is None or client.outbox.ended is not None:
            return  # disconnected meanwhile
        if series not in held and self._ingest is not None and self._ingest.covers(series):
            self._ingest.acquire(series)
            held.add(series)
        if message.since is None:
            self._turns.get(client, {}).pop(series, None)
            try:
                await self._attach(client, message, lambda: client in self._held, ack=message.ack)
            except StoreError:
                if series not in client.subscriptions:
                    self._release_held(client, series)
                raise
        else:
            await self._wait_turn(client, message)

    async def _wait_turn(self, client: Client, message: Subscribe) -> None:
        """Acknowledge a subscription at once, and queue its catch-up behind earlier ones, while further messages of the
        client are handled."""
        series = message.series
        # The subscription starts over: no candle of an earlier subscription may follow.
        self._turns.get(client, {}).pop(series, None)
        self._hub.detach(client, series)
        if message.ack:
            try:
                head = await self._reader.head(series)
            except StoreError:
                self._release_held(client, series)
                raise
            if client not in self._held:
                return
            client.outbox.put([protocol.subscribed(series, head, self._stream(series).state)])
        turns = self._turns.get(client)
        if turns is not None:
            turns[series] = Turn(message)
            return
        self._turns[client] = {series: Turn(message)}
        self._catching_up[client] = task = self.bulkheads.begin(
            asyncio.get_running_loop(), partial(self._take_turns, client), part=Part.CLIENT, name="catch-ups"
        )
        if client.outbox.has_room:
            await asyncio.wait([task], timeout=IN_ORDER_S)

    async def _take_turns(self, client: Client) -> None:
        """Send one catch-up after the other, each when the client has taken most of the one before."""
        turns = self._turns[client]
        try:
            while turns:
                await client.outbox.room()
                if client.outbox.ended is not None or not turns:
                    break
                series, turn = next(iter(turns.items()))

                def stands(series: SeriesId = series, turn: Turn = turn) -> bool:
                    return turns.get(series) is turn and client in self._held

                try:
                    await self._attach(client, turn.message, stands, ack=False)
                except StoreError as error:
                    # Acknowledged already: an error message could be taken for the answer to a later `subscribe`.
                    self._log_store_error(series, error)
                    await asyncio.sleep(STORE_RETRY_S)
                    continue
                if turns.get(series) is turn:
                    del turns[series]
        except Exception:
            client.outbox.end(CLOSE_DEFECT)
            raise
        finally:
            if self._turns.get(client) is turns:
                del self._turns[client]
                self._catching_up.pop(client, None)

    async def _attach(self, client: Client, message: Subscribe, stands: Callable[[], bool], *, ack: bool) -> None:
        """Attach a subscription, and send its catch-up.

        client: of the subscription.
        message: its `subscribe`.
        stands: whether the subscription is still current.
        ack: whether to send `subscribed` before.

        Raises `StoreError`; then nothing is attached.
        """
        series, since = message.series, message.since
        if since is not None and since > self._now_s(series):
            # A `since` in the future counts as the head. The stored head is never in the future, even if the clock of
            # this machine lags an exchange whose time is unknown.
            head = await self._reader.head(series)
            since = head if head is None else min(since, head)
            if not stands():
                return
        subscription = Subscription(
            series, since, supports_batch=message.supports_batch, what=message.what, full=message.full
        )
        self._hub.attach(client, subscription)
        try:
            catch_up = await self._reader.catch_up(series, since)
        except StoreError:
            if client.subscriptions.get(series) is subscription:
                self._hub.detach(client, series)
            raise
        if client.subscriptions.get(series) is not subscription:
            return  # disconnected, or subscribed again meanwhile
        if ack:
            client.outbox.put([protocol.subscribed(series, catch_up.head, self._stream(series).state)])
        client.outbox.put(
            subscription.caught_up(catch_up.rows, catch_up.first, catch_up.newer, catch_up.commit, catch_up.gaps)
        )
        if message.ack:
            # Held candles have been sent by now. The store may be ahead of them when no rows were requested.
            head = catch_up.head if subscription.newest is None else subscription.newest
            client.outbox.put([protocol.caught_up(series, head)])

    def _log_store_error(self, series: SeriesId | None, error: StoreError) -> None:
        more = self._log_limit.allow("store", self.monotonic())
        if more is not None:
            log.error("ws.subscribe_failed", "a subscription failed", series=series, suppressed=more, error=error)

    def _tell_store_error(self, client: Client, series: SeriesId | None, error: StoreError) -> None:
        self._log_store_error(series, error)
        sentence = "the store cannot be read at present; subscribe again later"
        client.outbox.put([protocol.error_message(error.code, sentence, None if series is None else str(series))])

    def _unsubscribe(self, client: Client, series: SeriesId) -> None:
        self._turns.get(client, {}).pop(series, None)
        self._hub.detach(client, series)
        self._release_held(client, series)

    def _release_held(self, client: Client, series: SeriesId) -> None:
        held = self._held.get(client)
        if held is not None and series in held:
            held.remove(series)
            self._release(series)

    def _release(self, series: SeriesId) -> None:
        if self._ingest is not None:
            self._ingest.release(series)
