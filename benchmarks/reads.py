"""Reading: pages of closed candles over HTTP, and catch-ups over WebSocket.

    python benchmarks/reads.py

A service in a process on the first core, with a store of some series; the clients in this process on the last core. The
yardstick is a bare server in the service's process on the same store: uvicorn with an application of one function that
runs the query, makes the candles and encodes them; no checks, no routing, no threads. Both get the same requests,
alternating, over `CONNECTIONS` connections that are never idle, and their answers are compared. *repeated* requests one
page again and again, *not cached* a different page each time. The ratio is the median over the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import select
import socket
import sys
import time
from argparse import SUPPRESS
from itertools import starmap
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs

import apsw
import msgspec
import uvicorn
import uvloop
from bench_output import parser_of, write_figures
from bench_table import Figure
from fanout import ALONE, HANDSHAKE, masked, pin

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.market.app import bind, create_app, create_server
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.runtime.flags import load_flags
from klinesync.storage.chunks import chunk_of, chunk_start, seed_of, unpack_between
from klinesync.ws.messages import CandleOut

SERIES = [SeriesId.parse(f"binance:spot:COIN{number}/USDT:1m") for number in range(20)]
HISTORY = 20_000
FIRST = 1_700_000_040
CATCH_UP = 2000
CONNECTIONS = 8
ROUNDS = 4
ROUND_REQUESTS = 150
# Beside a whole test run the server may be without CPU time for long.
TIMEOUT_S = 120


# --- the serving process


async def fill(folder: str, history: int) -> None:
    """Give every series `history` candles of a random walk."""
    flags = {"database_url": f"sqlite:///{folder}/store.sqlite", "enable_derived_timeframes": "off"} | ALONE
    rng = random.Random(5)
    async with build_market_runtime(load_flags(flags)) as runtime:
        for series in SERIES:
            price, candles = rng.uniform(0.1, 50_000), []
            for minute in range(history):
                close = round(price * rng.uniform(0.999, 1.001), 4)
                high, low = round(max(price, close) * 1.0005, 4), round(min(price, close) * 0.9995, 4)
                volume = round(rng.uniform(0, 500), 3)
                candles.append(Candle(FIRST + 60 * minute, round(price, 4), high, low, close, volume))
                price = candles[-1].close
            await runtime.market_data.ingest_candles_closed(series, candles)


def bare_application(path: Path) -> Any:
    """The ASGI application of the bare server."""
    store = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    encode = msgspec.json.Encoder().encode

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked = parse_qs(scope["query_string"].decode())
        name, before, limit = asked["series_id"][0], int(asked["before"][0]), int(asked["limit"][0])
        number = store.execute("SELECT series_no FROM series WHERE series_id = ?", (name,)).get
        head = store.execute("SELECT max(time) FROM candle WHERE series_no = ?", (number,)).get
        frame = Timeframe.parse("1m")
        limits = (number << 32, (number << 32) + chunk_of(number, frame, before))
        rows = store.execute(
            "SELECT time, open, high, low, close, volume FROM candle"
            " WHERE series_no = ? AND time < ? ORDER BY time DESC LIMIT ?",
            (number, before, limit),
        ).fetchall()
        rows.reverse()
        chunks = store.execute(
            "SELECT chunk_id, candles FROM candle_chunk WHERE chunk_id BETWEEN ? AND ? ORDER BY chunk_id DESC", limits
        )
        for chunk_id, packed in chunks:
            seed = seed_of(name, chunk_start(number, frame, chunk_id - (number << 32)))
            rows = unpack_between(packed, 0, before, list, seed, full=False) + rows
            if len(rows) >= limit:
                break
        candles = list(starmap(CandleOut, rows[-limit:]))
        body = encode({"series_id": name, "server_head_time": head, "candles": candles, "gaps": []})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return application


async def serve(history: int) -> None:
    """Prints the two ports; ends at the end of stdin."""
    pin(0)
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        await fill(folder, history)
        path = Path(folder) / "store.sqlite"
        async with build_market_runtime(load_flags({"database_url": f"sqlite:///{path}"} | ALONE)) as runtime:
            # The ledgers of what was filled in are computed first: the writer has nothing to do while it is measured.
            await asyncio.sleep(1)
            while runtime._pipeline._ledger.behind():  # noqa: ASYNC110, SLF001  # there is no event for it
                await asyncio.sleep(0.1)
            listener, bare_listener = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
            server = create_server(create_app(runtime), runtime)
            bare = uvicorn.Server(
                uvicorn.Config(bare_application(path), lifespan="off", log_config=None, access_log=False)
            )
            bare.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
            serving = [
                asyncio.create_task(server.serve(sockets=[listener])),
                asyncio.create_task(bare.serve(sockets=[bare_listener])),
            ]
            gc.collect()
            print(listener.getsockname()[1], bare_listener.getsockname()[1], flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            server.stop()
            bare.should_exit = True
            await asyncio.gather(*serving)


# --- the clients' process


def received(one: socket.socket) -> bytes:
    """What the server sent; it must not close the connection."""
    data = one.recv(1 << 20)
    assert data, "the server closed the connection"
    return data


class Connections:
    """`CONNECTIONS` connections to one port, each with one request in flight at any time."""

    def __init__(self, port: int) -> None:
        self._poll = select.epoll()
        self._sockets = [socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) for _ in range(CONNECTIONS)]
        for one in self._sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(one, select.EPOLLIN)

    def ask(self, targets: list[str]) -> tuple[float, list[bytes]]:
        """The seconds that all requests took, and the bodies in order."""
        requests = [f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for target in targets]
        bodies = [b""] * len(requests)
        sockets = {one.fileno(): one for one in self._sockets}
        under_way: dict[int, int] = {}
        got: dict[int, bytearray] = {}
        following = iter(range(len(requests)))
        begin = time.perf_counter()
        for number, one in sockets.items():
            under_way[number], got[number] = next(following), bytearray()
            one.send(requests[under_way[number]])
        left = len(requests)
        while left:
            ready = self._poll.poll(TIMEOUT_S)
            assert ready, "no answer"
            for number, _ in ready:
                data = got[number]
                data += received(sockets[number])
                head = data.find(b"\r\n\r\n")
                if head < 0:
                    continue
                assert data.startswith(b"HTTP/1.1 200"), bytes(data[:300])
                at = data.index(b"content-length: ") + 16
                if len(data) < head + 4 + int(data[at : data.index(b"\r", at)]):
                    continue
                bodies[under_way[number]] = bytes(data[head + 4 :])
                left -= 1
                after = next(following, None)
                if after is not None:
                    under_way[number] = after
                    data.clear()
                    sockets[number].send(requests[after])
        return time.perf_counter() - begin, bodies

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def pages(port: int, bare_port: int, rounds: int, history: int) -> list[Figure]:
    rng = random.Random(7)
    figures = []
    for limit in (500, 2000):
        for kind in ("repeated", "not cached"):
            ours_s, bare_s = [], []
            for number in range(rounds + 1):
                targets = []
                for _ in range(ROUND_REQUESTS):
                    series, end = SERIES[0], FIRST + 60 * history
                    if kind == "not cached":
                        series, end = rng.choice(SERIES), FIRST + 60 * rng.randrange(limit, history)
                    targets.append(f"/api/market/candles?series_id={series}&before={end}&limit={limit}")
                ours, bare = Connections(port), Connections(bare_port)
                took_s, bodies = ours.ask(targets)
                bare_took_s, bare_bodies = bare.ask(targets)
                ours.close()
                bare.close()
                assert bodies == bare_bodies
                assert len(json.loads(bodies[0])["candles"]) == limit
                if number:  # the first round warms up
                    ours_s.append(took_s)
                    bare_s.append(bare_took_s)
            if limit == CATCH_UP:
                rates = [[ROUND_REQUESTS / took_s for took_s in column] for column in (ours_s, bare_s)]
                figures.append(Figure("page.repeated" if kind == "repeated" else "page.uncached", *rates))
            ratio = median(other / mine for mine, other in zip(ours_s, bare_s, strict=True))
            print(
                f"{f'GET {limit:,} candles, {kind}':<34} {ROUND_REQUESTS / median(ours_s):>8,.0f} /s"
                f"   bare {ROUND_REQUESTS / median(bare_s):>8,.0f} /s   ratio {ratio:.2f}",
                flush=True,
            )

    return figures


def catch_ups(port: int, count: int, history: int) -> list[Figure]:
    figures = []
    for batch in (True, False):
        first_to_last, asked_to_last = [], []
        for number in range(count):
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as one:
                one.sendall(HANDSHAKE)
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += received(one)
                since = FIRST + 60 * (history - CATCH_UP - 1)
                ask = {"type": "subscribe", "series_id": str(SERIES[number % 20]), "since": since}
                begin = time.perf_counter()
                one.sendall(masked(json.dumps(ask | {"supports_batch": batch}).encode()) + masked(b'{"type":"ping"}'))
                data = bytearray(received(one))
                first = time.perf_counter()
                while not data.endswith(b'{"type":"pong"}'):
                    data += received(one)
                ended = time.perf_counter()
                assert data.count(b'"candle_time"') == CATCH_UP
                first_to_last.append(ended - first)
                asked_to_last.append(ended - begin)
        print(
            f"{f'catch-up of {CATCH_UP:,}, ' + ('a batch' if batch else 'one by one'):<34}"
            f" first byte to last {median(first_to_last) * 1e3:>5.2f} ms"
            f"   asked to last {median(asked_to_last) * 1e3:>5.2f} ms",
            flush=True,
        )
        if batch:
            columns = zip(("catchup.flow", "catchup.whole"), (first_to_last, asked_to_last), strict=True)
            figures += [Figure(row, [1e3 * took_s for took_s in laps]) for row, laps in columns]
    return figures


async def run(rounds: int, history: int) -> list[Figure]:
    pin(-1)
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", f"--history={history}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        port, bare_port = map(int, (await child.stdout.readline()).split())
        figures = await asyncio.to_thread(pages, port, bare_port, rounds, history)
        return figures + await asyncio.to_thread(catch_ups, port, 10 * rounds, history)
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), 20)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--history", type=int, default=HISTORY, help="candles of each series, 2,500 at least")
    parser.add_argument("--serve", action="store_true", help=SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        uvloop.run(serve(chosen.history))
    else:
        write_figures(chosen.json, asyncio.run(run(chosen.rounds, chosen.history)))


if __name__ == "__main__":
    main()
