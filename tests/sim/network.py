"""The network between the service and the exchange, in place of the service's `HttpClient`: connections that are cut,
refused, slow; frames that are lost, duplicated, reordered, malformed."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from random import Random
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp
import msgspec

from klinesync.core.candle import Candle
from klinesync.exchanges.binance.requests import TIMEOUT_S
from klinesync.exchanges.binance.streams import CONNECT_TIMEOUT_S, HEARTBEAT_S
from klinesync.runtime.http_client import Body
from sim.exchange import MINUTE_S, Listing, SimulatedExchange
from sim.hostile import hostile_frame
from sim.http import Whole
from sim.rest_host import RestHost
from sim.scenario import Faults
from sim.virtual_loop import Process, VirtualLoop

CALM = Faults()
LATENCY_S = (0.002, 0.05)
# Share of cuts without notice: the service learns of the cut when its heartbeat is not answered.
UNNOTICED_CUT = 0.2
# Time from the announcement of a connection's end to the end, in exchange time.
NOTICE_S = 10
# After this time without disturbance the service has its connections in order, on its own clock.
UNDISTURBED_S = 15.0
# Additional time until a new connection takes over: the service checks every 5 s whether one is due.
TAKEOVER_S = 8.0
# How long a stream is silent on every connection, and how long the network is down, in exchange minutes; the latter at
# most so long on the service's clock.
SILENT_MINUTES = (1, 8)
BLACKOUT_MINUTES = (1, 5)
BLACKOUT_MOST_S = 240.0


class Network:
    """The faults of the network. `faults` change when the storm is over.

    `violate` is called when the service breaks a rule. `left` says whether the service may give up a connection though
    no other carries its streams; `clock_ms` is the exchange's time as a process knows it; `closed_told` is called for
    every final candle that a process receives.
    """

    def __init__(
        self,
        exchange: SimulatedExchange,
        loop: VirtualLoop,
        note: Callable[[str], None],
        *,
        violate: Callable[[str], None],
        left: Callable[[ExchangeSocket, list[str]], bool],
        clock_ms: Callable[[Process | None, str], int | None],
        closed_told: Callable[[Process, Listing, Candle], None],
    ) -> None:
        self.exchange = exchange
        self.note = note
        self.violate = violate
        self.left = left
        self.loop = loop
        self.faults = exchange.scenario.faults
        self.rng = Random(f"network {exchange.scenario.seed}")
        self.edge = Random(f"edge of the network {exchange.scenario.seed}")
        self.minute_s = 60.0 / exchange.scenario.speed
        self.down_until_s = 0.0
        self.black_until_s = 0.0
        self.disturbed_at_s = loop.time()
        self.sockets: list[ExchangeSocket] = []
        # Connections that the service keeps open; some may have been cut without its notice.
        self.held: list[ExchangeSocket] = []
        self.hosts = {market: RestHost(exchange, loop, market, violate) for market in exchange.sinks}
        self.requests = 0
        self.refused = 0
        self.happened: Counter[str] = Counter()
        self.clock_ms = clock_ms
        self.closed_told = closed_told
        self._blackouts_left = self.faults.blackouts
        self._silent_until_s: dict[str, float] = {}

    @property
    def down(self) -> bool:
        """Whether all new connections fail at present."""
        return self.loop.time() < max(self.down_until_s, self.black_until_s)

    def strike(self) -> None:
        """Once per exchange minute: cut connections, and perhaps refuse new ones for a while."""
        for socket in tuple(self.sockets):
            if self.rng.random() < self.faults.disconnect:
                socket.cut(noticed=self.rng.random() > UNNOTICED_CUT)
                if self.rng.random() < self.faults.refuse:
                    self.down_until_s = self.loop.time() + self.rng.uniform(0.5, 8) * min(self.minute_s, 5.0)
            elif self.edge.random() < self.faults.shutdown:
                socket.announce_end()
        for listing in self.exchange.listings.values():
            if self.edge.random() < 0.1 * self.faults.silent:
                minutes = self.edge.uniform(*SILENT_MINUTES)
                self._silent_until_s[_key(listing)] = self.loop.time() + minutes * self.minute_s
        if self._blackouts_left and self.edge.random() < 3 / self.exchange.scenario.storm_minutes:
            self._blackouts_left -= 1
            self._go_black()

    def _go_black(self) -> None:
        """The network is down for a while, in both directions."""
        duration_s = min(self.edge.uniform(*BLACKOUT_MINUTES) * self.minute_s, BLACKOUT_MOST_S)
        self.note(f"blackout for {duration_s:.1f} s")
        self.happened["blackouts"] += 1
        self.black_until_s = self.loop.time() + duration_s
        for socket in tuple(self.sockets):
            socket.cut(noticed=self.edge.random() > 0.5)

    def tell(self, owner: Process, listing: Listing, text: str) -> None:
        """Deliver a frame of that stream to the process out of order."""
        for socket in tuple(self.sockets):
            if socket.owner is owner and socket.market == listing.series.market and socket.carries(listing.stream):
                socket.bring(text)
                return

    def calm(self) -> None:
        """Stop the faults. Streams that are silent on a connection stay silent, for only the service can notice that;
        except when an older connection still delivers the stream: it may end with the last minute of all, and then no
        further frame could prove the newer connection."""
        self.faults = CALM
        self.down_until_s = self.black_until_s = 0.0
        self._silent_until_s.clear()
        for number, socket in enumerate(self.sockets):
            older = (one for one in self.sockets[:number] if (one.owner, one.market) == (socket.owner, socket.market))
            socket.speak(set[str]().union(*(one.names for one in older)))

    def silent(self, listing: Listing) -> bool:
        """Whether the stream is silent on every connection at present."""
        return self.loop.time() < self._silent_until_s.get(_key(listing), 0.0)

    def carried(self, owner: Process | None, stream: str, market: str) -> bool:
        """Whether a connection of that process carries the stream, as far as the process knows."""
        return any(socket.carries(stream) for socket in self.held if socket.owner is owner and socket.market == market)

    def delivers(self, owner: Process, listing: Listing) -> bool:
        """Whether pushes of that stream reach the process."""
        sockets = [
            socket for socket in self.sockets if socket.owner is owner and socket.market == listing.series.market
        ]
        return any(socket.delivers(listing) for socket in sockets)

    def undisturbed_since(self, time_s: float) -> bool:
        """Whether no fault has disturbed the service's connecting and subscribing since a while before that time."""
        return self.disturbed_at_s < time_s - UNDISTURBED_S

    def disturb(self) -> None:
        """Note that a fault disturbs connecting or subscribing, or has cut a connection."""
        self.disturbed_at_s = self.loop.time()

    async def refuse(self, patience_s: float) -> None:
        """No answer: the connection fails at once, or times out."""
        if self.loop.time() < self.black_until_s and self.edge.random() < 0.3:
            await asyncio.sleep(patience_s)
            raise TimeoutError
        await asyncio.sleep(self.rng.uniform(*LATENCY_S))
        raise aiohttp.ClientConnectionError("Cannot connect to host")

    def process_died(self, process: Process) -> None:
        """The operating system closes the sockets of a killed process."""
        for socket in tuple(self.sockets):
            if socket.owner is process:
                socket.leave()


@dataclass(frozen=True, slots=True)
class Frame:
    """As aiohttp hands it over."""

    data: str
    type: aiohttp.WSMsgType = aiohttp.WSMsgType.TEXT


class ExchangeSocket:
    """A connection to the streams of one market, as `aiohttp.ClientWebSocketResponse` shows it."""

    def __init__(self, network: Network, market: str, owner: Process | None) -> None:
        self.owner = owner
        self.market = market
        self.close_code: int | None = None
        self._network = network
        self._loop = network.loop
        self._names: set[str] = set()
        self._known: set[str] = set()  # subscriptions that were acknowledged to the service
        self._silent: set[str] = set()
        self._deaf = False
        self._arrived: deque[Frame] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._in_order_s = 0.0
        self._linked = True
        network.sockets.append(self)
        network.held.append(self)
        network.exchange.sinks[market].append(self._sent)
        if network.faults.lifetime:
            exchange = network.exchange
            exchange.at(exchange.now_ms() + network.faults.lifetime * MINUTE_S * 1000, self._die_of_age)

    @property
    def names(self) -> frozenset[str]:
        """The streams that are sent on this connection."""
        return frozenset(self._names - self._silent)

    def speak(self, streams: Collection[str]) -> None:
        """Make these streams silent."""
        self._silent.difference_update(streams)

    def carries(self, stream: str) -> bool:
        """Whether the service got the acknowledgement, and no end of the connection."""
        return stream in self._known

    def delivers(self, listing: Listing) -> bool:
        """Whether pushes of the stream are sent on this connection."""
        stream = listing.stream
        return stream in self._names and stream not in self._silent and not self._network.silent(listing)

    # The exchange's end.

    def _sent(self, listing: Listing, candle: Candle, final: bool, text: str) -> None:
        """The exchange pushes a frame, which the network may drop, duplicate, delay or spoil."""
        if not self.delivers(listing):
            return
        faults, rng = self._network.faults, self._network.rng
        if self._network.edge.random() < faults.hostile:
            lie = hostile_frame(text, self._network.edge)
            self._network.happened["lies"] += 1
            self._loop.call_later(self._network.edge.random(), self._arrive, lie, context=self._loop.outside)
        if rng.random() < (faults.lose_closed if final else faults.lose_forming):
            return
        told = (listing, candle) if final else None
        if rng.random() < faults.malformed:
            text, told = rng.choice((text[:-9], text.replace('"x":true', '"x":"true"'), "nonsense", text + "}")), None
        delay_s = rng.uniform(*LATENCY_S)
        if rng.random() < faults.reorder:
            delay_s += rng.random() * min(3.0, 0.4 * self._network.minute_s)
            self._loop.call_later(delay_s, self._arrive, text, told, context=self._loop.outside)
            return
        self._in_order_s = max(self._in_order_s, self._loop.time() + delay_s)
        self._loop.call_at(self._in_order_s, self._arrive, text, told, context=self._loop.outside)
        if rng.random() < faults.duplicate:
            self._loop.call_later(delay_s + rng.random(), self._arrive, text, context=self._loop.outside)

    def _arrive(self, text: str, told: tuple[Listing, Candle] | None = None) -> None:
        if self._linked and self.close_code is None:
            self._arrived.append(Frame(text))
            self._wake()
            if told is not None and self.owner is not None:
                self._network.closed_told(self.owner, *told)

    def bring(self, text: str) -> None:
        """A frame arrives out of order."""
        self._arrive(text)

    def announce_end(self) -> None:
        """The exchange announces the end of the connection, and ends it."""
        network, exchange = self._network, self._network.exchange
        network.note(f"an end is announced on a connection of {self.market}")
        network.happened["shutdowns"] += 1
        notice = f'{{"stream":"!serverShutdown","data":{{"e":"serverShutdown","E":{exchange.now_ms()}}}}}'
        self._arrive(notice)
        exchange.at(exchange.now_ms() + NOTICE_S * 1000, self._end_as_announced, self._loop.time())

    def _end_as_announced(self, announced_s: float) -> None:
        self._end_of_itself(announced_s)

    def _die_of_age(self) -> None:
        """The exchange ends connections at their maximum age."""
        if self._network.faults.lifetime and self._linked:
            self._network.happened["deaths"] += 1
            # The service had the last third of the lifetime to replace the connection.
            self._end_of_itself(self._loop.time() - self._network.faults.lifetime * self._network.minute_s / 3)

    def _end_of_itself(self, foreseen_s: float) -> None:
        """The exchange ends the connection, which the service could foresee: by now another connection carries its
        streams, and no frame is lost."""
        if not self._linked or self.close_code is not None:
            return
        network, now_s = self._network, self._loop.time()
        carried = sorted(self._known)
        # While the exchange is unreachable the service waits by its own clock: both clocks must run at the same pace. A
        # wrong clock may also be taken for the true one.
        at_pace = network.exchange.scenario.speed == 1.0 and not network.exchange.scenario.faults.clocks
        foreseen = at_pace and now_s - foreseen_s >= TAKEOVER_S and network.undisturbed_since(foreseen_s)
        self.leave()
        self._end(1001)
        if foreseen and self._names == self._known:
            for stream in carried:
                if not network.carried(self.owner, stream, self.market):
                    network.violate(
                        f"{self.market}: {stream} is carried by no connection when the old one ends as foreseen"
                    )
        else:
            network.disturb()

    def cut(self, *, noticed: bool) -> None:
        """The connection is lost; the service learns it at once, or when its heartbeat fails."""
        if self._linked:
            self.leave()
            delay_s = 0.0 if noticed else HEARTBEAT_S * 1.5
            self._loop.call_later(delay_s, self._end, 1006, context=self._loop.outside)

    def leave(self) -> None:
        """The exchange forgets the connection."""
        if self._linked:
            self._linked = False
            self._network.sockets.remove(self)
            self._network.exchange.sinks[self.market].remove(self._sent)

    def _end(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
            self._network.held.remove(self)
            if code == 1006:
                self._network.disturb()
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _answer(self, request: dict[str, object]) -> None:
        if not self._linked:
            return
        network = self._network
        faults, rng, edge = network.faults, network.rng, network.edge
        names = request["params"]
        assert isinstance(names, list)
        answer = f'{{"result":null,"id":{request["id"]}}}'
        known = self._known - set(names)
        if rng.random() < faults.deaf:
            self._deaf = True
            network.disturb()
            if rng.random() < 0.5:
                return
            answer = f'{{"error":{{"code":2,"msg":"Invalid request"}},"id":{request["id"]}}}'
        elif request["method"] == "SUBSCRIBE":
            self._names.update(names)
            known.update(names)
            silent = {name for name in names if edge.random() < faults.silent}
            network.happened["silent"] += len(silent)
            self._silent.update(silent)
        else:
            self._names.difference_update(names)
            self._silent.difference_update(names)
        # Pushes may arrive before the acknowledgement.
        self._loop.call_later(rng.uniform(*LATENCY_S), self._arrive_answer, answer, known, context=self._loop.outside)

    def _arrive_answer(self, answer: str, known: set[str]) -> None:
        self._known = known
        self._arrive(answer)

    # The service's end.

    async def send_str(self, data: str) -> None:
        if self.close_code is not None:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        if self._linked:
            request = msgspec.json.decode(data)
            delay_s = self._network.rng.uniform(*LATENCY_S)
            self._loop.call_later(delay_s, self._answer, request, context=self._loop.outside)

    def __aiter__(self) -> ExchangeSocket:
        return self

    async def __anext__(self) -> Frame:
        while not self._arrived:
            if self.close_code is not None:
                raise StopAsyncIteration
            self._waiting = self._loop.create_future()
            await self._waiting
        return self._arrived.popleft()

    async def close(self) -> None:
        sound = self._linked and self.close_code is None and not self._deaf
        self.leave()
        self._end(1000)
        if not sound or self.owner is None or not self.owner.alive:
            return
        network = self._network
        lost = [name for name in sorted(self._known) if not network.carried(self.owner, name, self.market)]
        if lost and not network.left(self, lost):
            network.violate(f"{self.market}: a connection is given up, and no other carries {', '.join(lost)}")


class Request:
    """One GET, as `aiohttp.ClientSession.get` shows it."""

    def __init__(self, network: Network, owner: Process | None, url: str, params: Mapping[str, str]) -> None:
        self._network = network
        self._owner = owner
        path = urlsplit(url).path
        self._market = "futures" if path.startswith("/fapi/") else "spot"
        self._name = path.rpartition("/")[2]
        self._params = params
        self.status = 200
        self.headers: dict[str, str] = {}
        self._body = b""

    async def __aenter__(self) -> Request:
        network = self._network
        faults, rng = network.faults, network.rng
        network.requests += 1
        host, asker, asked_s = network.hosts[self._market], _name(self._owner), network.loop.time()
        host.check_wish(asker, self._name)
        if network.down:
            await network.refuse(TIMEOUT_S)
        slow = rng.random() < faults.rest_slow
        there_s, back_s = (rng.uniform(0.1, 7) if slow else rng.uniform(*LATENCY_S) for _ in range(2))
        if there_s + back_s > TIMEOUT_S:
            await asyncio.sleep(TIMEOUT_S)
            raise TimeoutError
        await asyncio.sleep(there_s)
        answer = host.answer(asker, self._name, self._params, faults, rng)
        self.status, self._body, self.headers = answer.status, answer.body, answer.headers
        self._note(f"{self.status} after {there_s + back_s:.1f} s")
        await asyncio.sleep(back_s)
        if self.status == 0:
            raise aiohttp.ServerDisconnectedError
        if answer.retry_after_s is not None:
            host.told_to_wait(asker, answer.retry_after_s, network.clock_ms(self._owner, self._market))
        elif self._name == "time":
            host.time_is_read(asker, asked_s)
        return self

    def _note(self, came: str) -> None:
        asked = self._name
        if asked == "klines":
            asked = f"{self._params['symbol']} from {int(self._params['startTime']) // 1000}"
            if "endTime" in self._params:
                asked += f" to {int(self._params['endTime']) // 1000}"
            came += f", {self._body.count(b'[') - 1} rows"
        self._network.note(f"GET {self._market} {asked}: {came}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""

    @property
    def content(self) -> Body:
        return Whole(self._body)


class Session:
    """The `Http` of the process `owner`."""

    def __init__(self, network: Network, owner: Process | None) -> None:
        self._network = network
        self._owner = owner

    def get(self, url: str, params: Mapping[str, str] | None = None) -> Request:
        return Request(self._network, self._owner, url, params or {})

    async def close(self) -> None:
        """Nothing to close."""

    async def ws_connect(
        self, url: str, *, heartbeat: float, max_msg_size: int, close_timeout_s: float
    ) -> ExchangeSocket:
        network = self._network
        await asyncio.sleep(network.rng.uniform(*LATENCY_S))
        if network.down:
            network.refused += 1
            network.disturb()
            await network.refuse(CONNECT_TIMEOUT_S)
        return ExchangeSocket(network, "futures" if "/market/" in url else "spot", self._owner)


def _key(listing: Listing) -> str:
    return f"{listing.series.market} {listing.stream}"


def _name(owner: Process | None) -> str:
    return "" if owner is None else owner.name
