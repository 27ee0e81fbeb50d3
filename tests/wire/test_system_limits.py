"""Limits of the system on this process end a command with one sentence, and without leftovers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klinesync.cli import main
from support.processes import environment

SERIES = "binance:spot:BTC/USDT:1m"


def limited(limit: str, *arguments: str) -> tuple[int, str]:
    """A command below `ulimit {limit}`: exit status, and stderr."""
    shell = f'ulimit {limit}; exec "$@"'
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "klinesync", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("files", [9, 20, 28])
@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--port=0", "--enable-whitelist-ingest=off"),
        ("demo", "--no-browser"),
        ("sim",),
        ("import", "x.csv"),
        ("watch", SERIES, "--url=http://127.0.0.1:9"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_too_few_open_files_are_one_sentence(arguments: tuple[str, ...], files: int, tmp_path: Path) -> None:
    store_url = f"--database-url=sqlite:///{tmp_path}/s.sqlite"
    more = [store_url] if arguments[0] in ("serve", "demo", "import") else []
    status, told = limited(f"-n {files}", *arguments, *more)
    assert status == 1
    assert told == (
        f"klinesync: the system lets this process open {files} files, and 64 are needed at least; raise the limit: "
        "ulimit -n 1024\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_soft_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("candle_time,open,high,low,close,volume\n1714521600,1,2,1,2,3\n")
    url = f"--database-url=sqlite:///{tmp_path}/s.sqlite"
    assert limited("-S -n 20", "import", str(table), f"--series={SERIES}", url) == (0, "")


def test_a_limit_of_a_files_size_is_no_failing_disk(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = "".join(f"{1714521600 + 60 * at},1,2,1,2,3\n" for at in range(3000))
    table.write_text("candle_time,open,high,low,close,volume\n" + rows)
    url = f"--database-url=sqlite:///{tmp_path}/s.sqlite"
    assert main(["import", str(table), f"--series={SERIES}", url]) == 0
    before = sorted(tmp_path.iterdir())
    copy = tmp_path / "copy.sqlite"
    status, told = limited("-f 32", "backup", str(copy), url)
    assert status == 1
    assert told.endswith(f"cannot be copied to {copy}: disk full: make room on the disk that holds {copy}\n")
    assert sorted(tmp_path.iterdir()) == before


def no_thread() -> None:
    raise RuntimeError("can't start new thread")


def no_memory() -> None:
    raise MemoryError


def no_module() -> None:
    raise ImportError("x.so: failed to map segment from shared object")


def no_file() -> None:
    raise PermissionError(13, "Permission denied", "/a\nplace")


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (no_thread, "this user may not start another thread; raise the limit: ulimit -u"),
        (no_memory, "this process has too little memory; raise the limit: ulimit -v"),
        (no_module, "this process has too little memory; raise the limit: ulimit -v"),
        (no_file, "/a\\nplace: Permission denied; --verbose shows the place"),
    ],
)
def test_a_refusal_of_the_system_is_one_sentence(
    breaks: Callable[[], None], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("klinesync.cli.verify.load_flags", lambda given: breaks())
    assert main(["verify"]) == 1
    assert capsys.readouterr().err == f"klinesync: {sentence}\n"
