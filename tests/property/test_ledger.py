"""The stored ledgers of factors and overlays are a function of the stored candles alone: not of batches, their order,
corrections, restarts, faults or the pieces of the computation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph
from klinesync.factor.indicator_names import parse_indicators
from klinesync.factor.plugin import AnyFactor, Event, Factor, FactorSettings, Upstream
from klinesync.factor.registry import load_factors
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.registry import load_overlays
from klinesync.pipelines import factor_states, ingest_pipeline, ledger_step
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import RETRY, LedgerStep, Progress, no_ledger
from klinesync.pipelines.watchdog import TookTooLong, Watchdog
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from support.pauses import no_pause
from support.thorough import examples

R = TypeVar("R")
_Pipeline: TypeAlias = tuple[IngestPipeline, asyncio.Event]
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTES = 160
INDICATORS = parse_indicators("EMA(3)")


class AboveAverage(Factor[int]):
    """Counts closes above a moving average: a factor that depends on an indicator."""

    name = "above_average"
    label = "Above average"
    depends_on = ("ema_3",)
    state_type = int

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        values: Any = upstream["ema_3"].state
        if not candle.close > values["ema_3"]:
            return state, ()
        return state + 1, [{"visible_time": candle.time, "count": state + 1, "average": values["ema_3"]}]


class Fragile(Factor[int]):
    """A factor that fails while `failing`, and never returns while `hanging`."""

    name = "fragile"
    label = "Fragile"
    state_type = int
    failing = False
    hanging = False

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        while self.hanging:
            pass
        if self.failing:
            raise ArithmeticError("told to fail")
        return state + 1, ()


def make_step(
    *more: AnyFactor, max_candles: int = 2000, watchdog: Watchdog | None = None, retry: Backoff = RETRY
) -> LedgerStep:
    built_in = load_factors(FactorSettings(pivot_window_major=3, pivot_window_minor=1))
    factors = FactorGraph([*built_in, AboveAverage(), *more], [indicator.name for indicator in INDICATORS])
    overlays = OverlayGraph(load_overlays(), factors.names)
    if watchdog is None:
        return LedgerStep(factors, overlays, INDICATORS, max_candles=max_candles, retry=retry)
    return LedgerStep(factors, overlays, INDICATORS, max_candles=max_candles, guard=watchdog, retry=retry)


def walk(seed: int, minutes: int = MINUTES) -> list[Candle]:
    """A random walk in coarse steps, with plateaus and ties."""
    rng, price, candles = random.Random(seed), 50, []
    for minute in range(minutes):
        close = max(1, price + rng.choice((-3, -2, -1, 0, 1, 2, 3)))
        high, low = max(price, close) + rng.randint(0, 2), max(0.5, min(price, close) - rng.randint(0, 2))
        candles.append(Candle(60 * minute, float(price), float(high), float(low), float(close), 1.0))
        price = close
    return candles


def change(store: CandleStore, step: LedgerStep, rows: Sequence[Candle], now_s: float = 0.0) -> None:
    applied = store.write(BTC, rows, Origin("test", 0))
    with store.savepoint():
        step.advance(store, [applied], now_s)


def change_together(store: CandleStore, step: LedgerStep, submissions: Sequence[Sequence[Candle]]) -> None:
    """Several submissions of one series in one transaction."""
    changes = [store.write(BTC, rows, Origin("test", 0)) for rows in submissions]
    step.advance(store, changes, 0.0)


async def catch_up(database: InThreadSqliteDatabase, step: LedgerStep, now_s: float = 0.0) -> int:
    """Advance in pieces until the ledger is at the head; returns their number."""
    pieces = 0
    while (series := step.due(now_s)) is not None:
        await database.write(lambda store, series=series: step.catch_up(store, series, now_s))  # type: ignore[misc]
        pieces += 1
        assert pieces < 1000
    return pieces


def ledger_of(store: CandleStore, step: LedgerStep) -> dict[str, Any]:
    """All parts of a ledger that are compared."""
    ledger = store.ledger.get(BTC)
    head = store.head(BTC)
    assert ledger is not None
    assert (ledger.factor_head, ledger.overlay_head) == (head, head)
    drawings = store.ledger.drawings(BTC, 0, 1 << 40)
    assert [drawing.version_id for drawing in drawings] == list(range(1, ledger.version_id + 1))
    times = [candle.time for candle in store.newest(BTC, 1_000_000)]
    return {
        "fingerprint": ledger.fingerprint,
        "version_id": ledger.version_id,
        "events": store.ledger.events(BTC, 0, 1 << 40),
        "drawings": drawings,
        "states": {time: step.states.at(store, BTC, time) for time in times[::7] + times[-1:]},
    }


async def expected(rows: Sequence[Candle], step: LedgerStep) -> dict[str, Any]:
    """The ledger after candles are written one by one, in order."""
    with TemporaryDirectory() as folder:
        async with InThreadSqliteDatabase(Path(folder) / "store.sqlite", pause=no_pause) as database:
            for row in rows:
                await database.write(lambda store, row=row: change(store, step, [row]))  # type: ignore[misc]
            return await database.read(lambda store: ledger_of(store, step))


@pytest.fixture(autouse=True)
def few_candles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints every few candles, so that a short history has many."""
    monkeypatch.setattr(factor_states, "CHECKPOINT_CANDLES", 8)
    monkeypatch.setattr(factor_states, "KEPT_CHECKPOINTS", 3)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, MINUTES - 1), st.integers(1, 40)),
        st.tuples(st.just("correct"), st.integers(0, MINUTES - 1), st.integers(1, 3)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
        st.tuples(st.just("roll back"), st.integers(0, MINUTES - 1), st.integers(1, 40)),
        st.tuples(st.just("catch up"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 50), steps=STEPS, max_candles=st.sampled_from([5, 30, 2000]))
async def test_the_ledger_is_a_function_of_the_stored_candles(
    seed: int, steps: list[tuple[str, int, int]], max_candles: int
) -> None:
    truth = walk(seed)
    model: dict[int, Candle] = {}
    step = make_step(max_candles=max_candles)
    with TemporaryDirectory() as folder:
        async with InThreadSqliteDatabase(Path(folder) / "store.sqlite", pause=no_pause) as database:
            for kind, minute, count in [*steps, ("write", 0, MINUTES // 2)]:
                rows = truth[minute : minute + count]
                if kind == "correct":
                    rows = [one._replace(high=one.high + count, volume=2.0) for one in truth[minute : minute + 1]]
                if kind in ("write", "correct"):
                    await database.write(lambda store, rows=rows, step=step: change(store, step, rows))  # type: ignore[misc]
                    model.update((row.time, row) for row in rows)
                elif kind == "roll back":

                    def fail(store: CandleStore, rows: Sequence[Candle] = rows, step: LedgerStep = step) -> None:
                        change(store, step, rows)
                        raise StoreError("the disk is full")

                    with pytest.raises(StoreError):
                        await database.write(fail)
                elif kind == "restart":
                    step = make_step(max_candles=max_candles)
                    await database.read(step.look_for_lags)
                else:
                    await catch_up(database, step)
            await database.read(step.look_for_lags)
            await catch_up(database, step)
            found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected([model[time] for time in sorted(model)], make_step())


async def test_a_ledger_of_other_parameters_is_recomputed_and_readers_are_told(tmp_path: Path) -> None:
    rows = walk(1)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = make_step()
        await database.write(lambda store: change(store, step, rows))
        before = await database.read(lambda store: store.ledger.get(BTC))
        again = make_step(Fragile(), max_candles=20)
        await database.read(again.look_for_lags)
        assert list(again.behind()) == [BTC]
        pieces = await catch_up(database, again)
        assert pieces >= len(rows) / 20
        after = await database.read(lambda store: store.ledger.get(BTC))
        assert before is not None
        assert after is not None
        assert (after.epoch, after.fingerprint != before.fingerprint) == (before.epoch + 1, True)
        assert after.record_id > before.record_id
        found = await database.read(lambda store: ledger_of(store, again))
    assert found == await expected(rows, make_step(Fragile()))


async def test_a_failing_factor_costs_no_candle_and_is_suspended_after_repeated_failures(tmp_path: Path) -> None:
    rows = walk(2)
    fragile = Fragile()
    step = make_step(fragile)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:

        async def head() -> tuple[int | None, int | None]:
            ledger = await database.read(lambda store: store.ledger.get(BTC))
            return await database.read(lambda store: store.head(BTC)), ledger and ledger.factor_head

        await database.write(lambda store: change(store, step, rows[:50]))
        assert await head() == (rows[49].time, rows[49].time)
        fragile.failing = True
        await database.write(lambda store: change(store, step, rows[50:51]))
        assert await head() == (rows[50].time, rows[49].time)
        lag = step.lag(BTC)
        assert lag is not None
        assert "told to fail" in lag.reason

        fragile.failing = False
        assert step.due(lag.due_s - 0.1) is None
        await catch_up(database, step, lag.due_s)
        assert await head() == (rows[50].time, rows[50].time)
        assert step.behind() == {}
        assert await database.read(lambda store: ledger_of(store, step)) == await expected(
            rows[:51], make_step(Fragile())
        )

        fragile.failing = True
        for at in range(51, 51 + ledger_step.MAX_FAULTS):
            assert "fragile" not in step.suspended
            await database.write(lambda store, at=at: change(store, step, rows[at : at + 1]))  # type: ignore[misc]
        assert "told to fail" in step.suspended["fragile"]
        assert step.faults["fragile"] == ledger_step.MAX_FAULTS + 1
        assert await head() == (rows[55].time, rows[55].time)
        await database.write(lambda store: change(store, step, rows[56:80]))
        assert await head() == (rows[79].time, rows[79].time)
        found = await database.read(lambda store: ledger_of(store, step))

        fragile.failing = False
        mended = make_step(fragile)
        await database.read(mended.look_for_lags)
        await catch_up(database, mended)
        whole = await database.read(lambda store: ledger_of(store, mended))
    assert found == await expected(rows[:80], make_step())
    assert whole == await expected(rows[:80], make_step(Fragile()))


async def test_a_factor_that_never_returns_is_interrupted_and_suspended(tmp_path: Path) -> None:
    rows = walk(3)
    fragile = Fragile()
    step = make_step(fragile, watchdog=Watchdog(limit_s=0.05))
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        fragile.hanging = True
        for at in range(ledger_step.MAX_TIMEOUTS):
            await database.write(lambda store, at=at: change(store, step, rows[at : at + 1]))  # type: ignore[misc]
        assert "TookTooLong" in step.suspended["fragile"]
        ledger = await database.read(lambda store: store.ledger.get(BTC))
        assert ledger is not None
        assert ledger.factor_head == rows[1].time


async def test_a_candle_after_a_postponed_advance_waits_for_the_advance(tmp_path: Path) -> None:
    rows = walk(6)
    step = make_step(max_candles=5)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        for first, end in ((0, 4), (4, 14), (14, 15)):
            await database.write(lambda store, rows=rows[first:end]: change(store, step, rows))  # type: ignore[misc]
        await catch_up(database, step)
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows[:15], make_step())


async def test_ledgers_are_redone_for_roundings_that_are_not_published(tmp_path: Path) -> None:
    """The roll-up replaces a native candle whose volume was rounded differently."""
    rows = walk(7)
    step = make_step()
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: change(store, step, rows))
        rows[40] = rows[40]._replace(close=rows[40].high, volume=1.0 + 2**-50)

        def rounded(store: CandleStore) -> None:
            applied = store.write(BTC, rows[40:41], Origin("test", 0))
            step.advance(store, [replace(applied, revised=frozenset())], 0.0)

        await database.write(rounded)
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows, make_step())


class TradesCounted(Factor[int]):
    """Counts trades: a factor that reads order flow."""

    name = "trades_counted"
    label = "Trades counted"
    state_type = int
    reads_flow = True

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        return state + (candle.trades or 0), ()


async def test_order_flow_that_a_command_fills_in_is_computed_at_the_next_start(tmp_path: Path) -> None:
    """The command does not compute factors itself."""
    rows = walk(8)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: change(store, make_step(TradesCounted()), rows))
        rows[40] = rows[40]._replace(trades=5)
        await database.write(lambda store: change(store, no_ledger(reads_flow=True), rows[40:41]))
        step = make_step(TradesCounted())
        await database.read(step.look_for_lags)
        await catch_up(database, step)
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows, make_step(TradesCounted()))


async def test_order_flow_costs_no_ledger_of_factors_that_do_not_read_it(tmp_path: Path) -> None:
    rows = walk(8)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = make_step()
        await database.write(lambda store: change(store, step, rows))
        before = await database.read(lambda store: store.ledger.get(BTC))
        for one in (step, no_ledger()):
            rows[40] = rows[40]._replace(trades=5, quote_volume=None if one is step else 1.0)
            await database.write(lambda store, one=one: change(store, one, rows[40:41]))  # type: ignore[misc]
        assert await database.read(lambda store: store.ledger.get(BTC)) == before


async def test_a_lag_ends_when_the_store_shows_the_ledger_at_the_head(tmp_path: Path) -> None:
    rows = walk(8)
    step = make_step(max_candles=5)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: change(store, step, rows[:8]))

        def fail(store: CandleStore) -> None:
            for _ in range(2):
                step.catch_up(store, BTC, 0.0)
            raise StoreError("the disk is full")

        with pytest.raises(StoreError):
            await database.write(fail)
        assert list(step.behind()) == [BTC]
        await catch_up(database, step)
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows[:8], make_step())


async def test_a_series_that_was_never_stored_does_not_lag(tmp_path: Path) -> None:
    step = make_step(max_candles=5)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:

        def fail(store: CandleStore) -> None:
            change(store, step, walk(9)[:8])
            raise StoreError("the disk is full")

        with pytest.raises(StoreError):
            await database.write(fail)
        assert await catch_up(database, step) <= 1
        assert step.behind() == {}


class ReadsOnceInVain(InThreadSqliteDatabase):
    """A store whose first read fails."""

    failed = False

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        if not self.failed:
            self.failed = True
            raise StoreError("the disk is on fire")
        return await super().read(look)


@asynccontextmanager
async def pipeline_of(database: InThreadSqliteDatabase, step: LedgerStep) -> AsyncIterator[_Pipeline]:
    """A running pipeline, and an event that is set when a ledger is up to date again."""
    up_to_date = asyncio.Event()

    def tell(progress: Progress) -> None:
        if not progress.left:
            up_to_date.set()

    pipeline = IngestPipeline(database, DerivedStep(BTC.timeframe, []), step, lambda _: None, lambda: 0.0, tell=tell)
    task = asyncio.create_task(pipeline.run())
    try:
        async with asyncio.timeout(60):
            yield pipeline, up_to_date
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_after_a_defect_the_ledger_is_rewound_and_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = walk(10)
    step = make_step(retry=Backoff(0.01, 60.0))
    fold, failures = step.states.fold, [AssertionError("in the batch"), AssertionError("in the catch-up")]

    def broken(*what: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return fold(*what)

    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        async with pipeline_of(database, step) as (pipeline, up_to_date):
            await pipeline.submit(BTC, rows, "http")
            monkeypatch.setattr(step.states, "fold", broken)
            rows[30] = rows[30]._replace(high=rows[30].high + 5)
            await pipeline.submit(BTC, rows[30:31], "http")
            ledger = await database.read(lambda store: store.ledger.get(BTC))
            assert ledger is not None
            assert (ledger.epoch, ledger.factor_head) == (1, rows[29].time)
            lag = step.lag(BTC)
            assert lag is not None
            assert "in the batch" in lag.reason
            await up_to_date.wait()
        assert step.behind() == {}
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows, make_step())


async def test_a_failed_look_for_lags_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_pipeline, "CATCH_UP_RETRY_S", 0.01)
    rows = walk(11)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: change(store, make_step(max_candles=5), rows))
    step = make_step(max_candles=5)
    async with ReadsOnceInVain(tmp_path / "store.sqlite", pause=no_pause) as again:
        async with pipeline_of(again, step) as (_, up_to_date):
            await up_to_date.wait()
        found = await again.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows, make_step())


@pytest.mark.parametrize("meanwhile", [ledger_step.no_ledger, lambda: make_step(Fragile())], ids=["none", "others"])
@pytest.mark.parametrize("earlier", [0, 3, 120])
async def test_a_service_with_other_factors_or_none_rewinds_contradicted_ledgers(
    tmp_path: Path, earlier: int, meanwhile: Callable[[], LedgerStep]
) -> None:
    """A service of another fingerprint may end before it recomputes; then the ledger has our fingerprint again without
    ever having had the other."""
    rows = walk(4)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = make_step()
        await database.write(lambda store: change(store, step, rows))
        other = rows[earlier]._replace(high=rows[earlier].high + 9)
        await database.write(lambda store: change(store, meanwhile(), [other]))
        again = make_step()
        await database.read(again.look_for_lags)
        await catch_up(database, again)
        found = await database.read(lambda store: ledger_of(store, again))
    rows[earlier] = other
    assert found == await expected(rows, make_step())


async def test_the_watchdog_interrupts_neither_code_in_time_nor_later_code() -> None:
    watchdog = Watchdog(limit_s=0.02)
    made: list[int] = []
    count: Callable[[], None] = lambda: made.append(sum(range(1000)))  # noqa: E731
    for _ in range(300):
        with watchdog:
            count()
    assert len(made) == 300
    outcome: Mapping[str, int] = {"after": sum(range(1_000_000))}
    assert outcome["after"]


@pytest.mark.parametrize("cut", [1, 30, 64, 120, 159])
async def test_after_a_trim_the_remaining_candles_are_computed_as_before(tmp_path: Path, cut: int) -> None:
    def structure() -> LedgerStep:
        # Without indicators: their values change at the edge, because of the candles that they look back on.
        factors = FactorGraph(load_factors(FactorSettings(pivot_window_major=3, pivot_window_minor=1)))
        return LedgerStep(factors, OverlayGraph(load_overlays(), factors.names))

    rows = walk(5)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = structure()
        await database.write(lambda store: change(store, step, rows[:-10]))
        before = 60 * cut if cut < 150 else rows[-11].time

        def trim(store: CandleStore) -> None:
            step.trim(store, BTC, before)
            store.trim(BTC, before)

        await database.write(trim)
        other = rows[-20]._replace(volume=5.0)
        if other.time >= before:
            await database.write(lambda store: change(store, structure(), [other]))
            rows[-20] = other
        await database.write(lambda store: change(store, structure(), rows[-10:]))

        def look(store: CandleStore) -> None:
            left = [row.time for row in rows if row.time >= before]
            assert [row.time for row in store.newest(BTC, 1000)] == left
            for time in left:
                assert step.states.at(store, BTC, time) == states[time]

        states: dict[int, object] = {}
        step_of_all = structure()
        async with InThreadSqliteDatabase(tmp_path / "whole.sqlite", pause=no_pause) as whole:
            for row in rows:
                await whole.write(lambda store, row=row: change(store, step_of_all, [row]))  # type: ignore[misc]
                states[row.time] = await whole.read(
                    lambda store, row=row: step_of_all.states.at(store, BTC, row.time)  # type: ignore[misc]
                )
        await database.read(look)


async def test_candles_of_one_transaction_are_advanced_over_in_the_order_of_time(
    tmp_path: Path,
) -> None:
    rows = walk(6)
    step = make_step()
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: change(store, step, rows[:50]))
        wrong = rows[52]._replace(high=rows[52].high + 5)
        together = [rows[53:60], [wrong], rows[50:52], [rows[52]]]
        await database.write(lambda store: change_together(store, step, together))
        found = await database.read(lambda store: ledger_of(store, step))
    assert found == await expected(rows[:60], make_step())


async def test_lagging_overlays_are_found_at_the_next_start(tmp_path: Path) -> None:
    rows = walk(7)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = make_step()
        await database.write(lambda store: change(store, step, rows))

        def lag(store: CandleStore) -> None:
            ledger = store.ledger.get(BTC)
            assert ledger is not None
            time = rows[100].time
            version_id = store.ledger.newest_version(BTC, time + 1)
            drawings = store.ledger.drawings(BTC, 0, time + 1)
            events = store.ledger.events(BTC, 0, 1 << 40)
            checkpoint = store.ledger.checkpoint(BTC, 1 << 40)
            assert checkpoint is not None
            store.ledger.rewind(BTC, 0)
            store.ledger.add_events(BTC, events)
            store.ledger.add_drawings(BTC, drawings)
            store.ledger.add_checkpoint(BTC, *checkpoint, kept=True)
            store.ledger.put(BTC, ledger._replace(overlay_head=time, version_id=version_id))

        await database.write(lag)
        again = make_step()
        await database.read(again.look_for_lags)
        assert list(again.behind()) == [BTC]
        await catch_up(database, again)
        found = await database.read(lambda store: store.ledger.drawings(BTC, 0, 1 << 40))
    assert found == (await expected(rows, make_step()))["drawings"]


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_plugin_that_swallows_the_timeout_is_interrupted_again_and_later_code_is_not(
    ends: str,
) -> None:
    watchdog = Watchdog(limit_s=0.05)

    def stubborn() -> None:
        try:
            while True:
                pass
        except TookTooLong:
            if ends == "raises":
                raise ArithmeticError("of its own") from None

    with pytest.raises(TookTooLong if ends == "returns" else ArithmeticError), watchdog:
        stubborn()
    with watchdog:
        made = sum(range(1000))
    assert made == 499_500
