"""The cost of following an exchange: one service, the simulated exchange at speed 1, all symbols of a market.

    python benchmarks/follow_exchange.py --symbols 1000 --seconds 130

Both run as processes of their own, as a user starts them. Measured: the start-up sweep (from the start of the process
until every series is up to date), then the service's CPU and memory while it follows, and the time from a minute's end
on the exchange to the last closed candle at a client that watches every series. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import aiohttp

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 600.0


def cpu_s(process: Process) -> float:
    """CPU seconds that the process has used, its threads included."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mb(process: Process) -> tuple[int, int]:
    """Resident megabytes of the process: now, and the most so far."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) // 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return values["VmRSS"], values["VmHWM"]


async def start(*arguments: str, **environment: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "klinesync", *arguments, env=os.environ | environment, stdout=PIPE, stderr=DEVNULL
    )


async def address(process: Process) -> str:
    """The address that a starting process prints."""
    assert process.stdout is not None
    async for line in process.stdout:
        for word in line.decode().split():
            if word.startswith("http://127.0.0.1:"):
                return word.rstrip("/.,")
    raise SystemExit("a process ended before it served")


async def watch(session: aiohttp.ClientSession, names: list[str], delays_ms: dict[int, list[float]]) -> None:
    """Watch every series, and note by minute how long after its end each closed candle arrives."""
    async with session.ws_connect("/ws/market", max_msg_size=0) as socket:
        for name in names:
            await socket.send_json({"type": "subscribe", "series_id": name})
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT and message.data.startswith('{"type":"candle_closed"'):
                at_ms = time.time() * 1000
                open_s = json.loads(message.data)["candle"]["candle_time"]
                delays_ms.setdefault(open_s, []).append(at_ms - (open_s + 60) * 1000)


async def up_to_date(session: aiohttp.ClientSession, names: list[str]) -> None:
    """Wait until the newest closed candle of every series is stored."""
    left = names
    while left:
        newest = int(time.time()) // 60 * 60 - 60
        behind = []
        for name in left:
            async with session.get("/api/market/candles", params={"series_id": name, "limit": 1}) as answer:
                head = (await answer.json())["server_head_time"]
            if head is None or head < newest - 60:
                behind.append(name)
        left = behind
        await asyncio.sleep(0.25)


async def run(symbols: int, seconds: float, history: int, market: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        exchange = await start("sim", "--symbols", str(symbols), "--port", "0")
        url = await address(exchange)
        async with aiohttp.ClientSession(url) as session, session.get("/sim/state") as answer:
            ids = (await answer.json())["markets"][market]
        names = [f"binance:{market}:{id_.removesuffix('USDT')}/USDT:1m" for id_ in ids]
        whitelist = Path(folder) / "whitelist.json"
        whitelist.write_text(json.dumps({"series_ids": names}))
        ws_url = url.replace("http", "ws")
        began_s = time.monotonic()
        service = await start(
            "serve",
            KLINESYNC_PORT="0",
            KLINESYNC_DATABASE_URL=f"sqlite:///{folder}/store.sqlite",
            KLINESYNC_WHITELIST_PATH=str(whitelist),
            KLINESYNC_STARTUP_KLINE_SYNC_TARGET_CANDLES=str(history),
            KLINESYNC_BINANCE_SPOT_REST_URL=url,
            KLINESYNC_BINANCE_FUTURES_REST_URL=url,
            KLINESYNC_BINANCE_SPOT_WS_URL=ws_url,
            KLINESYNC_BINANCE_FUTURES_WS_URL=ws_url,
        )
        try:
            async with aiohttp.ClientSession(await address(service)) as session, asyncio.timeout(PATIENCE_S):
                await up_to_date(session, names)
                print(f"{symbols} {market} symbols, {history} candles of history each, derived timeframes on")
                sweep_s = time.monotonic() - began_s
                print(f"sweep: up to date {sweep_s:.1f} s after the start, {cpu_s(service):.1f} s of CPU")
                delays_ms: dict[int, list[float]] = {}
                watching = asyncio.create_task(watch(session, names, delays_ms))
                await asyncio.sleep(5.0)
                cpu, exchange_cpu, lap_s = cpu_s(service), cpu_s(exchange), time.monotonic()
                await asyncio.sleep(seconds)
                took_s = time.monotonic() - lap_s
                now_mb, most_mb = memory_mb(service)
                share, exchange_share = (cpu_s(service) - cpu) / took_s, (cpu_s(exchange) - exchange_cpu) / took_s
                print(f"following: {share:.3f} of a core ({exchange_share:.3f} the exchange), {took_s:.0f} s")
                print(f"memory: {now_mb} MB, at most {most_mb} MB")
                for open_s, delays in sorted(delays_ms.items()):
                    delays.sort()
                    print(
                        f"minute {open_s}: {len(delays)} candles at a client; after its end: median"
                        f" {delays[len(delays) // 2]:.0f} ms, p99 {delays[int(len(delays) * 0.99)]:.0f} ms,"
                        f" last {delays[-1]:.0f} ms (the exchange itself sends up to 121 ms after it on spot)"
                    )
                watching.cancel()
                await asyncio.wait([watching])
        finally:
            for process in (service, exchange):
                if process.returncode is None:
                    process.terminate()
                    await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=130.0)
    parser.add_argument("--history", type=int, default=900, help="candles that the sweep reads of each series")
    parser.add_argument("--market", choices=("spot", "futures"), default="spot")
    chosen = parser.parse_args()
    asyncio.run(run(chosen.symbols, chosen.seconds, chosen.history, chosen.market))


if __name__ == "__main__":
    main()
