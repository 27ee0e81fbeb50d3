"""`klinesync watch` on a terminal of its own, and in a pipe."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.server import SimConfig, SimServer
from support.processes import SERIES, environment, klinesync, running, serve_arguments
from support.running_service import running_service
from support.waiting import until

START = 1_700_000_040
OTHER_SCREEN, FIRST_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_HIDDEN, CURSOR_SHOWN = b"\x1b[?25l", b"\x1b[?25h"
HOME = b"\x1b[H"
CTRL_C = b"\x03"
# Makes its terminal the controlling one, which sends it signals, as a shell's does.
CONTROLLED = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)


class Terminal:
    """A terminal with a command on it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.written = b""

    def read(self) -> None:
        try:
            self.written += os.read(self._master, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # no process writes any more
            asyncio.get_running_loop().remove_reader(self._master)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def frame(self, height: int) -> list[str]:
        """The lines of the newest whole frame of that height; none without such a frame."""
        for frame in reversed(self.written.split(HOME)):
            lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", frame).decode(errors="replace").split("\n")
            if len(lines) == height:
                return [line.rstrip() for line in lines]
        return []

    async def shows(self, text: str, height: int) -> list[str]:
        """Wait until a frame has the text."""
        await until(
            lambda: any(text in line for line in self.frame(height)),
            f"{text!r} on the screen: {self.written[-2000:]!r}",
        )
        return self.frame(height)

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, "the command has ended")
        await until(lambda: self.written.endswith(FIRST_SCREEN), f"the screen is given back: {self.written[-200:]!r}")
        return self.process.returncode


@asynccontextmanager
async def terminal(*arguments: str, width: int = 100, height: int = 24, **env: str) -> AsyncIterator[Terminal]:
    """The command on a terminal of that size."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    before = termios.tcgetattr(slave)
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLED, sys.executable, "-m", "klinesync", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=variables | {"TERM": "xterm-256color"} | env,
        start_new_session=True,
    )
    shown = Terminal(master, process)
    asyncio.get_running_loop().add_reader(master, shown.read)
    try:
        yield shown
        assert termios.tcgetattr(slave) == before, "the terminal is as it was"
    finally:
        asyncio.get_running_loop().remove_reader(master)
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


async def test_a_terminal_gets_a_board_that_fits_its_size_and_is_restored(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(SERIES)) as service,
        terminal("watch", str(SERIES), "--url", service.url) as screen,
    ):
        await screen.shows("green: up to date", 24)
        wide = await screen.shows("forming", 24)
        assert re.fullmatch(rf"{SERIES}  live, data \d s old", wide[0])
        assert re.search(r"[▁-█]{20,}  [0-9.]+ to [0-9.]+$", wide[2])
        names = next(at for at, line in enumerate(wide) if "open" in line)
        assert wide[names].split() == ["UTC", "open", "high", "low", "close", "volume", "change"]
        # The forming candle, and below it the closed ones: a whole screen, newest first, each minute once.
        assert wide[names + 1].startswith(">")
        times = [line[3:19] for line in wide[names + 1 :]]
        assert len(times) == 24 - names - 1
        assert sorted(set(times), reverse=True) == times
        screen.resize(40, 12)
        narrow = await screen.shows("close", 12)
        assert max(map(len, narrow)) <= 40
        assert next(line for line in narrow if "close" in line).split() == ["UTC", "close", "change"]
        screen.resize(120, 30)
        await screen.shows("volume", 30)
        screen.type(CTRL_C)
        assert await screen.ended() == 0
        assert screen.written.startswith(OTHER_SCREEN)
        assert screen.written.rindex(CURSOR_SHOWN) > screen.written.rindex(CURSOR_HIDDEN)
        assert b"Traceback" not in screen.written


async def test_a_resize_redraws_and_sigterm_restores_the_terminal_too(tmp_path: Path) -> None:
    async with (
        running_service(tmp_path / "store.sqlite", enable_ondemand_ingest="off") as service,
        terminal("watch", str(SERIES), "--url", service.url) as screen,
    ):
        candles = [Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.5, 10.0) for at in range(3)]
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles)
        await screen.shows("+50.00%", 24)
        await screen.shows("red:", 24)  # years behind the clock
        screen.resize(100, 8)  # no other event follows
        await screen.shows("+50.00%", 8)
        screen.process.send_signal(signal.SIGTERM)
        assert await screen.ended() == 0


async def test_a_lost_service_is_reported_and_missed_candles_come_after_its_return(tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "store.sqlite"
    async with running("sim", "--speed=60", "--symbols=2", log=log) as exchange:
        arguments = serve_arguments(await exchange.address("exchange"), store)
        async with running(*arguments, log=log) as service:
            url = await service.address("serves")
            async with terminal("watch", str(SERIES), "--url", url, height=40) as screen:
                await screen.shows("green:", 40)
                newest = (await screen.shows("forming", 40))[4][3:19]
                service.process.kill()
                lost = await screen.shows("not connected, trying again", 40)
                assert any(newest in line for line in lost), "the candles stay"
                assert not any("green" in line for line in lost)
                await screen.shows("cannot be reached", 40)
                port = url.rpartition(":")[2]
                async with running(*arguments, f"--port={port}", log=log):
                    back = await screen.shows("green: up to date", 40)
                    assert back[0].startswith(f"{SERIES}  live, data ")
                    assert not any("missing" in line for line in back)
                    screen.type(CTRL_C)
                    assert await screen.ended() == 0


async def test_an_exchange_that_is_dead_is_not_shown_as_live_though_the_service_answers(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(SERIES)) as service,
        terminal("watch", str(SERIES), "--url", service.url) as screen,
    ):
        assert (await screen.shows("forming", 24))[0].startswith(f"{SERIES}  live, data ")
        await exchange.__aexit__(None, None, None)
        dead = await screen.shows(f"{SERIES}  reconnecting for ", 24)
        assert re.search(r", data \d+ s old$", dead[0])
        screen.type(CTRL_C)
        assert await screen.ended() == 0


async def test_a_service_without_health_is_shown_without_a_colour(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(
            tmp_path / "store.sqlite", exchange, whitelist=str(SERIES), enable_kline_health_v2="off"
        ) as service,
        terminal("watch", str(SERIES), "--url", service.url) as screen,
    ):
        seen = await screen.shows("forming", 24)
        assert re.search(r"^[▁-█]{20,}", seen[1])
        health_words = re.compile(r"\b(green|red|404)\b(?![.\d])")
        assert not [line for line in seen if health_words.search(line)]
        screen.type(CTRL_C)
        assert await screen.ended() == 0


async def test_a_service_without_capacity_is_reported_and_retried(tmp_path: Path) -> None:
    flags = {"whitelist": "", "ondemand_max_jobs": "1", "ondemand_idle_ttl_s": "0.1"}
    other = {"type": "subscribe", "series_id": "binance:spot:ETH/USDT:1m", "ack": True}
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, **flags) as service,
        service.http.ws_connect(service.url + "/ws/market") as socket,
    ):
        await socket.send_json(other)
        assert (await socket.receive_json(timeout=30))["type"] == "subscribed"
        async with terminal("watch", str(SERIES), "--url", service.url) as screen:
            full = await screen.shows("cannot follow another series on demand", 24)
            assert full[0].startswith(f"{SERIES}  not connected, trying again")
            await socket.close()
            assert (await screen.shows("forming", 24))[0].startswith(f"{SERIES}  live, data ")
            screen.type(CTRL_C)
            assert await screen.ended() == 0


async def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        await service.runtime.market_data.ingest_candles_closed(SERIES, [Candle(START, 1.0, 2.0, 0.5, 0.1 + 0.5, 1)])
        async with terminal("watch", str(SERIES), "--url", service.url, TERM="dumb") as screen:
            await until(lambda: screen.written == b"2023-11-14 22:14 closed 1 2 0.5 0.6 1\r\n", "a line")
            screen.type(CTRL_C)
            await until(lambda: screen.process.poll() == 0, "it has ended")


# --- no terminal


async def test_lines_end_with_an_interrupt_and_exit_status_0(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running_service(tmp_path / "store.sqlite") as service:
        await service.runtime.market_data.ingest_candles_closed(SERIES, [Candle(START, 1.0, 2.0, 0.5, 1.5, 1.0)])
        async with running("watch", str(SERIES), "--url", service.url, log=log) as watch:
            assert watch.process.stdout is not None
            line = await asyncio.wait_for(watch.process.stdout.readline(), 30)
            assert line == b"2023-11-14 22:14 closed 1 2 0.5 1.5 1\n"
            watch.process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(watch.process.wait(), 30) == 0
    assert log.read_text() == ""


async def test_the_reader_of_the_lines_may_stop_at_any_time(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        candles = [Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.5, 1.0) for at in range(15)]
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles)
        reading, writing = os.pipe()
        os.close(reading)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "klinesync", "watch", str(SERIES), "--url", service.url),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        os.close(writing)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("symbol", ["NOSUCH/USDT", "BTC/NOSUCH"])
async def test_an_unknown_series_is_one_sentence(symbol: str, tmp_path: Path) -> None:
    series = SeriesId.parse(f"binance:spot:{symbol}:1m")
    async with (
        SimServer(SimConfig(symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange) as service,
    ):
        code, out, errors = await asyncio.to_thread(klinesync, "watch", str(series), "--url", service.url, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert errors.startswith(f"klinesync: series {series} is unknown: ")
    assert errors.count("\n") == 1


async def test_another_program_at_the_address_is_one_sentence(tmp_path: Path) -> None:
    async with SimServer(SimConfig(symbols=2)) as exchange:
        for url, status in ((exchange.http_url, 1), ("nowhere", 2), ("http://", 2)):
            code, out, errors = await asyncio.to_thread(klinesync, "watch", str(SERIES), "--url", url, cwd=tmp_path)
            assert (code, out) == (status, ""), url
            assert errors.startswith("klinesync"), url
            assert errors.count("\n") == status, errors  # wrong use: a sentence, and where to look
