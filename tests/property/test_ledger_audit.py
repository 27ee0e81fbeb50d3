"""After any history of a ledger `verify` finds no difference, and it finds every kind of damage."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import apsw
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph
from klinesync.factor.plugin import FactorSettings
from klinesync.factor.registry import load_factors
from klinesync.market_data import verify_ledger
from klinesync.market_data.findings import SeriesAudit
from klinesync.market_data.verify_ledger import LedgerVerifier
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.registry import load_overlays
from klinesync.pipelines import factor_states
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.pauses import no_pause
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTES = 200
R = TypeVar("R")


@pytest.fixture(autouse=True)
def few_candles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_states, "CHECKPOINT_CANDLES", 8)
    monkeypatch.setattr(factor_states, "KEPT_CHECKPOINTS", 3)


def make_step(max_candles: int = 2000) -> LedgerStep:
    factors = FactorGraph(load_factors(FactorSettings(pivot_window_major=2, pivot_window_minor=1)))
    return LedgerStep(factors, OverlayGraph(load_overlays(), factors.names), max_candles=max_candles)


def walk(seed: int) -> list[Candle]:
    rng, price, candles = random.Random(seed), 50, []
    for minute in range(MINUTES):
        close = max(1, price + rng.randint(-3, 3))
        high, low = max(price, close) + rng.randint(0, 2), max(0.5, min(price, close) - rng.randint(0, 2))
        candles.append(Candle(60 * minute, float(price), float(high), float(low), float(close), 1.0))
        price = close
    return candles


def audited(path: Path) -> SeriesAudit:
    audit = SeriesAudit(BTC)
    with SqliteReader(path) as store:
        LedgerVerifier(make_step(), ()).audit(store, audit, lambda _: None)
    return audit


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "correct", "restart", "trim", "catch up"]),
        st.integers(0, MINUTES - 1),
        st.integers(1, 60),
    ),
    max_size=14,
)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 50),
    steps=STEPS,
    max_candles=st.sampled_from([7, 40, 2000]),
    window=st.sampled_from([1, 13, 10_000]),
)
# Trimmed twice at the same place; its first candle corrected; trimmed while it lags; completely trimmed; older candles.
@example(seed=3, steps=[("write", 0, 100), ("trim", 50, 1), ("trim", 50, 1)], max_candles=2000, window=10_000)
@example(seed=3, steps=[("write", 0, 100), ("trim", 50, 1), ("correct", 50, 9)], max_candles=2000, window=10_000)
@example(
    seed=3,
    steps=[("write", 0, 100), ("catch up", 0, 1), ("trim", 50, 1), ("catch up", 0, 1)],
    max_candles=40,
    window=10_000,
)
@example(seed=3, steps=[("write", 0, 1), ("trim", 1, 1)], max_candles=2000, window=10_000)
@example(seed=3, steps=[("write", 50, 60), ("trim", 70, 1), ("write", 0, 60)], max_candles=40, window=10_000)
async def test_verify_finds_no_difference_after_any_history_of_a_ledger(
    seed: int, steps: list[tuple[str, int, int]], max_candles: int, window: int
) -> None:
    truth = walk(seed)
    step = make_step(max_candles)

    def write(rows: Sequence[Candle]) -> Callable[[CandleStore], None]:
        def change(store: CandleStore) -> None:
            applied = store.write(BTC, rows, Origin("test", 0))
            with store.savepoint():
                step.advance(store, [applied], 0.0)

        return change

    def trim(before: int) -> Callable[[CandleStore], None]:
        def change(store: CandleStore) -> None:
            step.trim(store, BTC, before)
            store.trim(BTC, before)

        return change

    def catch_up(series: SeriesId) -> Callable[[CandleStore], object]:
        return lambda store: step.catch_up(store, series, 0.0)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_ledger, "WINDOW_CANDLES", window)
        path = Path(folder) / "store.sqlite"
        async with InThreadSqliteDatabase(path, pause=no_pause) as database:
            for kind, minute, count in [*steps, ("write", MINUTES // 3, MINUTES // 2)]:
                rows = truth[minute : minute + count]
                if kind == "write":
                    await database.write(write(rows))
                elif kind == "correct":
                    await database.write(write([row._replace(high=row.high + count) for row in rows[:1]]))
                elif kind == "restart":
                    step = make_step(max_candles)
                    await database.read(step.look_for_lags)
                elif kind == "trim":
                    await database.write(trim(60 * minute))
                elif (series := step.due(0.0)) is not None:
                    await database.write(catch_up(series))
                audit = audited(path)
                assert audit.kinds == {}, audit.shown


@settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 20),
    table=st.sampled_from(["factor_event", "drawing", "checkpoint"]),
    position=st.integers(0, 1000),
    how=st.sampled_from(["delete", "double", "move", "change"]),
)
async def test_verify_finds_any_damaged_row(seed: int, table: str, position: int, how: str) -> None:
    time = "time" if table == "checkpoint" else "visible_time"
    number = {"factor_event": "event_no", "drawing": "version_id", "checkpoint": "kept"}[table]
    value = {"factor_event": "event", "drawing": "instruction", "checkpoint": "states"}[table]
    step = make_step()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        async with InThreadSqliteDatabase(path, pause=no_pause) as database:
            for row in walk(seed):

                def change(store: CandleStore, row: Candle = row) -> None:
                    step.advance(store, [store.write(BTC, [row], Origin("test", 0))], 0.0)

                await database.write(change)
        assert audited(path).kinds == {}
        connection = apsw.Connection(str(path))
        rows = connection.execute(f"SELECT {time}, {number} FROM {table} ORDER BY {time}, {number}").fetchall()
        at, no = rows[position % len(rows)]
        which = f"{time} = {at} AND {number} = {no}"
        columns = ["series_no", time, number, value, *(["factor"] if table == "factor_event" else [])]
        if how == "delete":
            if table == "checkpoint":
                connection.close()
                return  # a missing checkpoint means a longer replay, which is not an error
            connection.execute(f"DELETE FROM {table} WHERE {which}")
        elif how == "double":
            doubled = [time + " + 60" if column == time and table == "checkpoint" else column for column in columns]
            doubled = [
                column + " + 1000" if column == number and table != "checkpoint" else column for column in doubled
            ]
            into, taken = ", ".join(columns), ", ".join(doubled)
            connection.execute(f"INSERT OR REPLACE INTO {table} ({into}) SELECT {taken} FROM {table} WHERE {which}")
        elif how == "move":
            connection.execute(f"UPDATE OR REPLACE {table} SET {time} = {time} + 60 WHERE {which}")
        elif table == "checkpoint":
            connection.execute(
                f"UPDATE {table} SET {value} = CAST(substr({value}, 1, 40) || x'01' AS BLOB) WHERE {which}"
            )
        else:
            connection.execute(f"UPDATE {table} SET {value} = json_set({value}, '$.visible_time', 1) WHERE {which}")
        assert connection.changes()
        connection.close()
        assert audited(path).kinds
