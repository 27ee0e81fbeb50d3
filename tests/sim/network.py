"""The network between the service and the exchange, as the service's HTTP library shows it: connections that are cut,
refused, slow; frames that are lost, doubled, out of order, broken. It stands in for `aiohttp.ClientSession`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp
import msgspec

from klinesync.ingest.binance_rest import TIMEOUT_S
from klinesync.ingest.binance_ws import HEARTBEAT_S
from sim.exchange import SimulatedExchange
from sim.scenario import Faults
from sim.virtual_loop import Process, VirtualLoop

CALM = Faults()
LATENCY_S = (0.002, 0.05)
# A cut that nobody tells: the service learns of it when its heartbeat is not answered.
UNNOTICED_CUT = 0.2


class Network:
    """What goes wrong on the way. `faults` change when the storm is over."""

    def __init__(self, exchange: SimulatedExchange, loop: VirtualLoop, note: Callable[[str], None]) -> None:
        self.exchange = exchange
        self.note = note
        self.loop = loop
        self.faults = exchange.scenario.faults
        self.rng = Random(f"network {exchange.scenario.seed}")
        self.minute_s = 60.0 / exchange.scenario.speed
        self.down_until_s = 0.0
        self.sockets: list[ExchangeSocket] = []
        self.requests = 0
        self.refused = 0

    @property
    def down(self) -> bool:
        """Nobody can connect at present."""
        return self.loop.time() < self.down_until_s

    def strike(self) -> None:
        """Once an exchange minute: cut connections, and perhaps refuse new ones for a while."""
        for socket in tuple(self.sockets):
            if self.rng.random() < self.faults.disconnect:
                socket.cut(noticed=self.rng.random() > UNNOTICED_CUT)
                if self.rng.random() < self.faults.refuse:
                    self.down_until_s = self.loop.time() + self.rng.uniform(0.5, 8) * min(self.minute_s, 5.0)

    def calm(self) -> None:
        """The faults stop."""
        self.faults = CALM
        self.down_until_s = 0.0

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
        self.close_code: int | None = None
        self._network = network
        self._loop = network.loop
        self._market = market
        self._names: set[str] = set()
        self._arrived: deque[Frame] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._in_order_s = 0.0
        self._linked = True
        network.sockets.append(self)
        network.exchange.sinks[market].append(self._sent)

    # The exchange's side.

    def _sent(self, stream: str, text: str, final: bool) -> None:
        """The exchange pushes a frame; the network has its way with it."""
        if stream not in self._names:
            return
        faults, rng = self._network.faults, self._network.rng
        if rng.random() < (faults.lose_closed if final else faults.lose_forming):
            return
        if rng.random() < faults.malformed:
            text = rng.choice((text[:-9], text.replace('"x":true', '"x":"true"'), "nonsense", text + "}"))
        delay_s = rng.uniform(*LATENCY_S)
        if rng.random() < faults.reorder:
            delay_s += rng.random() * min(3.0, 0.4 * self._network.minute_s)
            self._loop.call_later(delay_s, self._arrive, text, context=self._loop.outside)
            return
        self._in_order_s = max(self._in_order_s, self._loop.time() + delay_s)
        self._loop.call_at(self._in_order_s, self._arrive, text, context=self._loop.outside)
        if rng.random() < faults.duplicate:
            self._loop.call_later(delay_s + rng.random(), self._arrive, text, context=self._loop.outside)

    def _arrive(self, text: str) -> None:
        if self._linked and self.close_code is None:
            self._arrived.append(Frame(text))
            self._wake()

    def cut(self, *, noticed: bool) -> None:
        """The connection is lost; unnoticed by the service until its heartbeat fails, or at once."""
        if self._linked:
            self.leave()
            delay_s = 0.0 if noticed else HEARTBEAT_S * 1.5
            self._loop.call_later(delay_s, self._end, 1006, context=self._loop.outside)

    def leave(self) -> None:
        """The exchange knows of the connection no more."""
        if self._linked:
            self._linked = False
            self._network.sockets.remove(self)
            self._network.exchange.sinks[self._market].remove(self._sent)

    def _end(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _answer(self, request: dict[str, object]) -> None:
        if not self._linked:
            return
        faults, rng = self._network.faults, self._network.rng
        names = request["params"]
        assert isinstance(names, list)
        answer = f'{{"result":null,"id":{request["id"]}}}'
        if rng.random() < faults.deaf:
            if rng.random() < 0.5:
                return
            answer = f'{{"error":{{"code":2,"msg":"Invalid request"}},"id":{request["id"]}}}'
        elif request["method"] == "SUBSCRIBE":
            self._names.update(names)
        else:
            self._names.difference_update(names)
        # Pushes may overtake the answer.
        self._loop.call_later(rng.uniform(*LATENCY_S), self._arrive, answer, context=self._loop.outside)

    # The service's side.

    async def send_str(self, text: str) -> None:
        if self.close_code is not None:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        if self._linked:
            request = msgspec.json.decode(text)
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
        self.leave()
        self._end(1000)


class Request:
    """One GET, as `aiohttp.ClientSession.get` shows it."""

    def __init__(self, network: Network, url: str, params: Mapping[str, str]) -> None:
        self._network = network
        self._url = urlsplit(url)
        self._params = params
        self.status = 200
        self.headers: dict[str, str] = {}
        self._body = b""

    async def __aenter__(self) -> Request:
        network = self._network
        faults, rng = network.faults, network.rng
        network.requests += 1
        if network.down:
            await asyncio.sleep(rng.uniform(*LATENCY_S))
            raise aiohttp.ClientConnectionError("Cannot connect to host")
        slow = rng.random() < faults.rest_slow
        there_s, back_s = (rng.uniform(0.1, 7) if slow else rng.uniform(*LATENCY_S) for _ in range(2))
        if there_s + back_s > TIMEOUT_S:
            await asyncio.sleep(TIMEOUT_S)
            raise TimeoutError
        await asyncio.sleep(there_s)
        self._respond(faults, rng)
        await asyncio.sleep(back_s)
        if self.status == 0:
            raise aiohttp.ServerDisconnectedError
        return self

    def _respond(self, faults: Faults, rng: Random) -> None:
        market = "futures" if self._url.path.startswith("/fapi/") else "spot"
        if rng.random() < faults.rest_limit:
            self.status = 429
            self.headers = {"Retry-After": str(rng.randint(1, 5))}
            self._body = b'{"code":-1003,"msg":"Too much request weight used."}'
        elif rng.random() < faults.rest_error:
            self.status, self._body = rng.choice(
                ((500, b"oops"), (503, b'{"code":-1000,"msg":"busy"}'), (200, b'[[1,"1'), (200, b"<html>"), (0, b""))
            )
        else:
            # A cache somewhere: whole rows come late. Less than it takes for a hole to be given up.
            lag_s = rng.uniform(0.5, 8) * min(60.0, self._network.exchange.scenario.speed)
            lagging = rng.random() < faults.rest_lag
            name = self._url.path.rpartition("/")[2]
            self._body = self._network.exchange.rest(market, name, self._params, lag_s if lagging else 0.0)
        if self._params:
            rows = self._body.count(b"[") - 1
            asked = f"{self._params['symbol']} from {int(self._params['startTime']) // 1000}"
            self._network.note(f"GET {market} {asked}: {self.status}, {rows} rows")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is kept."""

    async def read(self) -> bytes:
        return self._body


class Session:
    """Stands in for the `aiohttp.ClientSession` of the process `owner`."""

    def __init__(self, network: Network, owner: Process | None) -> None:
        self._network = network
        self._owner = owner

    def get(self, url: str, params: Mapping[str, str]) -> Request:
        return Request(self._network, url, params)

    async def ws_connect(
        self, url: str, *, heartbeat: float, max_msg_size: int, timeout: aiohttp.ClientWSTimeout
    ) -> ExchangeSocket:
        network = self._network
        await asyncio.sleep(network.rng.uniform(*LATENCY_S))
        if network.down:
            network.refused += 1
            raise aiohttp.ClientConnectionError("Cannot connect to host")
        return ExchangeSocket(network, "futures" if "/market/" in url else "spot", self._owner)
