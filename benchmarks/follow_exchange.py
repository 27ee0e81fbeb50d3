"""The cost of following an exchange, and the minute's end at a client: one service on the simulated exchange.

    python benchmarks/follow_exchange.py --symbols 1000

Service and exchange run as processes of their own, as a user starts them: the service on the first core, everything
else on the last one. First the start-up sweep fills a store late in the evening of the exchange. Then, for each night,
a copy of this store is followed over midnight, when all derived timeframes close. A client watches every series, at the
service and at the exchange itself: a delay is the time between the arrivals of one candle from both. Measured too: CPU
and memory of the service. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import aiohttp
from bench_output import parser_of, write_figures
from bench_table import Figure
from tap import Listening, Tap

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 900.0
DAY_S = 86_400
MIDNIGHT = 1_750_032_000  # 2025-06-16
# Exchange seconds before midnight: of the sweep, and of the start of the service that is measured.
EVENING_S, NIGHT_S = 1800, 100
# Seconds after a minute's end in which all candles must have arrived.
AFTER_S = 5.0
# Exchange seconds after midnight at which a night ends: one minute's end more.
MORNING_S = 60
NAMES_PER_REQUEST = 200
# The profile: seconds of it before midnight and in all, and samples a second.
PROFILE_BEFORE_S, PROFILE_S, PROFILE_RATE = 1, 4, 500
Key = tuple[object, ...]


class End(NamedTuple):
    """A minute's end, as a client saw it.

    time_s: of the end.
    p50_ms, p99_ms: delays of closed candles.
    forming_ms: p99 of the delays of forming candles; None where none were sent meanwhile.
    """

    time_s: int
    p50_ms: float
    p99_ms: float
    forming_ms: float | None


def cpu_s(process: Process) -> float:
    """CPU seconds that the process has used, its threads included."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mb(process: Process) -> tuple[float, float]:
    """Resident megabytes of the process: now, and the most so far."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return values["VmRSS"], values["VmHWM"]


@asynccontextmanager
async def profiled(core: int, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """A command of klinesync as a child of `profiled.py`: that process, and the command's address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("profiled.py")), sys.executable, "-m", "klinesync", *arguments,
        env=own_environment(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    command = int(await process.stdout.readline())
    os.sched_setaffinity(command, {core})
    try:
        yield process, await address(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        os.kill(command, signal.SIGTERM)
        await process.stdout.read()  # both have it open until they end
        await process.wait()


def own_environment() -> dict[str, str]:
    """The environment without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KLINESYNC_")}


@asynccontextmanager
async def started(core: int, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """A command of klinesync on one core, and its address; terminated at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "klinesync", *arguments, env=own_environment(), stdout=PIPE, stderr=DEVNULL
    )
    os.sched_setaffinity(process.pid, {core})
    try:
        yield process, await address(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def address(process: Process) -> str:
    """The address that a starting process prints."""
    assert process.stdout is not None
    async for line in process.stdout:
        for word in line.decode().split():
            if word.startswith("http://127.0.0.1:"):
                return word.rstrip("/.,")
    raise SystemExit("a process ended before it served")


def cores() -> tuple[int, int]:
    """The core of the service, and the core of the others."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def exchange_arguments(symbols: int, start_s: int, speed: float) -> list[str]:
    """Arguments of the simulated exchange."""
    return ["sim", f"--symbols={symbols}", "--port=0", f"--start={start_s}", f"--speed={speed}"]


def service_arguments(store: Path, listed: Path, exchange: str, history: int) -> list[str]:
    """Arguments of a service on this store and exchange, which follows the listed series."""
    sockets = exchange.replace("http", "ws")
    return [
        "serve", "--port=0", f"--database-url=sqlite:///{store}", f"--whitelist-path={listed}",
        f"--startup-kline-sync-target-candles={history}",
        *(f"--binance-{market}-rest-url={exchange}" for market in ("spot", "futures")),
        *(f"--binance-{market}-ws-url={sockets}" for market in ("spot", "futures")),
    ]  # fmt: skip


async def up_to_date(url: str, names: Sequence[str], now_s: float, speed: float) -> None:
    """Wait until the newest closed candle of every series is stored.

    now_s: time of the exchange at the call.
    """
    began_s = time.monotonic()
    remaining = names
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE_S):
        while remaining:
            newest = int(now_s + (time.monotonic() - began_s) * speed) // 60 * 60 - 60
            behind = []
            for name in remaining:
                async with session.get("/api/market/candles", params={"series_id": name, "limit": 1}) as answer:
                    head = (await answer.json())["server_head_time"]
                if head is None or head < newest - 60:
                    behind.append(name)
            remaining = behind
            await asyncio.sleep(0.25)


async def exchange_time(url: str) -> tuple[float, list[str]]:
    """The time of the exchange in seconds, and its symbols on spot."""
    async with aiohttp.ClientSession(url) as session, session.get("/sim/state") as answer:
        state = await answer.json()
    return state["now_ms"] / 1000, list(map(str, state["markets"]["spot"]))


def series_of(symbol: str) -> str:
    return f"binance:spot:{symbol.removesuffix('USDT')}/USDT:1m"


def tap_service(url: str, names: Iterable[str]) -> Tap:
    """A client of the service that watches every series."""
    tap = Tap(int(url.rpartition(":")[2]), "/ws/market")
    for name in names:
        tap.send({"type": "subscribe", "series_id": name})
    return tap


async def tap_exchange(url: str, symbols: Sequence[str]) -> Tap:
    """A client of the exchange that watches the same."""
    tap = Tap(int(url.rpartition(":")[2]), "/stream")
    for at in range(0, len(symbols), NAMES_PER_REQUEST):
        names = [f"{symbol.lower()}@kline_1m" for symbol in symbols[at : at + NAMES_PER_REQUEST]]
        tap.send({"method": "SUBSCRIBE", "params": names, "id": at})
        await asyncio.sleep(0.25)  # the exchange takes five requests a second
    return tap


def arrivals(tap: Tap) -> tuple[dict[Key, float], dict[Key, float]]:
    """When closed and forming candles arrived: by series and time, and by series, time and values.

    tap: of the service or of the exchange; messages of other kinds are skipped.
    """
    closed: dict[Key, float] = {}
    forming: dict[Key, float] = {}
    for at_s, text in tap.messages:
        message = json.loads(text)
        if message.get("type") in ("candle_closed", "candle_forming"):
            candle = message["candle"]
            key = message["series_id"], candle["candle_time"]
            values = tuple(candle[name] for name in ("open", "high", "low", "close", "volume"))
            done = message["type"] == "candle_closed"
        elif "stream" in message:
            candle = message["data"]["k"]
            key = series_of(message["data"]["s"]), candle["t"] // 1000
            values = tuple(float(candle[name]) for name in "ohlcv")
            done = candle["x"]
        else:
            continue
        if done:
            closed.setdefault(key, at_s)
        else:
            forming.setdefault((*key, *values), at_s)
    return closed, forming


def p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(len(ordered) * 0.99)]


def minutes_ends(service: Tap, exchange: Tap, symbols: int) -> list[End]:
    """The minutes' ends that both taps saw whole.

    symbols: candles that each minute must have.
    """
    ours, ours_forming = arrivals(service)
    bare, bare_forming = arrivals(exchange)
    found = []
    for end in sorted({int(str(time_s)) + 60 for _, time_s in bare}):
        sent = {key: at_s for key, at_s in bare.items() if key[1] == end - 60}
        began_s = min(sent.values())
        if len(sent) < symbols or began_s < service.messages[0][0] + 1:
            continue
        assert sent.keys() <= ours.keys(), f"{len(sent.keys() - ours.keys())} candles are missing"
        delays = [1e3 * (ours[key] - at_s) for key, at_s in sent.items()]
        over_s = max(ours[key] for key in sent)
        live = [
            1e3 * (ours_forming[key] - at_s)
            for key, at_s in bare_forming.items()
            if began_s <= at_s <= over_s and key in ours_forming
        ]
        found.append(End(end, median(delays), p99(delays), p99(live) if live else None))
    return found


async def sweep(folder: Path, symbols: int, history: int) -> Path:
    """Fill a store as a first start does."""
    ours, others = cores()
    store, listed = folder / "evening.sqlite", folder / "whitelist.json"
    began_s = time.monotonic()
    async with started(others, *exchange_arguments(symbols, MIDNIGHT - EVENING_S, 1.0)) as (_, exchange):
        now_s, ids = await exchange_time(exchange)
        names = list(map(series_of, ids))
        listed.write_text(json.dumps({"series_ids": names}))
        began_s = time.monotonic()
        async with started(ours, *service_arguments(store, listed, exchange, history)) as (service, url):
            await up_to_date(url, names, now_s, 1.0)
            took_s = time.monotonic() - began_s
            print(f"{symbols} symbols, {history} candles of history each, derived timeframes on")
            print(f"sweep: up to date {took_s:.1f} s after the start, {cpu_s(service):.1f} s of CPU", flush=True)
    return store


async def night(evening: Path, symbols: int, history: int, speed: float, before_s: int) -> tuple[list[End], float]:
    """The minutes' ends of a night, the last one after midnight; and resident megabytes at the end."""
    ours, others = cores()
    store = evening.with_name("night.sqlite")
    shutil.copy(evening, store)
    async with started(others, *exchange_arguments(symbols, MIDNIGHT - before_s, speed)) as (exchange, exchange_url):
        now_s, ids = await exchange_time(exchange_url)
        names = list(map(series_of, ids))
        listed = evening.with_name("whitelist.json")
        async with started(ours, *service_arguments(store, listed, exchange_url, history)) as (service, url):
            await up_to_date(url, names, now_s, speed)
            bare = await tap_exchange(exchange_url, ids)
            client = tap_service(url, names)
            cpu, exchange_cpu, lap_s = cpu_s(service), cpu_s(exchange), time.monotonic()
            with Listening([client, bare]):
                now_s, _ = await exchange_time(exchange_url)
                assert now_s < MIDNIGHT - 1, "the service was not up to date before midnight"
                await asyncio.sleep((MIDNIGHT + MORNING_S - now_s) / speed + AFTER_S)
                took_s = time.monotonic() - lap_s
                share, exchange_share = (cpu_s(service) - cpu) / took_s, (cpu_s(exchange) - exchange_cpu) / took_s
                now_mb, most_mb = memory_mb(service)
            print(f"following: {share:.3f} of a core ({exchange_share:.3f} the exchange), {took_s:.0f} s")
            print(f"memory: {now_mb:.0f} MB, at most {most_mb:.0f} MB")
    for suffix in ("", "-wal", "-shm"):
        store.with_name(store.name + suffix).unlink(missing_ok=True)
    ends = minutes_ends(client, bare, symbols)
    for end in ends:
        forming = "" if end.forming_ms is None else f"; forming ones p99 {end.forming_ms:.0f} ms"
        print(
            f"minute's end {time.strftime('%H:%M', time.gmtime(end.time_s))}: closed candles p50 {end.p50_ms:.0f} ms,"
            f" p99 {end.p99_ms:.0f} ms{forming}",
            flush=True,
        )
    assert [end.time_s for end in ends][-2:] == [MIDNIGHT, MIDNIGHT + MORNING_S]
    return ends, now_mb


async def profile(symbols: int, history: int, before_s: int, output: Path) -> None:
    """Write a flame graph of the service at midnight, while a client watches every series."""
    os.sched_setaffinity(0, {cores()[1]})
    ours, others = cores()
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        store = await sweep(Path(folder), symbols, history)
        listed = store.with_name("whitelist.json")
        async with started(others, *exchange_arguments(symbols, MIDNIGHT - before_s, 1.0)) as (_, exchange):
            now_s, ids = await exchange_time(exchange)
            names = list(map(series_of, ids))
            arguments = service_arguments(store, listed, exchange, history)
            async with profiled(ours, *arguments) as (profiler, url):
                await up_to_date(url, names, now_s, 1.0)
                with Listening([tap_service(url, names)]):
                    now_s, _ = await exchange_time(exchange)
                    assert now_s < MIDNIGHT - PROFILE_BEFORE_S, "the service was not up to date before midnight"
                    await asyncio.sleep(MIDNIGHT - now_s - PROFILE_BEFORE_S)
                    options = ["record", f"--duration={PROFILE_S}", f"--rate={PROFILE_RATE}", "--threads"]
                    assert profiler.stdin is not None
                    profiler.stdin.write(json.dumps([*options, f"--output={output}"]).encode() + b"\n")
                    await asyncio.sleep(PROFILE_S + AFTER_S)
            assert profiler.returncode == 0, "py-spy failed"
    print(f"flame graph of {PROFILE_S} s at 00:00 UTC: {output}")


async def run(symbols: int, history: int, nights: int, speed: float, before_s: int) -> list[Figure]:
    os.sched_setaffinity(0, {cores()[1]})
    ends, memory = [], []
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        evening = await sweep(Path(folder), symbols, history)
        for _ in range(nights):
            found, resident_mb = await night(evening, symbols, history, speed, before_s)
            ends += found
            memory.append(resident_mb)
    return [
        Figure("minute.close", [end.p99_ms for end in ends if end.time_s % DAY_S]),
        Figure("minute.midnight", [end.p99_ms for end in ends if end.time_s % DAY_S == 0]),
        Figure("minute.forming", [end.forming_ms for end in ends if end.forming_ms is not None]),
        Figure("memory.following", memory),
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--history", type=int, default=2000, help="candles that the sweep reads of each series")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--speed", type=float, default=1.0, help="exchange seconds per second of a night")
    parser.add_argument("--before", type=int, default=NIGHT_S, help="exchange seconds from the start to midnight")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a flame graph of midnight (SVG) instead")
    chosen = parser.parse_args()
    if chosen.profile is not None:
        asyncio.run(profile(chosen.symbols, chosen.history, chosen.before, chosen.profile.absolute()))
        return
    figures = asyncio.run(run(chosen.symbols, chosen.history, chosen.nights, chosen.speed, chosen.before))
    write_figures(chosen.json, figures)


if __name__ == "__main__":
    main()
