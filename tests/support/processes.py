"""Commands, as processes and in this one, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

from klinesync.cli import main
from klinesync.core.series_id import SeriesId
from support import preloaded
from support.preloaded import Preloaded

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")


def environment(**extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("KLINESYNC_")}
    return plain | extra


def klinesync(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run a command that ends by itself: exit status, stdout, stderr."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        status = preloaded.run(arguments, environment(**(env or {})), cwd or Path.cwd(), out, errors, 60)
        out.seek(0)
        errors.seek(0)
        return status, out.read(), errors.read()


def in_process(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command that ends by itself in this process and its working directory, ten times as fast: exit status,
    stdout, stderr."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment(**(env or {})), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        status = main(arguments)
    return status, out.getvalue(), errors.getvalue()


class Running:
    """A command that runs until it is stopped, and the addresses that it printed."""

    def __init__(self, process: Preloaded | asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""

    async def address(self, after: str) -> str:
        """The first http address in the line that contains `after`."""
        assert self.process.stdout is not None
        while True:
            line = (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode()
            assert line, f"it ended after {self.printed!r}"
            self.printed += line
            match = re.search(r"http://[^\s/]+", line)
            if after in line and match:
                return match.group()


@asynccontextmanager
async def running(*arguments: str, log: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    with log.open("ab") as errors:
        process = await preloaded.start(arguments, environment(**(env or {})), errors.fileno())
    try:
        yield Running(process)
    finally:
        await process.end()


@asynccontextmanager
async def running_anew(*arguments: str, log: Path, env: Mapping[str, str]) -> AsyncIterator[Running]:
    """As `running`, in a new interpreter: for an `env` that modules read at import (`SSL_CERT_FILE`)."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "klinesync",
            *arguments,
            env=environment(**env),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield Running(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def serve_arguments(exchange: str, store: Path) -> list[str]:
    ws = exchange.replace("http", "ws")
    return [
        "serve",
        "--port=0",
        f"--database-url=sqlite:///{store}",
        f"--whitelist={SERIES}",
        f"--binance-spot-rest-url={exchange}",
        f"--binance-spot-ws-url={ws}",
        f"--binance-futures-rest-url={exchange}",
        f"--binance-futures-ws-url={ws}",
    ]
