"""`klinesync verify`: a sound store passes, and each kind of damage is found and named."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import apsw
import msgspec
import pytest

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.market_data import verify as verify_module
from klinesync.market_data.findings import MAX_SHOWN
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.pipelines.submissions import Empty
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import MAX_FILE_PROBLEMS
from support.candles import ohlcv
from support.running_service import running_service
from support.stored_chunks import stored_candles

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
START = 1_700_006_400  # a whole hour
HOLE = Span(START + 90 * 60, START + 97 * 60)
SECOND_HOLE = Span(START + 200 * 60, START + 201 * 60)
TARGETS = ("5m", "15m", "1h")
FLAGS = [f"--derived-timeframes={','.join(TARGETS)}"]

Audit = dict[str, dict[str, int]]


def minute(number: int) -> Candle:
    price = 100.0 + number * 7919 % 101 / 10
    return Candle(START + number * 60, price, price + 0.3, price - 0.7, price + 0.1, 0.1 * (number % 13))


class Verified(NamedTuple):
    status: int
    series: dict[str, dict[str, object]]
    errors: str

    def kinds(self) -> dict[str, dict[str, int]]:
        """The number of differences of each kind, by timeframe."""
        return {
            name.rpartition(":")[2]: row["differences"]  # type: ignore[misc]
            for name, row in self.series.items()
            if row["differences"]
        }


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., Verified]:
    def run(store: Path, *arguments: str) -> Verified:
        status = main(["verify", "--json", f"--database-url=sqlite:///{store}", *FLAGS, *arguments])
        out, errors = capsys.readouterr()
        assert "Traceback" not in errors
        rows = json.loads(out)["series"] if out else []
        return Verified(status, {row["series_id"]: row for row in rows}, errors)

    return run


async def write(store: Path, series: SeriesId, candles: Sequence[Candle], empty: Sequence[Span] = ()) -> None:
    """Write through the pipeline, a few at a time, then confirm `empty`."""
    step = DerivedStep(series.timeframe, [Timeframe.parse(code) for code in TARGETS])
    async with SqliteDatabase(store) as database:
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        work = asyncio.create_task(pipeline.run())
        for first in range(0, len(candles), 500):
            await pipeline.submit(series, candles[first : first + 500], "test")
        await pipeline.submit(series, [], "test", Empty(empty, "a test says so"))
        work.cancel()
        await asyncio.wait([work])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Ten hours of minutes with two holes, the first of which is confirmed empty."""
    path = tmp_path / "store.sqlite"
    missing = {*range(90, 97), 200}
    candles = [minute(number) for number in range(600) if number not in missing]
    asyncio.run(write(path, SERIES, candles, [HOLE]))
    return path


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.parent.iterdir()}


def spoil_page(store: Path, what: str, at: int, spoilt: bytes) -> None:
    """Overwrite bytes of the first page of a table or index."""
    connection = apsw.Connection(str(store))
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (what,)).get
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    assert isinstance(root, int)
    raw = bytearray(store.read_bytes())
    raw[(root - 1) * 4096 + at : (root - 1) * 4096 + at + len(spoilt)] = spoilt
    store.write_bytes(bytes(raw))


def test_the_file_of_an_undamaged_store_passes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(store)
    arguments = ["verify", f"--database-url=sqlite:///{store}", *FLAGS]
    main(arguments)
    assert "file: SQLite's integrity check found no problem" in capsys.readouterr().out.splitlines()
    main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["file_problems"] == []
    assert files_of(store) == before


@pytest.mark.parametrize("what", ["candle_revision_of", "probe_index"])
def test_damage_of_the_file_outside_of_candles_is_reported_and_nothing_is_written(
    store: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = apsw.Connection(str(store))
    if what == "probe_index":  # an index that disagrees with its table
        connection.execute("CREATE TABLE probe (a INTEGER)")
        connection.execute("CREATE INDEX probe_index ON probe (a)")
        connection.executemany("INSERT INTO probe VALUES (?)", [(number,) for number in range(200)])
    connection.close()
    spoil_page(store, what, 4000 if what == "probe_index" else 0, b"\x7f" * 40)
    before = files_of(store)
    arguments = ["verify", f"--database-url=sqlite:///{store}", *FLAGS, str(SERIES)]
    assert main(arguments) == 1
    out, errors = capsys.readouterr()
    assert "file: damaged" in out.splitlines()
    assert 1 <= out.count("    DAMAGED: ") <= MAX_FILE_PROBLEMS
    assert f"{SERIES}: 592 candles" in out
    assert "is damaged; `klinesync verify` lists all damage; stop the service, and" in errors
    assert "Traceback" not in errors
    assert main([*arguments, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert 1 <= len(answer["file_problems"]) <= MAX_FILE_PROBLEMS
    assert [row["candle_count"] for row in answer["series"]] == [592]
    assert files_of(store) == before


def test_a_file_that_is_too_damaged_for_an_audit_is_reported(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil_page(store, "series", 0, b"\xff")
    assert main(["verify", f"--database-url=sqlite:///{store}", *FLAGS]) == 1
    out, errors = capsys.readouterr()
    assert "    DAMAGED: " in out
    assert "fails its checksum" in errors
    assert "verify --repair" in errors
    assert "Traceback" not in errors


# Order flow that a row does not have.
UNTOLD = ", NULL" * 4


def damage(store: Path, *statements: str) -> None:
    """Unpack every candle into a row first, so that a statement can find it."""
    connection = apsw.Connection(str(store))
    connection.execute("PRAGMA foreign_keys = OFF")
    for chunk_id, packed in connection.execute("SELECT chunk_id, candles FROM candle_chunk").fetchall():
        assert isinstance(chunk_id, int)
        assert isinstance(packed, bytes)
        rows = [(chunk_id >> 32, *candle) for candle in stored_candles(connection, chunk_id, packed)]
        connection.executemany(f"INSERT INTO candle VALUES ({', '.join('?' * len(rows[0]))})", rows)
    connection.execute("DELETE FROM candle_chunk")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def numbered(timeframe: str) -> str:
    return f"(SELECT series_no FROM series WHERE series_id LIKE '%:{timeframe}')"


def at(number: int) -> int:
    return START + number * 60


def test_an_undamaged_store_passes_with_its_gaps_by_state(store: Path, verified: Callable[..., Verified]) -> None:
    before = {path.name: path.read_bytes() for path in store.parent.iterdir() if path.suffix == ".sqlite"}
    result = verified(store)
    assert (result.status, result.kinds(), result.errors) == (0, {}, "")
    assert list(result.series) == [f"binance:spot:BTC/USDT:{code}" for code in ("1m", *TARGETS)]
    base = result.series[str(SERIES)]
    assert (base["first_time"], base["head_time"], base["candle_count"]) == (START, at(599), 592)
    assert base["gaps"] == {
        "unknown": {"spans": 1, "candles": 1},
        "healing": {"spans": 0, "candles": 0},
        "confirmed_empty": {"spans": 1, "candles": 7},
        "lost": {"spans": 0, "candles": 0},
    }
    assert result.series["binance:spot:BTC/USDT:5m"]["derived_from"] == str(SERIES)
    assert {path.name: path.read_bytes() for path in store.parent.iterdir() if path.suffix == ".sqlite"} == before


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (f"UPDATE candle SET high = low - 1 WHERE series_no = {numbered('1m')} AND time = {at(3)}", "bad_candle"),
        (f"UPDATE candle SET volume = 9e999 WHERE series_no = {numbered('5m')} AND time = {at(5)}", "bad_candle"),
        (f"INSERT INTO candle VALUES ({numbered('1m')}, {at(3) + 7}, 1, 1, 1, 1, 1{UNTOLD})", "bad_candle"),
        (f"INSERT INTO candle VALUES ({numbered('1m')}, -60, 1, 1, 1, 1, 1{UNTOLD})", "bad_candle"),
        (f"INSERT INTO candle VALUES ({numbered('1m')}, 1 << 60, 1, 1, 1, 1, 1{UNTOLD})", "bad_candle"),
        (f"DELETE FROM candle WHERE series_no = {numbered('1m')} AND time = {at(3)}", "hole_not_in_ledger"),
        (f"DELETE FROM gap WHERE series_no = {numbered('1m')} AND start_time = {HOLE.start}", "hole_not_in_ledger"),
        (f"UPDATE gap SET end_time = {HOLE.end + 60} WHERE start_time = {HOLE.start}", "gap_not_a_hole"),
        (f"INSERT INTO gap VALUES ({numbered('1m')}, {at(9)}, {at(11)}, 'unknown', NULL, NULL)", "gap_not_a_hole"),
        (f"INSERT INTO gap VALUES ({numbered('1m')}, {at(900)}, {at(901)}, 'unknown', NULL, NULL)", "gap_not_a_hole"),
        (f"INSERT INTO gap VALUES ({numbered('1m')}, {at(-9)}, {at(-8)}, 'unknown', NULL, NULL)", "gap_not_a_hole"),
        (f"UPDATE gap SET state = 'elsewhere' WHERE start_time = {HOLE.start}", "bad_gap"),
        (f"UPDATE gap SET end_time = start_time WHERE start_time = {HOLE.start}", "bad_gap"),
        (f"UPDATE gap SET end_time = end_time + 1 WHERE start_time = {HOLE.start}", "bad_gap"),
        (f"UPDATE gap SET proof = NULL WHERE start_time = {HOLE.start}", "bad_gap"),
        (f"UPDATE candle SET close = close + 1e-9 WHERE series_no = {numbered('1h')}", "derived_wrong"),
        (f"UPDATE candle SET close = close + 0.01 WHERE series_no = {numbered('1m')} AND time = {at(4)}",
         "derived_wrong"),
        (f"INSERT INTO candle VALUES ({numbered('5m')}, {at(600)}, 1, 1, 1, 1, 1{UNTOLD})", "derived_unexpected"),
        (f"INSERT INTO candle VALUES ({numbered('5m')}, {at(200)}, 1, 1, 1, 1, 1{UNTOLD})", "derived_unexpected"),
        (f"DELETE FROM candle WHERE series_no = {numbered('15m')} AND time = {at(30)}", "derived_missing"),
        (f"DELETE FROM candle WHERE series_no = {numbered('1h')}", "derived_missing"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_is_found(
    statement: str, found: str, store: Path, verified: Callable[..., Verified]
) -> None:
    damage(store, statement)
    result = verified(store)
    assert result.status == 1
    assert found in {kind for kinds in result.kinds().values() for kind in kinds}
    assert "in " in result.errors
    assert result.errors.endswith("series\n")


def test_a_difference_is_shown_with_both_candles(
    store: Path, verified: Callable[..., Verified], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, f"UPDATE candle SET close = close + 1 WHERE series_no = {numbered('5m')} AND time <= {at(45)}")
    result = verified(store, "binance:spot:BTC/USDT:5m")
    assert result.kinds() == {"5m": {"bad_candle": 3, "derived_wrong": 10}}
    shown = result.series["binance:spot:BTC/USDT:5m"]["first_differences"]
    assert isinstance(shown, list)
    assert len(shown) == MAX_SHOWN
    assert main(["verify", f"--database-url=sqlite:///{store}", *FLAGS, "binance:spot:BTC/USDT:5m"]) == 1
    out, _ = capsys.readouterr()
    assert "DIFFERS: 10 derived_wrong" in out
    assert "… and 8 more" in out


def test_native_candles_are_counted_in_json_and_text(
    store: Path, verified: Callable[..., Verified], capsys: pytest.CaptureFixture[str]
) -> None:
    hours = SERIES.with_timeframe(Timeframe.parse("1h"))

    async def add_native() -> None:
        """Three hours before the first minute."""
        async with SqliteDatabase(store) as database:
            step = DerivedStep(SERIES.timeframe, [hours.timeframe])
            rows = [minute(-60 * number) for number in (3, 2, 1)]
            await database.write(lambda look: step.write_native(look, hours, rows, (), "", START))

    asyncio.run(add_native())
    result = verified(store)
    assert (result.status, result.kinds()) == (0, {})
    assert {name: row["native_count"] for name, row in result.series.items() if row["native_count"]} == {str(hours): 3}
    assert main(["verify", f"--database-url=sqlite:///{store}", *FLAGS]) == 0
    out, _ = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith(f"{hours}: ")]
    assert line.endswith(", derived from 1m, 3 native")
    assert out.count("native") == 1


def test_bounded_windows_find_what_one_window_finds(
    store: Path, verified: Callable[..., Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(
        store,
        f"UPDATE candle SET close = low WHERE series_no = {numbered('1h')} AND time = {at(120)}",
        f"DELETE FROM candle WHERE series_no = {numbered('1m')} AND time IN ({at(350)}, {at(351)})",
        f"DELETE FROM candle WHERE series_no = {numbered('5m')} AND time >= {at(500)}",
    )
    whole = verified(store)
    for window in (1, 2, 7, 50):  # a few candles, shorter than the buckets and the holes
        monkeypatch.setattr(verify_module, "WINDOW_CANDLES", window)
        assert verified(store) == whole
    assert whole.kinds()["1m"] == {"hole_not_in_ledger": 1}
    assert set(whole.kinds()) == {"1m", "5m", "15m", "1h"}


def test_a_target_that_was_never_stored_is_missing_and_one_that_is_no_target_is_only_compared(
    store: Path, verified: Callable[..., Verified]
) -> None:
    result = verified(store, "--derived-timeframes=30m")
    assert result.kinds() == {"30m": {"derived_missing": 19}}
    damage(store, f"DELETE FROM candle WHERE series_no = {numbered('1h')} AND time = {at(0)}")
    damage(store, f"UPDATE candle SET close = low WHERE series_no = {numbered('1h')} AND time = {at(60)}")
    result = verified(store, "--enable-derived-timeframes=off")
    assert result.kinds() == {"1h": {"hole_not_in_ledger": 1, "derived_wrong": 1}}


def test_a_series_that_is_not_stored_and_a_missing_store_are_one_sentence(
    store: Path, tmp_path: Path, verified: Callable[..., Verified]
) -> None:
    status, _, errors = verified(store, "binance:spot:ETH/USDT:1m")
    assert (status, errors.count("\n")) == (1, 1)
    assert "binance:spot:ETH/USDT:1m is unknown: the store has no candles of it" in errors
    for path, reason in (
        (tmp_path / "none.sqlite", "there is no store"),
        (tmp_path, "there is no store"),
    ):
        status, _, errors = verified(path)
        assert (status, errors.count("\n")) == (1, 1)
        assert reason in errors
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "text.sqlite").write_text("no database at all" * 100)
    assert "is no store yet" in verified(tmp_path / "empty.sqlite").errors
    assert "cannot be opened" in verified(tmp_path / "text.sqlite").errors
    damage(store, "PRAGMA user_version = 99")
    assert "written by a newer klinesync" in verified(store).errors
    assert not (tmp_path / "none.sqlite").exists()


async def test_verify_works_beside_a_running_service(tmp_path: Path, verified: Callable[..., Verified]) -> None:
    store = tmp_path / "store.sqlite"
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(
            store, exchange, derived_timeframes=",".join(TARGETS), enable_market_auto_tail_backfill="off"
        ) as service,
    ):
        count = 0
        while count < 2100:
            _, body = await service.get("/api/market/candles", series_id=str(SERIES), limit=5000)
            candles = body["candles"]
            assert isinstance(candles, list)
            count = len(candles)
        result = await asyncio.to_thread(verified, store)
    assert (result.status, result.kinds()) == (0, {})
    assert result.series[str(SERIES)]["candle_count"] >= count  # type: ignore[operator]


@pytest.mark.parametrize(
    ("symbol", "missing", "spans"), [("BTC_USDT", 284, 1), ("BRD_BTC", 434, 2)], ids=["BTC_USDT", "BRD_BTC"]
)
async def test_a_recorded_outage_that_is_confirmed_empty_passes(
    symbol: str, missing: int, spans: int, real_data: Path, tmp_path: Path, verified: Callable[..., Verified]
) -> None:
    rows = msgspec.json.decode(
        gzip.decompress((real_data / "gaps" / f"{symbol}-1m.json.gz").read_bytes()),
        type=list[tuple[int, float, float, float, float, float]],
    )
    candles = [ohlcv(time_ms // 1000, values) for time_ms, *values in rows]
    holes = [Span(one.time + 60, two.time) for one, two in pairwise(candles) if two.time != one.time + 60]
    series = SeriesId.parse(f"binance:spot:{symbol.replace('_', '/')}:1m")
    store = tmp_path / "store.sqlite"
    await write(store, series, candles, holes)
    result = await asyncio.to_thread(verified, store)
    assert (result.status, result.kinds()) == (0, {})
    row = result.series[str(series)]
    assert row["candle_count"] == len(candles)
    assert row["gaps"] == {
        "unknown": {"spans": 0, "candles": 0},
        "healing": {"spans": 0, "candles": 0},
        "confirmed_empty": {"spans": spans, "candles": missing},
        "lost": {"spans": 0, "candles": 0},
    }
