"""The documents are correct: links exist, tables match the code, the tutorial's program runs."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from klinesync.cli.program import parser
from klinesync.market.app import create_app
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import running_service

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not re.match(r"https?://", target):
            assert (path.parent / target).exists(), target


def test_every_command_is_documented() -> None:
    (commands,) = (action for action in parser()._actions if action.dest == "==SUPPRESS==" or action.choices)
    text = (ROOT / "docs/reference/commands.md").read_text()
    for name in commands.choices or ():
        assert f"`klinesync {name}" in text


async def test_every_route_is_documented(tmp_path: Path) -> None:
    text = (ROOT / "docs/reference/http.md").read_text()
    async with running_service(tmp_path / "store.sqlite", enable_debug_api="on") as service:
        for path, methods in create_app(service.runtime).openapi()["paths"].items():
            for method in methods:
                assert re.search(rf"`{method.upper()} {re.escape(path)}[`?]", text), f"{method} {path}"


async def test_the_tutorials_program_runs(tmp_path: Path) -> None:
    tutorial = (ROOT / "docs/tutorial/first-candles.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", tutorial, re.DOTALL)
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange) as service,
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", program, service.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            kinds: set[bytes] = set()
            while not {b"closed", b"forming"} <= kinds:
                line = await asyncio.wait_for(process.stdout.readline(), 60)
                assert line, "it ended"
                kinds.add(line.split()[0])
            assert kinds == {b"closed", b"forming"}
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, errors) == (0, b""), "Ctrl-C ends it quietly"
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
