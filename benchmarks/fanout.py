"""Delivery: one candle to many WebSocket clients, beside a bare loop of `send` over as many sockets.

    python benchmarks/fanout.py --clients 1000 5000

A service of its own in a process on the first core, the clients in this process on the last one. Rounds of forming and
closed candles are published as fast as they go, and bare rounds between them: the same number of bytes to the same
number of connected sockets of the same process, one `send` each. Every client's bytes are compared with the first
client's, whose messages are parsed and counted. The ratio is the median over the rounds of ours by bare.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from zlib import crc32

import uvloop
from bench_output import parser_of, write_figures
from bench_table import Figure

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.series_id import SeriesId
from klinesync.market.app import bind, create_app, create_server
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.runtime.flags import load_flags

SERIES = SeriesId.parse("binance:futures:BTC/USDT:1m")
FIRST = 1_700_000_040
ROUNDS = 4
# Messages of one round to all clients together, so that a round takes about half a second.
ROUND_MESSAGES = 50_000
# A service that follows nothing; its exchange is unreachable.
SWITCHES = ("whitelist_ingest", "ondemand_ingest", "market_gap_backfill", "market_auto_tail_backfill")
ALONE = {f"enable_{switch}": "off" for switch in SWITCHES} | {
    f"binance_{market}_{kind}_url": f"{scheme}://127.0.0.1:9"
    for market in ("spot", "futures")
    for kind, scheme in (("rest", "http"), ("ws", "ws"))
}
HANDSHAKE = (
    b"GET /ws/market HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(text: bytes) -> bytes:
    """A client's text frame; its mask is zero."""
    length = len(text)
    head = bytes((0x81, 0x80 | length)) if length < 126 else b"\x81\xfe" + length.to_bytes(2, "big")
    return head + b"\0\0\0\0" + text


def frames(data: bytes) -> list[bytes]:
    """The payloads of whole unfragmented frames."""
    found, at = [], 0
    while at < len(data):
        length, start = data[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(data[start : start + 2], "big"), start + 2
        elif length == 127:
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        found.append(data[start : start + length])
        at = start + length
    return found


def pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core]})


def raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# --- the serving process


async def serve() -> None:
    """Prints its ports, then answers each line of stdin with one of its own."""
    pin(0)
    raise_file_limit()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        flags = {"database_url": f"sqlite:///{folder}/store.sqlite"} | ALONE
        async with build_market_runtime(load_flags(flags)) as runtime:
            listener, bare_listener = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
            server = create_server(create_app(runtime), runtime)
            server.config.ws_ping_interval = None  # so that every client gets the same bytes
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            print(listener.getsockname()[1], bare_listener.getsockname()[1], flush=True)
            bare: list[socket.socket] = []
            minutes = {"closed": 0, "forming": 1_000_000}
            while line := await commands.readline():
                kind, count = line.decode().split()[0], int(line.split()[1])
                gc.collect()
                begin = time.monotonic()
                if kind == "accept":
                    for _ in range(count):
                        one, _ = bare_listener.accept()
                        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        bare.append(one)
                elif kind == "bare":
                    frame = b"x" * int(line.split()[2])
                    for _ in range(count):
                        for one in bare:
                            one.send(frame)
                elif kind == "memory":
                    begin = float(resident_bytes())
                for _ in range(count if kind in ("forming", "closed") else 0):
                    minutes[kind] += 1
                    candle = Candle(FIRST + 60 * minutes[kind], 64123.4, 64187.9, 64100.1, 64150.2, 123.456)
                    if kind == "closed":
                        runtime.hub.publish(Applied(SERIES, (candle,), frozenset()))
                    else:
                        runtime.hub.show(Forming(SERIES, candle))
                    await asyncio.sleep(0)
                print(begin, time.monotonic(), time.process_time(), flush=True)
            for one in bare:
                one.close()
            server.stop()
            await serving


# --- the clients' process


class Clients:
    """Sockets of one port, read together. What each of them gets is counted and its checksum kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._counted: dict[int, int] = {}
        self._sums: dict[int, int] = {}

    def connect(self, count: int, *, subscribe: bool) -> None:
        request = json.dumps({"type": "subscribe", "series_id": str(SERIES), "ack": True}).encode()
        for start in range(0, count, 64):
            opened = [
                socket.create_connection(("127.0.0.1", self._port), timeout=20)
                for _ in range(start, min(count, start + 64))
            ]
            for one in opened if subscribe else ():
                one.sendall(HANDSHAKE)
            for one in opened if subscribe else ():
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += one.recv(4096)
                assert answer.startswith(b"HTTP/1.1 101"), answer
                one.sendall(masked(request))
            for one in opened:
                told = b""
                while subscribe and b'"caught_up"' not in told:
                    told += one.recv(4096)
                one.setblocking(False)
                self._poll.register(one, select.EPOLLIN)
                self._sockets[one.fileno()] = one

    def read(self, until: int) -> tuple[float, bytes]:
        """Read until each has `until` bytes: when the last was read, and what the first got. All get the same."""
        counted, sums = dict.fromkeys(self._sockets, 0), dict.fromkeys(self._sockets, 0)
        readers = {number: one.recv for number, one in self._sockets.items()}
        first = min(self._sockets)
        shown = []
        left = len(counted)
        while left:
            found = self._poll.poll(20)
            assert found, f"{left} clients wait for more"
            for number, _ in found:
                data = readers[number](65536)
                assert data, "a client was disconnected"
                counted[number] += len(data)
                sums[number] = crc32(data, sums[number])
                if number == first:
                    shown.append(data)
                if counted[number] >= until:
                    left -= 1
        ended = time.monotonic()
        assert set(counted.values()) == {until}, (until, set(counted.values()), data)
        assert len(set(sums.values())) == 1
        return ended, b"".join(shown)

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()
        self._poll.close()


def message_bytes(kind: str) -> int:
    """Bytes of one candle's frame, with its header."""
    body = (
        f'{{"type":"candle_{kind}","series_id":"{SERIES}","candle":{{"candle_time":{FIRST},'
        '"open":64123.4,"high":64187.9,"low":64100.1,"close":64150.2,"volume":123.456}}'
    )
    return len(body) + 4


async def measure(count: int, rounds: int) -> list[Figure]:
    """One size of crowd."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    port, bare_port = map(int, (await child.stdout.readline()).split())
    stdin, stdout = child.stdin, child.stdout

    async def ask(command: str) -> list[float]:
        stdin.write(command.encode() + b"\n")
        return [float(word) for word in (await stdout.readline()).split()]

    ours, bare = Clients(port), Clients(bare_port)
    try:
        empty = (await ask("memory 0"))[0]
        begin = time.monotonic()
        await asyncio.to_thread(ours.connect, count, subscribe=True)
        took_s = time.monotonic() - begin
        grown = (await ask("memory 0"))[0] - empty
        accepting = asyncio.create_task(ask(f"accept {count}"))
        await asyncio.to_thread(bare.connect, count, subscribe=False)
        await accepting
        print(f"{count:,} clients: subscribed in {took_s:.1f} s; memory per client {grown / count / 1e3:.1f} KB")
        broadcasts = max(10, ROUND_MESSAGES // count)
        rates: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for kind in ("forming", "bare", "closed"):
                size = message_bytes("closed" if kind == "bare" else kind)
                asked = asyncio.create_task(ask(f"{kind} {broadcasts} {size}"))
                ended, shown = await asyncio.to_thread((bare if kind == "bare" else ours).read, broadcasts * size)
                begin = (await asked)[0]
                if kind != "bare":
                    times = [json.loads(text)["candle"]["candle_time"] for text in frames(shown)]
                    assert len(times) == broadcasts
                    assert times == sorted(set(times))
                if number:  # the first round warms up
                    rates.setdefault(kind, []).append(count * broadcasts / (ended - begin))
        floor = rates["bare"]
        for kind in ("forming", "closed"):
            ratio = median(mine / other for mine, other in zip(rates[kind], floor, strict=True))
            print(
                f"{kind + ' to ' + format(count, ','):<24} {median(rates[kind]) / 1e3:>8,.0f} k/s"
                f"   bare {median(floor) / 1e3:>6,.0f} k/s   ratio {ratio:.2f}",
                flush=True,
            )
        return [
            Figure("memory.client", [grown / count / 1e3]),
            *(
                Figure(f"fanout.{kind}", [rate / 1e3 for rate in rates[kind]], [rate / 1e3 for rate in floor])
                for kind in ("forming", "closed")
            ),
        ]
    finally:
        ours.close()
        bare.close()
        stdin.close()
        with contextlib.suppress(ProcessLookupError):
            await asyncio.wait_for(child.wait(), 20)


async def run(crowds: Sequence[int], rounds: int) -> list[Figure]:
    """Every size of crowd; the figures are those of the first."""
    pin(-1)
    raise_file_limit()
    figures = [await measure(count, rounds) for count in crowds]
    return figures[0]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 5000], help="the figures are of the first")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        uvloop.run(serve())
    else:
        write_figures(chosen.json, asyncio.run(run(chosen.clients, chosen.rounds)))


if __name__ == "__main__":
    main()
