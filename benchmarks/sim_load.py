"""The cost of the simulated exchange: CPU seconds per second, frames, delay of closes, REST answers.

    python benchmarks/sim_load.py --symbols 1000 --seconds 90

Runs the exchange in a process of its own with that many symbols on each market, with all of their 1m streams subscribed
over a few connections from this process, and prints the figures. The aim is well below half a core at speed 1. The
measured time always includes a minute's end.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from dataclasses import dataclass, field

import aiohttp
import msgspec

from klinesync.sim.server import SimConfig, SimServer

NAMES_PER_REQUEST = 200


class _Candle(msgspec.Struct):
    closes_ms: int = msgspec.field(name="T")
    closed: bool = msgspec.field(name="x")


class _Event(msgspec.Struct):
    sent_ms: int = msgspec.field(name="E")
    candle: _Candle = msgspec.field(name="k")


class _Message(msgspec.Struct):
    data: _Event | None = None


@dataclass(slots=True)
class Tally:
    frames: int = 0
    size: int = 0
    closes: int = 0
    spot_delays_ms: list[int] = field(default_factory=list)


async def serve(symbols: int, speed: float) -> None:
    """The exchange's process: prints its address, then CPU seconds and peak megabytes for every line on stdin."""
    async with SimServer(SimConfig(symbols=symbols, speed=speed)) as server:
        print(server.http_url, flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)


async def listen(
    session: aiohttp.ClientSession, url: str, names: list[str], tally: Tally, subscribed: asyncio.Event
) -> None:
    decode = msgspec.json.Decoder(_Message).decode
    async with session.ws_connect(url, max_msg_size=0) as socket:
        for at in range(0, len(names), NAMES_PER_REQUEST):
            request = {"method": "SUBSCRIBE", "params": names[at : at + NAMES_PER_REQUEST], "id": at}
            await socket.send_str(msgspec.json.encode(request).decode())
            await asyncio.sleep(0.25)
        subscribed.set()
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            tally.frames += 1
            tally.size += len(message.data)
            event = decode(message.data).data
            if event is not None and event.candle.closed:
                tally.closes += 1
                if "/market" not in url:
                    tally.spot_delays_ms.append(event.sent_ms - event.candle.closes_ms)


async def run(symbols: int, speed: float, seconds: float, connections: int) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", "--symbols", str(symbols), "--speed", str(speed),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    async def used() -> tuple[float, int]:
        """CPU seconds and the most megabytes of the exchange's process."""
        stdin.write(b"\n")
        seconds, megabytes = (await stdout.readline()).split()
        return float(seconds), int(megabytes)

    async def cpu_s() -> float:
        return (await used())[0]

    base = (await stdout.readline()).decode().strip()
    tally = Tally()
    async with aiohttp.ClientSession(base) as session:
        state = await (await session.get("/sim/state")).json()
        listeners: list[asyncio.Task[None]] = []
        ready: list[asyncio.Event] = []
        for market, path in (("spot", "/stream"), ("futures", "/market/stream")):
            names = [f"{name.lower()}@kline_1m" for name in state["markets"][market]]
            for at in range(connections):
                subscribed = asyncio.Event()
                ready.append(subscribed)
                work = listen(session, base.replace("http", "ws") + path, names[at::connections], tally, subscribed)
                listeners.append(asyncio.create_task(work))
        for subscribed in ready:
            await subscribed.wait()
        before, frames, began_s = await cpu_s(), tally.frames, time.monotonic()
        worst = 0.0
        while time.monotonic() - began_s < seconds:
            lap_s, lap_cpu = time.monotonic(), await cpu_s()
            await asyncio.sleep(1.0)
            worst = max(worst, (await cpu_s() - lap_cpu) / (time.monotonic() - lap_s))
        took_s = time.monotonic() - began_s
        share = (await cpu_s() - before) / took_s
        print(f"{symbols} symbols on each market, speed {speed:g}, {took_s:.0f} s, {2 * connections} connections")
        print(f"CPU: {share:.3f} seconds per second; the worst second {worst:.3f}")
        print(f"memory: {(await used())[1]} MB")
        print(f"frames: {(tally.frames - frames) / took_s:.0f} per second, {tally.closes} closes")
        delays = sorted(tally.spot_delays_ms)
        if delays:
            print(f"spot closes: E - T median {delays[len(delays) // 2]} ms, last {delays[-1]} ms (meant: 2 to 121)")
        for path in (
            "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000",
            "/fapi/v1/klines?symbol=ETHUSDT&interval=5m&limit=1000",
            "/api/v3/exchangeInfo",
            "/fapi/v1/ticker/24hr",
        ):
            laps: list[float] = []
            for _ in range(12):
                lap_s = time.perf_counter()
                async with session.get(path) as answer:
                    await answer.read()
                laps.append(time.perf_counter() - lap_s)
            print(f"GET {path}: first {laps[0] * 1e3:.1f} ms, median {sorted(laps)[6] * 1e3:.1f} ms")
        for task in listeners:
            task.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    stdin.close()
    await child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1000)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--connections", type=int, default=4, help="on each market")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        asyncio.run(serve(chosen.symbols, chosen.speed))
    else:
        asyncio.run(run(chosen.symbols, chosen.speed, chosen.seconds, chosen.connections))


if __name__ == "__main__":
    main()
