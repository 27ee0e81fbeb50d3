"""A path that this user may not list, read or name ends a command with one sentence that names the path and
the reason."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from klinesync.cli import main
from klinesync.cli.program import SUMMARIES
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.files.sources import ExchangeArchive, FreqtradeFiles

NOBODY = 65_534
# What commands import when they need it.
LAZY_MODULES = (
    *(f"klinesync.cli.{module}" for module, _ in SUMMARIES.values()),
    *(f"klinesync.cli.history_{part}" for part in ("backfill", "export", "import")),
    "klinesync.market.app",
    "klinesync.market.runtime_builder",
    "klinesync.sim.server",
    "klinesync.storage.backup",
)
SERIES = "binance:spot:BTC/USDT:1m"
TABLE = "candle_time,open,high,low,close,volume\n1714521600,1,2,1,2,3\n"

Failed = Callable[..., str]


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Failed:
    """Run a command that fails: the only sentence on stderr."""
    monkeypatch.chdir("/")  # anybody may look for a configuration there

    def run(*arguments: object, status: int = 1) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == status
        told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("see: ")]
        assert len(told) == 1, told
        return told[0]

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    table = tmp_path / "table.csv"
    table.write_text(TABLE)
    assert main(["import", str(table), f"--series={SERIES}", f"--database-url=sqlite:///{folder}/s.sqlite"]) == 0
    return folder / "s.sqlite"


@contextmanager
def an_ordinary_user(path: Path, mode: int) -> Iterator[None]:
    """`path` with that mode, seen by a user other than root."""
    for name in LAZY_MODULES:  # Python itself may be in a folder that only root may enter
        importlib.import_module(name)
    before = path.stat().st_mode & 0o7777
    for folder in path.parents:  # pytest's folders are open to their owner only
        if any("pytest" in part for part in folder.parts):
            folder.chmod(0o755)
    path.chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        path.chmod(before)


def commands(store: Path, table: Path) -> dict[str, tuple[object, ...]]:
    """For each way to pass a path, a command."""
    url = f"--database-url=sqlite:///{store}"
    return {
        "verify": ("verify", url),
        "export": ("export", SERIES, "--format=csv", "--output=x.csv", url),
        "backup": ("backup", "x.sqlite", url),
        "import": ("import", table, f"--series={SERIES}", url),
        "serve": ("serve", "--port=0", "--enable-whitelist-ingest=off", url),
    }


@pytest.mark.parametrize("command", ["verify", "export", "backup", "import", "serve"])
def test_a_store_in_a_folder_that_this_user_may_not_enter(command: str, store: Path, failed: Failed) -> None:
    with an_ordinary_user(store.parent, 0o644):
        told = failed(*commands(store, store.parent.parent / "table.csv")[command])
    assert told == (
        f"klinesync: the store {store} cannot be opened: no permission: this user may not look into the folder "
        f"{store.parent}"
    )


@pytest.mark.parametrize("command", ["verify", "export", "backup", "import", "serve"])
def test_a_store_that_this_user_may_not_read(command: str, store: Path, failed: Failed) -> None:
    with an_ordinary_user(store, 0o000):
        told = failed(*commands(store, store.parent.parent / "table.csv")[command])
    assert told == f"klinesync: the store {store} cannot be opened: no permission: this user may not read {store}"


@pytest.mark.parametrize("command", ["verify", "export", "backup", "import", "serve"])
def test_a_store_whose_name_is_too_long(command: str, store: Path, failed: Failed) -> None:
    named = store.with_name("n" * 260)
    told = failed(*commands(named, store.parent.parent / "table.csv")[command])
    assert told == f"klinesync: the store {named} cannot be opened: File name too long"


def test_what_is_read_or_written_beside_the_store(store: Path, tmp_path: Path, failed: Failed) -> None:
    url = f"--database-url=sqlite:///{store}"
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    new = f"--database-url=sqlite:///{tmp_path}/open/new.sqlite"
    long = tmp_path / ("n" * 260)
    for path, why in ((long, "File name too long"), (other / "x.csv", "Permission denied")):
        with an_ordinary_user(other, 0o644):
            assert f"{path} is refused: it cannot be read: {why}" in failed("import", path, f"--series={SERIES}", new)
            assert f"{path} cannot be written: {why}" in failed(
                "export", SERIES, "--format=csv", f"--output={path}", url
            )
            told = failed("backup", path, url)
            assert f"cannot be copied to {path}: " in told
            assert re.search(f"{why}|no permission: this user may not look into the folder {other}$", told)
            told = failed("flags", f"--whitelist-path={path}", status=0)
            assert told.endswith(f"flag whitelist_path: {path} cannot be read: {why}")
            assert failed("sim", f"--data={path}").startswith(f"klinesync: data directory {path} cannot be read: ")


async def btc(_series: SeriesId) -> str:
    return "BTCUSDT"


@pytest.mark.parametrize("source", ["freqtrade", "archive"])
async def test_files_of_a_source_that_cannot_be_looked_at_are_told(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    files = FreqtradeFiles(folder) if source == "freqtrade" else ExchangeArchive(folder, btc)
    with an_ordinary_user(folder, 0o644):
        pages = [page async for page in files.pages(SeriesId.parse(SERIES), Span(1_714_521_600, 1_717_200_000))]
    assert pages == []
    told = [record.getMessage() for record in caplog.records]
    assert told, told
    assert all(line.endswith("cannot be read: Permission denied") for line in told)


@pytest.mark.parametrize("suffix", [".lock", "-wal"])
@pytest.mark.parametrize("command", ["import", "verify"])
def test_a_folder_in_the_place_of_a_file_beside_the_store(
    suffix: str, command: str, store: Path, failed: Failed
) -> None:
    folder = store.with_name(store.name + suffix)
    folder.unlink(missing_ok=True)
    folder.mkdir()
    told = failed(*commands(store, store.parent.parent / "table.csv")[command])
    assert told == (
        f"klinesync: the store {store} cannot be opened: {folder} is a folder, and a file of that name belongs there; "
        "move the folder away"
    )


def test_a_zero_byte_in_a_path_of_the_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: Failed
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("database_url", "sqlite:////x\\u0000y"), ("whitelist_path", "x\\u0000y")):
        (tmp_path / "klinesync.toml").write_text(f'{name} = "{value}"\n')
        assert "it contains a zero byte" in failed("verify")


# --- other kinds of names


@pytest.mark.parametrize("command", ["verify", "export", "backup", "import", "serve"])
def test_a_store_that_is_no_regular_file_hangs_nobody(command: str, store: Path, failed: Failed) -> None:
    store.unlink()
    os.mkfifo(store)
    told = failed(*commands(store, store.parent.parent / "table.csv")[command])
    assert told == f"klinesync: there is no store {store}: it is no regular file; name a file with --database-url"


@pytest.mark.parametrize("command", ["verify", "export", "backup", "import", "serve"])
def test_a_store_behind_links_in_a_circle(command: str, store: Path, failed: Failed) -> None:
    store.unlink()
    store.symlink_to(store)
    told = failed(*commands(store, store.parent.parent / "table.csv")[command])
    assert told == f"klinesync: the store {store} cannot be opened: Too many levels of symbolic links"


@pytest.mark.parametrize("command", ["import", "serve"])
def test_a_store_below_a_file(command: str, store: Path, tmp_path: Path, failed: Failed) -> None:
    named = tmp_path / "table.csv" / "s.sqlite"
    told = failed(*commands(named, tmp_path / "table.csv")[command])
    assert told == f"klinesync: the store {named} cannot be opened: {named.parent} is no folder"


@pytest.mark.parametrize("kind", ["csv", "parquet", "feather"])
def test_files_whose_names_are_no_utf_8_are_written_and_read(kind: str, store: Path, tmp_path: Path) -> None:
    url = f"--database-url=sqlite:///{store}"
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff." + kind.encode()))
    for _ in range(2):  # the second time the file is compared with the first one
        assert main(["export", SERIES, f"--format={kind}", f"--output={file}", url]) == 0
    again = f"--database-url=sqlite:///{tmp_path}/again.sqlite"
    assert main(["import", str(file), f"--series={SERIES}", again]) == 0


def test_names_that_sqlite_cannot_open_are_refused(store: Path, tmp_path: Path, failed: Failed) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert "is not UTF-8" in failed("backup", name, f"--database-url=sqlite:///{store}")
    assert "it is not UTF-8" in failed("verify", f"--database-url=sqlite:///{name}", status=2)
