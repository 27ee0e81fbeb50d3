"""`klinesync verify` recomputes factors and overlays: a sound ledger passes, each kind of damage is named."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.factor.graph import FactorGraph
from klinesync.factor.indicator_names import parse_indicators
from klinesync.factor.plugin import Event, Factor, Upstream, state_of
from klinesync.market.parts_writing import ledger_step
from klinesync.market.settings import ledger_settings
from klinesync.market_data import verify_ledger
from klinesync.market_data.findings import SeriesAudit
from klinesync.market_data.retention import Retention
from klinesync.market_data.verify_ledger import LedgerVerifier
from klinesync.overlay.graph import OverlayGraph
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep, no_ledger
from klinesync.runtime.flags import load_flags
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
DERIVED = SERIES.with_timeframe(Timeframe.parse("5m"))
START = 1_700_006_400  # a whole hour
MINUTES = 3_000
FLAGS = {"factor_pivot_window_major": "5", "factor_pivot_window_minor": "2", "derived_timeframes": "5m"}


def walk(minutes: int = MINUTES) -> list[Candle]:
    rng, price, candles = random.Random(11), 100.0, []
    for minute in range(minutes):
        close = round(price + rng.uniform(-1, 1), 2)
        high, low = max(price, close) + rng.randint(0, 3) / 4, min(price, close) - rng.randint(0, 3) / 4
        candles.append(Candle(START + 60 * minute, price, high, low, close, float(minute % 7)))
        price = close
    return candles


def step(**flags: str) -> LedgerStep:
    return ledger_step(ledger_settings(load_flags(FLAGS | flags)))


async def write(path: Path, *batches: Sequence[Candle], ledger: LedgerStep | None = None) -> None:
    """Write through the pipeline, until factors and overlays have caught up."""
    ledger = ledger or step()
    async with SqliteDatabase(path) as database:
        derived = DerivedStep(SERIES.timeframe, [DERIVED.timeframe])
        pipeline = IngestPipeline(database, derived, ledger, lambda _: None, lambda: 1_800_000_000.0)
        work = asyncio.create_task(pipeline.run())
        for batch in batches:
            for first in range(0, len(batch), 500):
                await pipeline.submit(SERIES, batch[first : first + 500], "test")
        while ledger.behind():
            await database.read(lambda _: None)
        work.cancel()
        await asyncio.wait([work])


async def change(path: Path, what: Callable[[CandleStore], None]) -> None:
    async with SqliteDatabase(path) as database:
        await database.write(what)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store.sqlite"
    asyncio.run(write(path, walk()))
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "store.sqlite"))


class Verified(NamedTuple):
    status: int
    series: dict[str, Any]
    errors: str

    def kinds(self) -> dict[str, dict[str, int]]:
        return {name: row["differences"] for name, row in self.series.items() if row["differences"]}

    def ledger(self, series: SeriesId = SERIES) -> dict[str, Any]:
        found = self.series[str(series)]["ledger"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., Verified]:
    def run(store: Path, **flags: str) -> Verified:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in (FLAGS | flags).items()]
        status = main(["verify", "--json", f"--database-url=sqlite:///{store}", *options])
        out, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return Verified(status, {row["series_id"]: row for row in json.loads(out)["series"]}, errors)

    return run


def damage(store: Path, *statements: str) -> None:
    connection = apsw.Connection(str(store))
    for statement in statements:
        connection.execute(statement)
        assert connection.changes(), statement
    connection.close()


NUMBER = f"(SELECT series_no FROM series WHERE series_id = '{SERIES}')"


def nth(table: str, position: int, columns: str, order: str) -> str:
    """A condition that is true of one row in the middle."""
    rows = f"SELECT {columns} FROM {table} WHERE series_no = {NUMBER} ORDER BY {order}"
    return f"({columns}) = ({rows} LIMIT 1 OFFSET {position})"


EVENT = nth("factor_event", 40, "series_no, visible_time, event_no", "visible_time, event_no")
DRAWING = nth("drawing", 30, "series_no, version_id", "version_id")
CHECKPOINT = nth("checkpoint", 1, "series_no, time", "time")
OLDEST_STATES = f"(SELECT states FROM checkpoint WHERE series_no = {NUMBER} ORDER BY time LIMIT 1)"
EARLIER = START + 60 * 1000


def test_a_sound_ledger_passes_and_is_counted(store: Path, verified: Callable[..., Verified]) -> None:
    result = verified(store)
    assert (result.status, result.kinds(), result.errors) == (0, {}, "")
    for series in (SERIES, DERIVED):
        ledger = result.ledger(series)
        assert ledger["status"] == "up_to_date"
        assert ledger["factor_head_time"] == ledger["overlay_head_time"] == result.series[str(series)]["head_time"]
        assert ledger["events"] > 50
        assert ledger["drawings"] > 30
    assert result.ledger()["checkpoints"] >= 3


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (f"DELETE FROM factor_event WHERE {EVENT}", "factor_event_missing"),
        (f"UPDATE factor_event SET factor = 'pivots' WHERE {EVENT}", "factor_event_wrong"),
        (f"UPDATE factor_event SET event = json_set(event, '$.visible_time', 7) WHERE {EVENT}", "factor_event_wrong"),
        (f"UPDATE factor_event SET event = json_set(event, '$.more', 1) WHERE {EVENT}", "factor_event_wrong"),
        (f"UPDATE factor_event SET event = replace(event, '.', '1.') WHERE {EVENT}", "factor_event_wrong"),
        (f"UPDATE factor_event SET event = 'nonsense' WHERE {EVENT}", "factor_event_wrong"),
        (f"UPDATE factor_event SET visible_time = visible_time + 1, event_no = 9 WHERE {EVENT}",
         "factor_event_unexpected"),
        (f"INSERT INTO factor_event SELECT series_no, visible_time, 9, factor, event FROM factor_event WHERE {EVENT}",
         "factor_event_unexpected"),
        (f"INSERT INTO factor_event SELECT series_no, 1 << 40, 9, factor, event FROM factor_event WHERE {EVENT}",
         "factor_event_unexpected"),
        (f"INSERT INTO factor_event SELECT series_no, 60, 9, factor, event FROM factor_event WHERE {EVENT}",
         "factor_event_unexpected"),
        (f"DELETE FROM drawing WHERE {DRAWING}", "drawing_missing"),
        (f"UPDATE drawing SET instruction = json_set(instruction, '$.definition.color', '#fff') WHERE {DRAWING}",
         "drawing_wrong"),
        (f"UPDATE drawing SET instruction = json_set(instruction, '$.version_id', 7) WHERE {DRAWING}", "drawing_wrong"),
        (f"UPDATE drawing SET instruction = '{{}}' WHERE {DRAWING}", "drawing_wrong"),
        (f"UPDATE drawing SET visible_time = visible_time - 60 WHERE {DRAWING}", "drawing_unexpected"),
        (f"INSERT INTO drawing SELECT series_no, 99999, 1 << 40, instruction FROM drawing WHERE {DRAWING}",
         "drawing_unexpected"),
        (f"UPDATE checkpoint SET states = x'00' WHERE {CHECKPOINT}", "checkpoint_wrong"),
        (f"UPDATE checkpoint SET time = time + 60 WHERE {CHECKPOINT}", "checkpoint_wrong"),
        (f"UPDATE checkpoint SET time = time + 7 WHERE {CHECKPOINT}", "checkpoint_wrong"),
        (f"UPDATE checkpoint SET states = {OLDEST_STATES} WHERE {CHECKPOINT}", "checkpoint_wrong"),
        (f"UPDATE checkpoint SET time = 1 << 40 WHERE {CHECKPOINT}", "checkpoint_wrong"),
        (f"UPDATE ledger SET version_id = version_id + 1 WHERE series_no = {NUMBER}", "ledger_head"),
        (f"UPDATE ledger SET factor_head = factor_head + 60 WHERE series_no = {NUMBER}", "ledger_head"),
        (f"UPDATE ledger SET overlay_head = overlay_head + 60 WHERE series_no = {NUMBER}", "ledger_head"),
        (f"UPDATE ledger SET factor_head = factor_head - 7 WHERE series_no = {NUMBER}", "ledger_head"),
        (f"UPDATE ledger SET overlay_head = overlay_head - 7 WHERE series_no = {NUMBER}", "ledger_head"),
        (f"UPDATE ledger SET factor_head = {EARLIER}, overlay_head = {EARLIER} WHERE series_no = {NUMBER}",
         "factor_event_unexpected"),
        (f"UPDATE ledger SET overlay_head = {EARLIER} WHERE series_no = {NUMBER}", "drawing_unexpected"),
        (f"UPDATE ledger SET factor_head = 5 WHERE series_no = {NUMBER}", "factor_event_unexpected"),
        (f"UPDATE ledger SET factor_head = NULL, overlay_head = NULL WHERE series_no = {NUMBER}",
         "drawing_unexpected"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_is_found(
    statement: str, found: str, store: Path, verified: Callable[..., Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(store, statement)
    results = [verified(store)]
    monkeypatch.setattr(verify_ledger, "WINDOW_CANDLES", 700)
    results.append(verified(store))
    for result in results:
        assert result.status == 1
        assert set(result.kinds()) == {str(SERIES)}
        assert found in result.kinds()[str(SERIES)]
        assert all(difference["what"] for difference in result.series[str(SERIES)]["first_differences"])
    assert results[0].kinds() == results[1].kinds()


def test_a_wrong_event_is_shown_with_the_expected_one(store: Path, verified: Callable[..., Verified]) -> None:
    damage(store, f"UPDATE factor_event SET event = json_set(event, '$.direction', 'up') WHERE {EVENT}")
    result = verified(store)
    assert result.kinds() == {str(SERIES): {"factor_event_wrong": 1}}
    (difference,) = result.series[str(SERIES)]["first_differences"]
    assert '"direction":"up"' in difference["what"]
    assert "and the candles give" in difference["what"]


def test_unreadable_rows_are_named_by_time_and_hide_no_other_damage(
    store: Path, verified: Callable[..., Verified]
) -> None:
    connection = apsw.Connection(str(store))
    time = connection.execute(f"SELECT visible_time FROM factor_event WHERE {EVENT}").get
    connection.close()
    damage(store, f"UPDATE factor_event SET event = 'nonsense' WHERE {EVENT}")
    damage(store, f"DELETE FROM drawing WHERE {DRAWING}")
    with SqliteReader(store) as reader, pytest.raises(StoreDamaged) as raised:
        reader.read(lambda look: look.ledger.events(SERIES, START, START + 60 * MINUTES))
    assert raised.value.damage.span == (time, time + 1)
    result = verified(store)
    assert result.kinds() == {str(SERIES): {"factor_event_wrong": 1, "drawing_missing": 1}}
    shown = result.series[str(SERIES)]["first_differences"]
    wrong = [(one["candle_time"], one["what"]) for one in shown if one["kind"] == "factor_event_wrong"]
    assert wrong == [(time, "it cannot be read")]
    assert result.ledger()["status"] == "up_to_date"


def test_a_candle_that_changed_under_its_ledger_is_found(store: Path, verified: Callable[..., Verified]) -> None:
    rows = walk()
    row = rows[1500]._replace(high=rows[1500].high + 50)

    def behind_its_back(look: CandleStore) -> None:
        look.write(SERIES, [row], Origin("test", 0))

    asyncio.run(change(store, behind_its_back))
    kinds = verified(store).kinds()
    assert {"factor_event_missing", "drawing_missing", "ledger_head"} <= set(kinds[str(SERIES)])
    assert set(kinds[str(DERIVED)]) == {"derived_wrong"}


def test_a_ledger_of_other_factors_or_not_yet_computed_is_reported_and_no_difference(
    store: Path, tmp_path: Path, verified: Callable[..., Verified], capsys: pytest.CaptureFixture[str]
) -> None:
    result = verified(store, factor_pivot_window_major="9")
    assert (result.status, result.ledger()["status"]) == (0, "other_factors")
    fresh = tmp_path / "fresh.sqlite"
    asyncio.run(write(fresh, walk(100), ledger=no_ledger()))
    result = verified(fresh)
    assert (result.status, result.ledger()["status"]) == (0, "none")
    assert main(["verify", f"--database-url=sqlite:///{fresh}", "--derived-timeframes=5m"]) == 0
    assert "factors and overlays: not computed yet" in capsys.readouterr().out


def test_a_lagging_ledger_is_compared_up_to_its_head(store: Path, verified: Callable[..., Verified]) -> None:
    later = [candle._replace(time=candle.time + 60 * MINUTES) for candle in walk(400)]
    asyncio.run(write(store, later, ledger=no_ledger()))
    result = verified(store)
    assert (result.status, result.kinds()) == (0, {})
    assert result.ledger()["status"] == "lagging"
    assert result.ledger()["factor_head_time"] == START + 60 * (MINUTES - 1)
    damage(store, f"DELETE FROM factor_event WHERE {EVENT}")
    assert verified(store).kinds() == {str(SERIES): {"factor_event_missing": 1}}


@pytest.mark.parametrize("window", [10_000, 900])
def test_after_a_trim_the_ledger_is_compared_from_its_checkpoint_on(
    store: Path, verified: Callable[..., Verified], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(verify_ledger, "WINDOW_CANDLES", window)

    async def trim() -> None:
        async with SqliteDatabase(store) as database:
            retention = Retention(database, step(), SERIES.timeframe, (DERIVED.timeframe,), 1)
            await retention.trim()

    asyncio.run(trim())
    result = verified(store)
    assert (result.status, result.kinds()) == (0, {})
    assert START < result.series[str(SERIES)]["first_time"] < START + 60 * (MINUTES - 1000)
    assert result.ledger()["events"] > 20
    damage(store, f"DELETE FROM drawing WHERE {nth('drawing', 0, 'series_no, version_id', 'version_id')}")
    damage(store, f"DELETE FROM drawing WHERE {nth('drawing', 9, 'series_no, version_id', 'version_id')}")
    damage(store, f"UPDATE ledger SET version_id = version_id + 1 WHERE series_no = {NUMBER}")
    assert verified(store).kinds() == {str(SERIES): {"drawing_missing": 2, "ledger_head": 1}}


class AboveAverage(Factor[int]):
    """Counts closes above a moving average: a factor that depends on an indicator."""

    name = "above_average"
    label = "Above average"
    depends_on = ("ema_3",)
    state_type = int

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        average = state_of(upstream, "ema_3", dict)["ema_3"]
        if not candle.close > average:
            return state, ()
        return state + 1, [{"visible_time": candle.time, "count": state + 1, "average": average}]


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_factor_that_reads_indicators_is_compared_where_they_have_enough_to_look_back_on(
    tmp_path: Path, trimmed: bool
) -> None:
    path = tmp_path / "store.sqlite"
    indicators = parse_indicators("EMA(3)")
    factors = FactorGraph([AboveAverage()], ["ema_3"])

    def its_step() -> LedgerStep:
        return LedgerStep(factors, OverlayGraph((), factors.names), indicators)

    async def trim() -> None:
        async with SqliteDatabase(path) as database:
            await Retention(database, its_step(), SERIES.timeframe, (DERIVED.timeframe,), 1).trim()

    asyncio.run(write(path, walk(), ledger=its_step()))
    if trimmed:
        asyncio.run(trim())

    def audited() -> SeriesAudit:
        audit = SeriesAudit(SERIES)
        with SqliteReader(path) as store:
            LedgerVerifier(its_step(), indicators).audit(store, audit, lambda _: None)
        return audit

    audit = audited()
    assert audit.kinds == {}
    assert audit.ledger is not None
    assert (audit.ledger.status, audit.ledger.events > 100) == ("up_to_date", True)
    late = f"series_no = {NUMBER} AND visible_time = (SELECT max(visible_time) FROM factor_event)"
    damage(path, f"UPDATE factor_event SET event = json_set(event, '$.count', 0) WHERE {late}")
    assert audited().kinds == {"factor_event_wrong": 1}


@pytest.mark.parametrize(("times", "status"), [(1, "up_to_date"), (100, "changing")])
def test_the_comparison_of_a_ledger_that_is_rewound_meanwhile_restarts(
    store: Path, monkeypatch: pytest.MonkeyPatch, times: int, status: str
) -> None:
    monkeypatch.setattr(verify_ledger, "WINDOW_CANDLES", 1000)
    looks, rewound = 0, 0
    read = SqliteReader.read

    def interrupted(self: SqliteReader, look: Callable[[CandleStore], Any]) -> Any:
        nonlocal looks, rewound
        looks += 1
        if looks % 2 == 0 and rewound < times:
            rewound += 1
            row = walk()[100]
            asyncio.run(write(store, [row._replace(high=row.high + 50 + rewound)]))
        return read(self, look)

    monkeypatch.setattr(SqliteReader, "read", interrupted)
    audit = SeriesAudit(SERIES)
    with SqliteReader(store) as reader:
        LedgerVerifier(step(), ()).audit(reader, audit, lambda _: None)
    assert audit.kinds == {}
    assert audit.ledger is not None
    assert audit.ledger.status == status
    assert rewound == (times if times == 1 else verify_ledger.TRIES)
