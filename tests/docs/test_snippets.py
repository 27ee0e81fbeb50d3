"""The snippets of the documents work: commands, addresses, programs, messages, paths of the code, the way to
a backup."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from klinesync.cli.program import parser
from klinesync.client.messages import message_in
from klinesync.core.candle import Candle
from klinesync.market.app import create_app
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.sqlite_reader import SqliteReader
from support.processes import SERIES, environment
from support.running_service import running_service

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# The addresses of the service and the simulated exchange, on every page.
SERVICE_PORT, SIM_PORT = "8000", "9000"
# Addresses in the output of the demo: a free port.
PRINTED_PORTS = {"41233"}
# Names that are set elsewhere: parameters of functions and requests.
NO_FLAGS = frozenset({"window_candles", "at_time", "after_id", "series_id", "cursor_version_id", "cursor_point_time"})
START = 1_700_000_040


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def shell_lines(path: Path) -> Iterator[str]:
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield line.strip()


def commands() -> list[Any]:
    """The words of each command in a block; for a command named in a sentence only the command itself."""
    found = []
    for path in PAGES:
        named = re.findall(r"`(klinesync [a-z]+)[ `]", path.read_text())
        for line in [*shell_lines(path), *(f"{command} --help" for command in dict.fromkeys(named))]:
            words = shlex.split(re.sub(r"\$\([^)]*\)", "now", line), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0].endswith("klinesync"):
                found.append(pytest.param(words, id=f"{path.name}: {' '.join(words)}"[:90]))
    return found


@pytest.mark.parametrize("words", commands())
def test_every_command_that_is_shown_is_called_alike_and_understood(words: list[str]) -> None:
    assert words[0] == "klinesync", "README says once how it is called"
    try:
        parser().parse_args(words[1:])
    except SystemExit as end:  # --help
        status = end.code
    else:
        status = 0
    assert status == 0, words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ports_are_alike_on_all_pages(path: Path) -> None:
    for line in path.read_text().splitlines():
        ports = set(re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)|--port (\d+)", line))
        allowed = {SERVICE_PORT, SIM_PORT, "8001"} | PRINTED_PORTS
        assert {port for pair in ports for port in pair if port} <= allowed, line
        if "klinesync sim" in line and "--port" in line:
            assert f"--port {SIM_PORT}" in line or "--port N" in line, line


async def test_every_address_that_is_asked_is_one_of_the_service_or_of_the_simulated_exchange(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", enable_debug_api="on") as service:
        paths = create_app(service.runtime).openapi()["paths"]
    for path in PAGES:
        for line in shell_lines(path):
            if not line.startswith("curl"):
                continue
            (port, asked) = re.findall(r"https?://[^/:\s]+:(\d+)(/[^\s?'\"]*)", line)[0]
            if port == SIM_PORT:
                assert asked.startswith("/sim/"), line
            else:
                assert asked in paths or asked == "/metrics", line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_code_that_is_named_exists(path: Path) -> None:
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", path.read_text()):
        assert (ROOT / name).exists() or (ROOT / "src/klinesync" / name).exists(), name


def test_the_messages_of_the_websocket_page_are_those_that_our_client_understands() -> None:
    (sample,) = blocks(ROOT / "docs/reference/websocket.md", "json")
    for line in sample.splitlines():
        assert message_in(line) is not None, line


def test_json_that_is_shown_is_json() -> None:
    for path in PAGES:
        for block in blocks(path, "json"):
            text = re.sub(r"\bint\\?\|null\b", "null", block)
            texts = text.splitlines() if path.name == "websocket.md" or text.count("\n{") else [text]
            for one in texts:
                if "…}" not in one and "…]" not in one:
                    json.loads(one)


@pytest.mark.parametrize("block", blocks(ROOT / "docs/how-to/run-beyond-loopback.md", "sh"))
def test_a_token_reaches_the_programs_that_need_it(block: str) -> None:
    assert not re.search(r"^KLINESYNC_API_TOKEN=", block, re.MULTILINE), "without export only one command has it"


async def test_the_programs_of_the_page_on_strategies_run(tmp_path: Path) -> None:
    program, reading, flow, _ = blocks(ROOT / "docs/how-to/strategy.md", "python")
    candles = [
        Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.0 + at % 7 / 10, float(at), taker_buy_volume=float(at))
        for at in range(300)
    ]
    # Old candles, so that none is missing after the page's `since`.
    decided: list[tuple[Candle, Any]] = []

    class Enough(Exception):
        pass

    def decide(candle: Candle, slices: Any) -> None:
        decided.append((candle, slices))
        if len(decided) == 200:
            raise Enough

    async with running_service(tmp_path / "store.sqlite") as service:
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles)
        program = program.replace("http://127.0.0.1:8000", service.url)
        program, replaced = re.subn(r'since="[^"]*"', f"since={candles[99].time}", program)
        assert replaced == 1
        names: dict[str, Any] = {"decide": decide}

        def run() -> None:
            with pytest.raises(Enough):
                exec(compile(program, "strategy.md", "exec"), names)
            names["slices"] = decided[-1][1]
            exec(compile(reading, "strategy.md", "exec"), names)
            names["series"] = SERIES
            exec(compile(flow.replace("2026-11-01", "2020-01-01"), "strategy.md", "exec"), names)
            assert names["delta"].tolist() == np.cumsum([candle.volume for candle in candles]).tolist()
            names["service"].close()

        await asyncio.to_thread(run)
    assert [candle.ohlcv for candle, _ in decided] == [candle.ohlcv for candle in candles[100:]]


async def test_the_way_back_to_a_backup_is_the_one_that_is_described(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/look-after-a-store.md").read_text()
    copying, restoring = blocks(ROOT / "docs/how-to/look-after-a-store.md", "sh")[:2]
    assert "**Restore a copy.**" in page
    folder, backups = tmp_path / "var", tmp_path / "backups"
    folder.mkdir()
    backups.mkdir()
    store = folder / "klinesync.sqlite"
    candles = [Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.5, float(at)) for at in range(50)]

    def shell(script: str) -> str:
        script = script.replace("/var/lib/klinesync", str(folder)).replace("/backups", str(backups))
        script = script.replace("klinesync-2026-11-29.sqlite", "klinesync-$(date +%F).sqlite")
        env = environment(KLINESYNC_DATABASE_URL=f"sqlite:///{store}")
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", script], env=env, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async with running_service(store) as service:
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles[:30])
        await asyncio.to_thread(shell, copying)
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles[30:])
    assert "30 candles" in await asyncio.to_thread(shell, restoring)
    with SqliteReader(store) as reader:
        assert reader.read(lambda stored: stored.head(SERIES)) == candles[29].time
    with SqliteReader(folder / "before" / store.name) as reader:
        assert reader.read(lambda stored: stored.head(SERIES)) == candles[49].time
    # A service continues from this point.
    async with running_service(store) as service:
        await service.runtime.market_data.ingest_candles_closed(SERIES, candles[30:])
        status, page_ = await service.get("/api/market/candles", series_id=str(SERIES))
        assert status == 200
        assert msgspec.convert(page_["candles"], list[Any])[-1]["candle_time"] == candles[49].time


def test_every_flag_that_is_set_in_a_sentence_exists() -> None:
    for path in PAGES:
        for name in re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)=[^`]+`", path.read_text()):
            assert name in RuntimeFlags.model_fields or name in NO_FLAGS, f"{path.name}: {name}"


def test_every_page_can_be_found_from_the_first_one() -> None:
    found, waiting = {ROOT / "README.md"}, [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", page.read_text()):
            linked = (page.parent / target).resolve()
            if linked not in found and linked.exists():
                found.add(linked)
                waiting.append(linked)
    assert [path for path in PAGES if path not in found] == []
