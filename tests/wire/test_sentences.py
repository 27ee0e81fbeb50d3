"""Messages of commands: one refusal once, counts that agree with their nouns, dates, addresses, consistent exit
statuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from klinesync.cli import main
from klinesync.core.counted import counted

BTC = "binance:spot:BTC/USDT:1m"
HEAD = "candle_time,open,high,low,close,volume\n"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"--database-url=sqlite:///{tmp_path}/store.sqlite"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(word) for word in arguments])
    done = capsys.readouterr()
    return status, done.out, done.err


def test_a_count_agrees_with_its_noun() -> None:
    assert (counted(0, "file"), counted(1, "file"), counted(2, "file")) == ("0 files", "1 file", "2 files")
    assert counted(2, "series", "series") == "2 series"


def test_one_file_with_one_candle_is_in_the_singular(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.csv").write_text(f"{HEAD}1700000040,1,2,0.5,1.5,10\n")
    status, out, err = said(capsys, "import", tmp_path / "one.csv", "--series", BTC, store)
    assert (status, err) == (0, "")
    assert f"1 candle of {BTC}" in out
    assert "\n1 file, 1 candle in " in out
    status, out, _ = said(capsys, "verify", store)
    assert f"{BTC}: 1 candle from 2023-11-14T22:14:00Z" in out


def test_one_refusal_is_printed_once(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(f"{HEAD}1700000040,1,2,0.5,1.5\n")
    status, out, err = said(capsys, "import", bad, "--series", BTC, store)
    assert status == 1
    assert (out + err).count("bad.csv") == 1
    assert err.startswith("klinesync: ")
    assert "0 files" not in out


def test_a_refused_candles_time_is_a_date(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"{1700000040 + 60 * at},1,2,0.5,1.5,10\n" for at in range(4))
    path.write_text(f"{HEAD}{rows}1700000280,3,2,0.5,1.5,10\n")
    status, out, _ = said(capsys, "import", path, "--series", BTC, store)
    assert status == 0
    assert "candle at 2023-11-14 22:18 UTC refused" in out
    assert "1 bad row left out" in out


def test_a_span_that_ends_before_it_begins_is_wrong_use_with_dates(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    span = ("--from", "20261129", "--to", "2026-11-28T12:00")
    sentence = "--from 2026-11-29 00:00 UTC is not before --to 2026-11-28 12:00 UTC"
    export = ("export", BTC, "--format=csv", "--output", tmp_path / "x.csv")
    for command in (export, ("backfill", BTC)):
        status, out, err = said(capsys, *command, *span, store)
        assert (status, out) == (2, "")
        assert err == f"klinesync {command[0]}: {sentence}\nsee: klinesync {command[0]} --help\n"


def test_an_export_into_a_pipe_names_the_pipe_as_it_was_given(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{HEAD}1700000040,1,2,0.5,1.5,10\n")
    assert said(capsys, "import", path, "--series", BTC, store)[0] == 0
    reader, writer = os.pipe()
    try:
        status, out, err = said(capsys, "export", BTC, "--format=csv", f"--output=/dev/fd/{writer}", store)
    finally:
        os.close(reader)
        os.close(writer)
    assert (status, out) == (1, "")
    assert err == f"klinesync: /dev/fd/{writer} cannot be written: it is no regular file\n"


@pytest.mark.parametrize("command", ["import", "backfill", "watch"])
def test_an_address_without_a_scheme_is_refused_with_the_correct_form(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    span = ["--from=0"] if command == "backfill" else []
    status, _, err = said(capsys, command, BTC, *span, "--url", "127.0.0.1:8000")
    assert status == 2
    assert "'127.0.0.1:8000' is no address of a service: it does not begin with http:// or https://" in err
    assert "; write http://127.0.0.1:8000" in err


@pytest.mark.parametrize("text", ["1700000040000", "yesterday"])
def test_a_malformed_time_is_refused_with_the_correct_form_by_every_command(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ("export", BTC, "--format=csv", "--output", tmp_path / "x.csv")
    for command in ((*export, "--from"), (*export, "--to"), ("backfill", BTC, "--from"), ("sim", "--start")):
        status, _, err = said(capsys, *command, text)
        assert (status, "; write " in err) == (2, True), err


def test_an_unreachable_service_is_reported_with_address_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.csv"
    path.write_text(f"{HEAD}1700000040,1,2,0.5,1.5,10\n")
    status, _, err = said(capsys, "import", path, "--series", BTC, "--url", "http://does-not-exist.invalid:1")
    assert status == 1
    assert "does-not-exist.invalid:1 cannot be found: " in err
