"""`klinesync export` never silently drops data of an existing file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather as pa_feather

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.history.files import exporting
from klinesync.history.files.merging import Merged, merged, rows_of
from klinesync.history.files.rows import columns, joined
from klinesync.history.files.sources import FreqtradeFiles
from support.candles import ohlcv
from support.history_files import all_of, minutes, write_freqtrade

START = 1_714_521_600  # a midnight
SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
STORED = minutes(START, 30)


@dataclass
class Ended:
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command on a store that has half an hour of candles."""
    store = f"--database-url=sqlite:///{tmp_path}/store.sqlite"
    source = write_freqtrade(tmp_path / "source" / "BTC_USDT-1m.json", STORED)
    assert main(["import", str(source), store]) == 0
    capsys.readouterr()

    def run(*arguments: object) -> Ended:
        status = main(["export", str(SERIES), *map(str, arguments), store])
        return Ended(status, *capsys.readouterr())

    return run


def rows(path: Path) -> list[Candle]:
    return rows_of(path).candles()


# --- freqtrade's own file


@pytest.mark.parametrize("kind", ["feather", "parquet"])
def test_freqtrades_file_is_merged(kind: str, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "freqtrade"
    before, behind = minutes(START - 600, 10), minutes(START + 1800, 5)
    wrong = STORED[7]._replace(close=STORED[7].low)
    path = write_freqtrade(
        folder / f"BTC_USDT-1m.{kind}", [*before, *STORED[:3], wrong, STORED[12]._replace(time=START + 90), *behind]
    )
    path.chmod(0o640)
    span = ("--from", START, "--to", START + 20 * 60)
    done = run("--format", kind, "--freqtrade", "--output", folder, *span, "--json")
    assert (done.status, done.err) == (0, "")
    facts = json.loads(done.out)
    assert facts["candles"] == 20
    assert {name: facts["merged"][name] for name in ("same", "different", "kept")} == {
        "same": 3, "different": 1, "kept": 16,
    }  # fmt: skip
    (told,) = facts["merged"]["first_different"]
    assert told.startswith("2024-05-01T00:07:00Z was ")
    assert f"{STORED[7].close!r}" in told
    expected = sorted([*before, *STORED[:20], STORED[12]._replace(time=START + 90), *behind])
    assert rows(path) == expected
    assert path.stat().st_mode & 0o777 == 0o640
    done = run("--format", kind, "--freqtrade", "--output", folder, *span)
    assert (
        "20 were equal, 0 had other values and now have the store's, 16 that are only in the file are kept" in done.out
    )
    assert rows(path) == expected
    assert run("--format", kind, "--freqtrade", "--output", folder, *span, "--overwrite").status == 0
    assert asyncio.run(all_of(FreqtradeFiles(folder), SERIES)) == STORED[:20]
    assert sorted(one.name for one in folder.iterdir()) == [path.name]


@given(
    st.dictionaries(st.integers(0, 40), st.integers(1, 3), max_size=20),
    st.dictionaries(st.integers(0, 40), st.integers(1, 3), max_size=20),
    st.integers(1, 7),
)
def test_a_merge_is_the_union_with_the_stores_values(file: dict[int, int], store: dict[int, int], size: int) -> None:
    def candles(values: dict[int, int]) -> list[Candle]:
        return [ohlcv(60 * at, [float(values[at])] * 5) for at in sorted(values)]

    old, new = candles(file), candles(store)
    pages = [columns(new[at : at + size]) for at in range(0, len(new), size)]
    how = Merged()
    found = joined([columns([]), *merged(pages, columns(old), how)]).candles()
    assert found == candles(file | store)
    both = file.keys() & store.keys()
    assert how.same == sum(file[at] == store[at] for at in both)
    assert how.different == sum(file[at] != store[at] for at in both)
    assert how.kept == len(file.keys() - store.keys())
    assert len(how.examples) == min(how.different, 5)


def test_a_file_of_freqtrade_that_cannot_be_merged_is_unchanged(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "freqtrade" / "BTC_USDT-1m.feather"
    path.parent.mkdir()
    path.write_bytes(b"ARROW1 cut")
    arguments = ("--format=feather", "--freqtrade", "--output", path.parent)
    done = run(*arguments)
    assert done.status == 1
    assert f"{path} cannot be merged with: it cannot be read" in done.err
    assert "--overwrite replaces it" in done.err
    assert path.read_bytes() == b"ARROW1 cut"
    assert run(*arguments, "--overwrite").status == 0
    assert rows(path) == STORED
    table = pa_feather.read_table(str(path))
    pa_feather.write_feather(table.append_column("mine", pa.array(np.arange(30))), str(path))
    done = run(*arguments)
    assert done.status == 1
    assert "it has the columns mine, which this export does not have; --overwrite replaces it" in done.err


def test_a_file_that_changes_meanwhile_is_unchanged(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_freqtrade(tmp_path / "freqtrade" / "BTC_USDT-1m.feather", STORED[:3])
    longer = minutes(START - 6000, 100)

    def writer(*arguments: object) -> object:
        write_freqtrade(path, longer)
        return whole(*arguments)  # type: ignore[arg-type]

    whole = exporting._writer
    monkeypatch.setattr(exporting, "_writer", writer)
    done = run("--format=feather", "--freqtrade", "--output", path.parent)
    assert done.status == 1
    assert "was changed by another program meanwhile, and is left as it is" in done.err
    assert rows(path) == longer
    assert [one.name for one in path.parent.iterdir()] == [path.name]


# --- any other file


@pytest.mark.parametrize("kind", ["parquet", "feather", "csv"])
@pytest.mark.parametrize("name", ["out", "out.table"])
def test_a_file_with_more_candles_is_unchanged_without_overwrite(
    kind: str, name: str, tmp_path: Path, run: Run
) -> None:
    path = tmp_path / name
    part = ("--format", kind, "--output", path, "--from", START + 300)
    assert run("--format", kind, "--output", path).status == 0
    assert run("--format", kind, "--output", path).status == 0, "the same again is no loss"
    done = run(*part)
    assert done.status == 1
    assert f"{path} is left as it is: it holds 5 candles that this export does not have; --overwrite" in done.err
    assert len(list(tmp_path.glob(".*"))) == 0
    assert run(*part, "--overwrite").status == 0
    assert run("--format", kind, "--output", path).status == 0, "more is no loss"


def test_a_file_without_candles_is_unchanged(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("my notes\n")
    done = run("--format=csv", "--output", path)
    assert done.status == 1
    assert "it holds something else than candles" in done.err
    assert path.read_text() == "my notes\n"
    os.mkfifo(tmp_path / "pipe")
    for place, what in ((tmp_path / "pipe", "no regular file"), (tmp_path, "a folder"), (Path("/dev/null"), "no reg")):
        done = run("--format=csv", "--output", place, "--overwrite")
        assert done.status == 1
        assert f"{place} cannot be written: it is {what}" in done.err


def test_a_dash_is_no_file(run: Run) -> None:
    done = run("--format=csv", "--output", "-")
    assert done.status == 1
    assert "cannot go to standard output; name a file" in done.err
    assert not Path("-").exists()


def test_a_link_stays_a_link(tmp_path: Path, run: Run) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert run("--format=csv", "--output", tmp_path / "link.csv").status == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert rows(tmp_path / "real.csv") == STORED


@pytest.mark.parametrize("arguments", [("--freqtrade",), ("--freqtrade", "--overwrite"), (), ("--overwrite",)])
def test_an_empty_span_is_a_failure_and_the_file_is_unchanged(
    arguments: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "freqtrade"
    path = write_freqtrade(folder / "BTC_USDT-1m.feather", STORED)
    before = path.read_bytes()
    output = folder if "--freqtrade" in arguments else path
    done = run("--format=feather", "--output", output, *arguments, "--from=2023-01-01", "--to=2023-02-01")
    assert done.status == 1
    assert "the store has no candles of binance:spot:BTC/USDT:1m from 2023-01-01T00:00:00Z to 2023-02-01" in done.err
    assert path.read_bytes() == before
    assert [one.name for one in folder.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name", ["store.sqlite", "link.sqlite", "hard.sqlite", "store.sqlite-wal", "store.sqlite.lock"]
)
@pytest.mark.parametrize("command", ["export", "backup"])
def test_the_stores_own_files_are_never_replaced(
    name: str, command: str, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.sqlite"
    (tmp_path / "link.sqlite").symlink_to(store)
    (tmp_path / "hard.sqlite").hardlink_to(store)
    before = store.read_bytes()
    if command == "export":
        ended = run("--format", "csv", "--overwrite", "--output", tmp_path / name)
    else:
        status = main(["backup", str(tmp_path / name), f"--database-url=sqlite:///{store}"])
        ended = Ended(status, *capsys.readouterr())
    assert ended.status == 1
    assert f"{name} belongs to the store" in ended.err
    assert store.read_bytes() == before
    assert not (tmp_path / "store.sqlite-wal").exists()


def test_a_removed_working_folder_is_one_sentence(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "cannot be written" in run("--format", "csv", "--output", "x.csv").err
    assert main(["backup", "x.sqlite", f"--database-url=sqlite:///{tmp_path}/store.sqlite"]) == 1
    assert "cannot be copied to x.sqlite: No such file or directory" in capsys.readouterr().err
