"""Whole ways of a candle, from the exchange's frame to clients, beside a bare pipeline of the best parts.

    python benchmarks/pipeline.py

Two ways: closed candles in bursts, durable before clients get them, with the usual indicators; and forming ticks. The
simulated exchange feeds, one after the other, a service as a user starts it, and the bare pipeline: one process that
decodes frames, commits the candles of a read in one transaction, advances TA-Lib's handles, encodes each candle once
and writes it to its clients; no checks, no recovery, no threads. Two clients watch each series. Service and bare
pipeline run on the first core, exchange and clients on the last. A delay is the time between the arrivals of a candle
from the exchange itself and from the service, in the same process; closed candles are judged by its p99, ticks by the
CPU time of the service.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from argparse import SUPPRESS
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import apsw
import msgspec
import numpy as np
import uvloop
from bench_output import parser_of, write_figures
from bench_table import Figure
from follow_exchange import (
    MIDNIGHT,
    address,
    arrivals,
    cores,
    cpu_s,
    exchange_time,
    p99,
    series_of,
    service_arguments,
    started,
    tap_exchange,
    up_to_date,
)
from talib import stream
from tap import Listening, Tap

from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite_file import CACHE_KIB, WAL_AUTOCHECKPOINT_PAGES

SERIES = 512
CLIENTS = 2  # of each series
# The bare pipeline has neither derived candles nor a throttle.
AS_BARE = "--enable-derived-timeframes=off", "--market-forming-min-interval-ms=0"
ROUNDS = 3
SECONDS = 10.0
HISTORY = 500
WARM_UP = 200  # candles that open the handles of the bare pipeline
# Pause before a measurement, and after it, so that what was sent has arrived.
SETTLE_S = 1.0
NAMES_PER_REQUEST = 200


class Way(NamedTuple):
    """What the exchange sends.

    row: of the table.
    speed: of the exchange.
    cadence_ms: exchange milliseconds between two updates of a forming candle.
    """

    row: str
    speed: float
    cadence_ms: int


# A minute is a second: bursts of closed candles, and hardly any forming ones between them.
CLOSED = Way("pipe.closed", 60.0, 60_000)
# Some thousand ticks a second, each symbol ten times a second at most.
FORMING = Way("pipe.forming", 20.0, 2000)
# The exchange seconds of a minute in which ticks are measured: long after its beginning and before its end.
QUIET_S = 12, 56


async def exchange(symbols: int, way: Way) -> None:
    """The exchange's process: prints its address, and ends at the end of stdin."""
    start_s = MIDNIGHT + 3600
    config = SimConfig(symbols=symbols, speed=way.speed, start=start_s, spot_cadence_ms=way.cadence_ms)
    async with SimServer(config) as server:
        print(server.http_url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- the bare pipeline


class Kline(msgspec.Struct, gc=False):
    """A candle of a frame."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741
    c: float
    v: float
    q: float
    n: int
    V: float
    Q: float
    x: bool


class Event(msgspec.Struct, gc=False):
    """An event of a stream."""

    s: str
    k: Kline


class Message(msgspec.Struct, gc=False):
    """A message of a combined stream; answers to requests have no data."""

    data: Event | None = None


class Shown(msgspec.Struct, gc=False):
    """A candle in a message to clients."""

    candle_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Out(msgspec.Struct, gc=False):
    """A message to clients."""

    type: str
    series_id: str
    candle: Shown


def handles() -> Callable[[Kline], None]:
    """Six usual indicators of one series, opened on a random walk; the function advances them."""
    dice = np.random.default_rng(1)
    close = 100 + dice.normal(size=WARM_UP).cumsum() * 0.01
    singles = [
        stream.SMA(close, 20), stream.EMA(close, 21), stream.BBANDS(close, 20), stream.MACD(close, 12, 26, 9),
        stream.RSI(close, 14),
    ]  # fmt: skip
    atr = stream.ATR(close + 0.1, close - 0.1, close, 14)

    def advance(kline: Kline) -> None:
        for single in singles:
            single.update(kline.c)
        atr.update(kline.h, kline.l, kline.c)

    return advance


class BareClient(asyncio.Protocol):
    """A client's connection: it asks for `/SYMBOL`, and gets the frames of that symbol."""

    def __init__(self, clients: dict[str, list[Callable[[bytes], None]]]) -> None:
        self._clients = clients

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        symbol = data.split(b" ", 2)[1][1:].decode()
        self._transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        self._write = self._transport.write
        self._writes = self._clients.setdefault(symbol, [])
        self._writes.append(self._write)

    def connection_lost(self, _error: Exception | None) -> None:
        self._writes.remove(self._write)


class BareExchange(asyncio.Protocol):
    """The connection to the exchange, and all work that is done with its frames."""

    def __init__(self, path: Path, symbols: Sequence[str], clients: dict[str, list[Callable[[bytes], None]]]) -> None:
        self._decode = msgspec.json.Decoder(Message, strict=False).decode
        self._encode = msgspec.json.Encoder().encode
        self._clients = clients
        self._data = bytearray()
        self._shaken = False
        self._numbers = {symbol: number for number, symbol in enumerate(symbols)}
        self._names = {symbol: series_of(symbol) for symbol in symbols}
        self._advance = {symbol: handles() for symbol in symbols}
        self._database = database = apsw.Connection(str(path))
        for pragma in (
            "journal_mode = WAL", "synchronous = FULL", f"wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}",
            f"cache_size = -{CACHE_KIB}",
        ):  # fmt: skip
            database.execute(f"PRAGMA {pragma}")
        columns = ", ".join(f"v{number} REAL" for number in range(9))
        database.execute(
            f"CREATE TABLE candle (time INTEGER, series INTEGER, {columns}, PRIMARY KEY (time, series)) WITHOUT ROWID"
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(
            b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def send(self, first: int, body: bytes) -> None:
        """Send a frame; its mask is zero."""
        size = len(body)
        head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
        self._transport.write(head + b"\0\0\0\0" + body)

    def data_received(self, data: bytes) -> None:
        held = self._data
        held += data
        start = 0
        if not self._shaken:
            start = held.find(b"\r\n\r\n") + 4
            if start < 4:
                return
            self._shaken = True
        closed: list[Event] = []
        while len(held) >= start + 2:
            size, body = held[start + 1], start + 2
            if size == 126:
                size, body = int.from_bytes(held[start + 2 : start + 4], "big"), start + 4
            if len(held) < body + size:
                break
            text = bytes(held[body : body + size])
            if held[start] == 0x81:
                event = self._decode(text).data
                if event is not None and event.k.x:
                    closed.append(event)
                elif event is not None:
                    self._tell("candle_forming", event)
            else:
                self.send(0x8A, text)
            start = body + size
        del held[:start]
        if closed:
            self._close(closed)

    def _close(self, events: Sequence[Event]) -> None:
        numbers = self._numbers
        rows = [
            (k.t // 1000, numbers[event.s], k.o, k.h, k.l, k.c, k.v, k.q, k.n, k.V, k.Q)
            for event in events
            for k in (event.k,)
        ]
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(f"INSERT INTO candle VALUES (?{', ?' * 10})", rows)
        self._database.execute("COMMIT")
        for event in events:
            self._advance[event.s](event.k)
            self._tell("candle_closed", event)

    def _tell(self, kind: str, event: Event) -> None:
        k = event.k
        text = self._encode(Out(kind, self._names[event.s], Shown(k.t // 1000, k.o, k.h, k.l, k.c, k.v)))
        frame = b"\x81\x7e" + len(text).to_bytes(2, "big") + text
        for write in self._clients.get(event.s, ()):
            write(frame)


async def bare(exchange_url: str) -> None:
    """The process of the bare pipeline: prints its address, and ends when it is terminated."""
    _, symbols = await exchange_time(exchange_url)
    clients: dict[str, list[Callable[[bytes], None]]] = {}
    loop = asyncio.get_running_loop()
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        _, upstream = await loop.create_connection(
            lambda: BareExchange(Path(folder) / "bare.sqlite", symbols, clients),
            "127.0.0.1",
            int(exchange_url.rpartition(":")[2]),
        )
        for at in range(0, len(symbols), NAMES_PER_REQUEST):
            await asyncio.sleep(0.25)  # the exchange takes five requests a second, after its handshake
            names = [f"{symbol.lower()}@kline_1m" for symbol in symbols[at : at + NAMES_PER_REQUEST]]
            upstream.send(0x81, json.dumps({"method": "SUBSCRIBE", "params": names, "id": at}).encode())
        server = await loop.create_server(lambda: BareClient(clients), "127.0.0.1", 0, backlog=1024)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- the clients' process


@asynccontextmanager
async def part(core: int, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """This program in another role on one core, and its address; it ends at the end of the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdin=PIPE, stdout=PIPE)
    os.sched_setaffinity(process.pid, {core})
    try:
        yield process, await address(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def measured(
    process: Process, taps: Sequence[Tap], exchange_url: str, symbols: Sequence[str], way: Way, seconds: float
) -> float:
    """The p99 of delays in milliseconds, or the CPU time of a tick in microseconds.

    process: that serves the taps; the other arguments are those of `one`.
    """
    direct = await tap_exchange(exchange_url, symbols)
    with Listening([*taps, direct]):
        await asyncio.sleep(SETTLE_S)
        if way is FORMING:
            now_s, _ = await exchange_time(exchange_url)
            begin, end = QUIET_S
            await asyncio.sleep((begin - now_s) % 60 / way.speed)
            seconds = min(seconds, (end - begin) / way.speed)
        cpu, began = cpu_s(process), [len(tap.messages) for tap in taps]
        first = len(direct.messages)
        await asyncio.sleep(seconds)
        used_s, ended = cpu_s(process) - cpu, [len(tap.messages) for tap in taps]
        last = len(direct.messages)
        await asyncio.sleep(SETTLE_S)
    if way is FORMING:
        ticks = (sum(ended) - sum(began)) / CLIENTS
        assert ticks > 0.95 * (last - first), f"{last - first} ticks were sent, and {ticks:.0f} arrived"
        print(f"{ticks / seconds:,.0f} ticks/s, {used_s / seconds:.2f} of a core")
        return 1e6 * used_s / ticks
    direct.messages = direct.messages[first:last]
    sent, _ = arrivals(direct)
    received = [arrivals(tap)[0] for tap in taps]
    delays = [1e3 * (at_s - sent[key]) for closed in received for key, at_s in closed.items() if key in sent]
    assert len(delays) == CLIENTS * len(sent), f"{CLIENTS * len(sent)} candles were sent, and {len(delays)} arrived"
    return p99(delays)


async def one(folder: Path, symbols: int, way: Way, seconds: float) -> tuple[float, float]:
    """One round: ours, and the bare pipeline.

    folder: for the store.
    symbols: of the exchange.
    way: what is measured.
    seconds: of each measurement.
    """
    server, others = cores()
    listed = folder / "whitelist.json"
    role = ["--exchange", way.row, "--series", str(symbols)]
    async with part(others, *role) as (_, exchange_url):
        now_s, ids = await exchange_time(exchange_url)
        names = list(map(series_of, ids))
        listed.write_text(json.dumps({"series_ids": names}))
        arguments = service_arguments(folder / "store.sqlite", listed, exchange_url, HISTORY)
        async with started(server, *arguments, *AS_BARE) as (process, url):
            await up_to_date(url, names, now_s, way.speed)
            port = int(url.rpartition(":")[2])
            taps = []
            for name in names * CLIENTS:
                tap = Tap(port, "/ws/market")
                tap.send({"type": "subscribe", "series_id": name})
                taps.append(tap)
            ours = await measured(process, taps, exchange_url, ids, way, seconds)
        async with part(server, "--bare", exchange_url) as (process, url):
            port = int(url.rpartition(":")[2])
            taps = [Tap(port, f"/{symbol}") for symbol in ids * CLIENTS]
            floor = await measured(process, taps, exchange_url, ids, way, seconds)
    return ours, floor


async def run(symbols: int, rounds: int, seconds: float) -> list[Figure]:
    os.sched_setaffinity(0, {cores()[1]})
    figures = []
    for way, unit in ((CLOSED, "ms"), (FORMING, "µs")):
        ours, floor = [], []
        for _ in range(rounds):
            with TemporaryDirectory(prefix="klinesync-bench-") as folder:
                mine, other = await one(Path(folder), symbols, way, seconds)
            ours.append(mine)
            floor.append(other)
            print(f"{way.row}: {mine:,.1f} {unit}, bare {other:,.1f} {unit}, ratio {mine / other:.2f}", flush=True)
        figures.append(Figure(way.row, ours, floor))
        print(f"{way.row}: median {median(ours):,.1f} {unit}, bare {median(floor):,.1f} {unit}", flush=True)
    return figures


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--series", type=int, default=SERIES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--exchange", help=SUPPRESS)
    parser.add_argument("--bare", help=SUPPRESS)
    chosen = parser.parse_args()
    if chosen.exchange is not None:
        (way,) = (way for way in (CLOSED, FORMING) if way.row == chosen.exchange)
        asyncio.run(exchange(chosen.series, way))
    elif chosen.bare is not None:
        uvloop.run(bare(chosen.bare))
    else:
        write_figures(chosen.json, asyncio.run(run(chosen.series, chosen.rounds, chosen.seconds)))


if __name__ == "__main__":
    main()
