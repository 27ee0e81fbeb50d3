"""Outputs of factors are a function of the stored candles alone: read from a checkpoint, live at the close, after a
restart, a correction, and after a fill of order flow, which leaves heads, epoch, events and drawings as they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.factor.flow import flow
from klinesync.factor.graph import FactorGraph
from klinesync.factor.indicator_names import parse_indicators
from klinesync.factor.plugin import AnyFactor, Event, Factor, FactorSettings, Upstream
from klinesync.factor.structure import structure
from klinesync.market_data import verify_ledger
from klinesync.market_data.factor_services import FactorReader
from klinesync.market_data.findings import SeriesAudit
from klinesync.market_data.verify_ledger import LedgerVerifier
from klinesync.overlay.delta import Cursor
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Point
from klinesync.overlay.structure import PivotOverlay
from klinesync.pipelines import factor_states
from klinesync.pipelines.ledger_step import LedgerStep, no_ledger
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Derivation, DerivationOrigin, Ledger, Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.thorough import examples

Lines: TypeAlias = Mapping[str, Mapping[int, float]]

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
NAMES = ("cvd", "vwap", "taker_ratio")
INDICATORS = parse_indicators("EMA(3)")
COUNT = 150
# Of a timeframe: the candles before the first midnight.
BEFORE_MIDNIGHT = {"1m": 60, "8h": 1, "1d": 0, "3d": 0, "1M": 0}
EVER = 1 << 40


async def no_pause() -> None:
    pass


async def known(_: SeriesId) -> None:
    pass


class AboveAverage(Factor[float]):
    """The sum of ratios, for closes above an average: a factor with an output that depends on order flow through
    another factor and on an indicator, and that never forgets."""

    name = "above_average"
    label = "Above average"
    depends_on = ("ema_3", "taker_ratio")
    has_events = False
    outputs = ("sum", "last")
    state_type = float

    def seed(self) -> float:
        return 0.0

    def advance(self, state: float, candle: Candle, upstream: Upstream) -> tuple[float, Sequence[Event]]:
        values = upstream["ema_3"].state
        assert isinstance(values, dict)
        ratio = getattr(upstream["taker_ratio"].state, "ratio")  # noqa: B009  # the type of the state is internal
        return (state + (ratio or 0.0) if candle.close > values["ema_3"] else state), ()

    def numbers(self, state: float) -> Sequence[float | None]:
        return (None, state if state > 1e9 else None)


class Bought(msgspec.Struct, frozen=True):
    """`known`: whether no part of `total` is unknown."""

    total: float = 0.0
    known: bool = True


class Cumulative(Factor[Bought]):
    """What takers bought since the first candle: unknown from the first unknown candle on."""

    name = "cumulative"
    label = "Cumulative"
    reads_flow = True
    has_events = False
    outputs = ("cumulative",)
    state_type = Bought

    def seed(self) -> Bought:
        return Bought()

    def advance(self, state: Bought, candle: Candle, upstream: Upstream) -> tuple[Bought, Sequence[Event]]:
        bought = candle.taker_buy_volume
        return Bought(state.total + (bought or 0.0), state.known and bought is not None), ()

    def numbers(self, state: Bought) -> Sequence[float | None]:
        return (state.total if state.known else None,)


class UnknownIsZero(Cumulative):
    """Breaks the rule: an unknown value counts as 0, so that numbers that were told change."""

    name = "unknown_is_zero"

    def numbers(self, state: Bought) -> Sequence[float | None]:
        return (state.total,)


class LargeBuys(Factor[int]):
    """Its events depend on order flow."""

    name = "large_buys"
    label = "Large buys"
    reads_flow = True
    state_type = int

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        if (candle.taker_buy_volume or 0.0) < candle.volume / 2:
            return state, ()
        return state + 1, [{"visible_time": candle.time, "count": state + 1}]


def make_step(*more: AnyFactor, max_candles: int = 2000) -> LedgerStep:
    settings = FactorSettings(3, 1, NAMES)
    factors = FactorGraph([*structure(settings), *flow(settings), *more], ["ema_3"])
    overlays = OverlayGraph([PivotOverlay()], factors.names)
    return LedgerStep(factors, overlays, INDICATORS, max_candles=max_candles)


def series_of(timeframe: str) -> SeriesId:
    return BTC.with_timeframe(Timeframe.parse(timeframe))


def market(seed: int, timeframe: str = "1m", count: int = COUNT) -> list[Candle]:
    """A random walk over some days; some candles have no volume."""
    rng, price, rows = random.Random(seed), 50.0, []
    frame = Timeframe.parse(timeframe)
    time = frame.shift(frame.floor(20_000 * DAY_S), -BEFORE_MIDNIGHT[timeframe])
    for _ in range(count):
        close = max(1.0, price + rng.randint(-30, 30) / 7)
        high, low = max(price, close) + rng.random(), max(0.5, min(price, close) - rng.random())
        volume = rng.choice((0.0, rng.random(), 100 * rng.random(), 1e7 * rng.random()))
        bought = volume * rng.random()
        rows.append(Candle(time, price, high, low, close, volume, volume * price, 7, bought, bought * price))
        price, time = close, frame.next(time)
    return rows


def bare(candle: Candle) -> Candle:
    return Candle(*candle.ohlcv)


def expected(candles: Sequence[Candle]) -> Lines:
    """Each value from the candles of its day alone, by the definitions."""
    lines: dict[str, dict[int, float]] = {name: {} for name in NAMES}
    for at, candle in enumerate(candles):
        day = [one for one in candles[: at + 1] if one.time // DAY_S == candle.time // DAY_S]
        bought = [one.taker_buy_volume for one in day]
        if None not in bought:
            deltas = [2 * (one or 0.0) - of.volume for one, of in zip(bought, day, strict=True)]
            lines["cvd"][candle.time] = sum(deltas[1:], deltas[0])
        weighted = [(one.high + one.low + one.close) / 3 * one.volume for one in day]
        volume = sum(one.volume for one in day)
        if volume:
            lines["vwap"][candle.time] = sum(weighted) / volume
        if candle.volume and candle.taker_buy_volume is not None:
            lines["taker_ratio"][candle.time] = candle.taker_buy_volume / candle.volume
    return lines


def as_lines(points: Mapping[str, Sequence[Point]]) -> Lines:
    return {name: {point.time: point.value for point in line} for name, line in points.items() if name in NAMES}


def within(lines: Lines, times: Sequence[int]) -> Lines:
    return {name: {time: line[time] for time in times if time in line} for name, line in lines.items()}


def write(
    store: CandleStore, step: LedgerStep, rows: Sequence[Candle], series: SeriesId = BTC, now_s: float = 0.0
) -> Applied:
    applied = store.write(series, rows, Origin("test", 0))
    with store.savepoint():
        step.advance(store, [applied], now_s)
    return applied


async def catch_up(database: InThreadSqliteDatabase, step: LedgerStep) -> None:
    for _ in range(1000):
        series = step.due(0.0)
        if series is None:
            return
        await database.write(lambda store, series=series: step.catch_up(store, series, 0.0))  # type: ignore[misc]
    pytest.fail("the ledger never catches up")


def stored(store: CandleStore, series: SeriesId = BTC) -> list[Candle]:
    return store.newest(series, 1_000_000)


def reader(database: InThreadSqliteDatabase, step: LedgerStep) -> FactorReader:
    return FactorReader(database, step, INDICATORS, known)


async def check_readers(
    database: InThreadSqliteDatabase, step: LedgerStep, series: SeriesId, rng: random.Random
) -> None:
    """A page, a slice of a window and slices of single candles have the values of the definitions, and the states are
    those of a fold from the first candle on."""
    candles = await database.read(lambda store: stored(store, series))
    if not candles:
        return
    lines, times = expected(candles), [candle.time for candle in candles]
    last, window = rng.randrange(len(candles)), rng.randint(1, len(candles))
    first = max(last + 1 - window, 0)
    read = reader(database, step)
    drawn = await read.draw(series, times[last], window, Cursor(), None)
    assert as_lines(drawn.series_points) == within(lines, times[first : last + 1])
    slices: Any = await read.slices(series, times[last], window)
    after: Any = await read.slices_after(series, times[first] - 1, 5)
    for name in NAMES:
        snapshot = slices["snapshots"][name]
        points = {point["time"]: point["value"] for point in snapshot["history"][name]}
        assert points == within(lines, times[first : last + 1])[name]
        assert snapshot["head"][name] == lines[name].get(times[last])
        assert [one["snapshots"][name]["head"][name] for one in after["slices"]] == [
            lines[name].get(time) for time in times[first : first + 5]
        ]
    states = step.factors.seed()
    for at, candle in enumerate(candles):
        outside = await database.read(
            lambda store, at=at: factor_states.values_at(store, series, INDICATORS, candles[at : at + 1])  # type: ignore[misc]
        )
        states, _ = step.factors.advance_many(states, [candle], outside)
        if at % 7 == 0 or at == len(candles) - 1:
            found = await database.read(lambda store, time=candle.time: step.states.at(store, series, time))  # type: ignore[misc]
            assert found == states


@pytest.fixture(autouse=True)
def few_candles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints every few candles, so that a short history has many."""
    monkeypatch.setattr(factor_states, "CHECKPOINT_CANDLES", 8)
    monkeypatch.setattr(factor_states, "KEPT_CHECKPOINTS", 3)


SPANS = st.tuples(st.integers(0, COUNT - 1), st.integers(1, 40))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "write bare", "fill", "roll back", "fill and write"]), SPANS),
        st.tuples(st.sampled_from(["correct", "restart", "catch up", "command"]), SPANS),
    ),
    max_size=12,
)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 50),
    steps=STEPS,
    max_candles=st.sampled_from([5, 30, 2000]),
    timeframe=st.sampled_from(sorted(BEFORE_MIDNIGHT)),
    plugins=st.booleans(),
)
@example(seed=0, steps=[("write", (77, 9)), ("write", (36, 40))], max_candles=2000, timeframe="1M", plugins=True)
async def test_outputs_and_states_are_a_function_of_the_stored_candles(
    seed: int, steps: list[tuple[str, tuple[int, int]]], max_candles: int, timeframe: str, plugins: bool
) -> None:
    series, truth, rng = series_of(timeframe), market(seed, timeframe), random.Random(seed)
    more = (AboveAverage(), Cumulative()) if plugins else ()
    step = make_step(*more, max_candles=max_candles)
    told: tuple[Ledger, list[object], list[object]] | None = None
    with TemporaryDirectory() as folder:
        async with InThreadSqliteDatabase(Path(folder) / "store.sqlite", pause=no_pause) as database:
            for kind, (first, count) in [("write bare", (0, COUNT // 2)), *steps]:
                rows = truth[first : first + count]
                if kind == "restart":
                    step = make_step(*more, max_candles=max_candles)
                    await database.read(step.look_for_lags)
                elif kind == "catch up":
                    await catch_up(database, step)
                elif kind == "write bare":
                    rows = [bare(row) for row in rows]
                    await database.write(lambda store, rows=rows, step=step: write(store, step, rows, series))  # type: ignore[misc]
                elif kind == "correct":
                    rows = [row._replace(high=row.high + count, volume=2 * row.volume) for row in rows[:1]]
                    await database.write(lambda store, rows=rows, step=step: write(store, step, rows, series))  # type: ignore[misc]
                elif kind == "fill and write":
                    # A submission of each kind, in one transaction.
                    present = {candle.time for candle in await database.read(lambda store: stored(store, series))}
                    parts = [[row for row in rows if (row.time in present) == old] for old in (True, False)]

                    def both(store: CandleStore, step: LedgerStep = step, parts: list[list[Candle]] = parts) -> None:
                        step.advance(store, [store.write(series, part, Origin("test", 0)) for part in parts], 0.0)

                    await database.write(both)
                elif kind == "command":
                    # Only candles that are stored, and a process of its own.
                    present = {candle.time for candle in await database.read(lambda store: stored(store, series))}
                    rows = [row for row in rows if row.time in present]
                    command = no_ledger(redoes=make_step(*more))
                    await database.write(lambda store, rows=rows, step=command: write(store, step, rows, series))  # type: ignore[misc]
                    step = make_step(*more, max_candles=max_candles)
                    await database.read(step.look_for_lags)
                elif kind == "roll back":

                    def fail(store: CandleStore, rows: Sequence[Candle] = rows, step: LedgerStep = step) -> None:
                        write(store, step, rows, series)
                        raise StoreError("the disk is full")

                    with pytest.raises(StoreError):
                        await database.write(fail)
                else:
                    await database.write(lambda store, rows=rows, step=step: write(store, step, rows, series))  # type: ignore[misc]
                told = await check_nothing_is_taken_back(database, series, told)
                if not step.behind():
                    await check_readers(database, step, series, rng)
            await database.read(step.look_for_lags)
            await catch_up(database, step)
            await check_readers(database, step, series, rng)


async def check_nothing_is_taken_back(
    database: InThreadSqliteDatabase, series: SeriesId, before: tuple[Ledger, list[object], list[object]] | None
) -> tuple[Ledger, list[object], list[object]] | None:
    """Within an epoch heads go on, and events and drawings that could be read stay."""

    def look(store: CandleStore) -> tuple[Ledger, list[object], list[object]] | None:
        ledger = store.ledger.get(series)
        events, drawings = store.ledger.events(series, 0, EVER), store.ledger.drawings(series, 0, EVER)
        return None if ledger is None else (ledger, list(events), list(drawings))

    now = await database.read(look)
    if before is not None and now is not None and before[0].epoch == now[0].epoch:
        assert (now[0].factor_head or -1) >= (before[0].factor_head or -1)
        assert now[0].record_id >= before[0].record_id
        for was, found in zip(before[1:], now[1:], strict=True):
            assert found[: len(was)] == was
    return now


async def ledger_of(database: InThreadSqliteDatabase) -> Ledger:
    ledger = await database.read(lambda store: store.ledger.get(BTC))
    assert ledger is not None
    return ledger


@pytest.mark.parametrize("warm", [True, False], ids=["with states in memory", "after a restart"])
async def test_order_flow_that_is_filled_in_keeps_the_epoch_and_the_heads(tmp_path: Path, warm: bool) -> None:
    rows = market(1)
    step = make_step(max_candles=20)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: write(store, step, [bare(row) for row in rows]))
        await catch_up(database, step)
        before = await ledger_of(database)
        if not warm:
            step = make_step(max_candles=20)
        await database.write(lambda store: write(store, step, rows[30:]))
        after = await ledger_of(database)
        assert after == before._replace(record_id=after.record_id)
        assert after.record_id > before.record_id
        assert not step.behind()
        await check_readers(database, step, BTC, random.Random(1))
        # Those who follow records are told; the others keep what they had: that there is no value yet.
        poll: Any = await reader(database, step).poll(BTC, before.record_id, 2000)
        assert len(poll["records"]) == 1
        cursor = Cursor(before.version_id, rows[-1].time)
        drawn = await reader(database, step).draw(BTC, None, 2000, cursor, before.epoch)
        assert all(line == [] for line in drawn.series_points.values())


async def test_a_redo_of_states_ends_where_they_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One candle of a day costs that day, not the days since."""
    rows = market(2, count=60 + 1440 + 300)
    step = make_step()
    folded: list[int] = []
    advance_many = FactorGraph.advance_many

    def counted(graph: FactorGraph, states: object, candles: Sequence[Candle], outside: object = None) -> object:
        folded.append(len(candles))
        return advance_many(graph, states, candles, outside)  # type: ignore[arg-type]

    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        lacking = [bare(row) if at == 30 else row for at, row in enumerate(rows)]
        await database.write(lambda store: write(store, step, lacking))
        monkeypatch.setattr(FactorGraph, "advance_many", counted)
        await database.write(lambda store: write(store, step, rows[30:31]))
        assert sum(folded) < 30 + 4 * 24  # the rest of the day, and to a kept checkpoint behind it
        monkeypatch.undo()
        assert (await ledger_of(database)).epoch == 0


@pytest.mark.parametrize("more", [0, 1])
async def test_a_redo_that_takes_too_long_for_a_transaction_raises_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    rows = market(3)
    monkeypatch.setattr(factor_states, "MAX_REDONE_CANDLES", COUNT - more)
    step = make_step(Cumulative())
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: write(store, step, [bare(rows[0]), *rows[1:]]))
        await database.write(lambda store: write(store, step, rows[:1]))
        assert (await ledger_of(database)).epoch == more
        await check_readers(database, step, BTC, random.Random(3))


@pytest.mark.parametrize("plugin", [UnknownIsZero(), LargeBuys()], ids=["numbers", "events"])
async def test_what_was_told_and_is_another_value_now_raises_the_epoch(tmp_path: Path, plugin: AnyFactor) -> None:
    rows = market(4)
    step = make_step(plugin)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: write(store, step, [bare(row) for row in rows]))
        await database.write(lambda store: write(store, step, rows[10:12]))
        assert (await ledger_of(database)).epoch == 1
        await check_readers(database, step, BTC, random.Random(4))


async def test_a_derived_candle_that_loses_its_order_flow_raises_the_epoch(tmp_path: Path) -> None:
    """A part without order flow came late: what was a number is none any more."""
    rows = market(5)
    step = make_step()
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: write(store, step, rows))

        def lose(store: CandleStore) -> None:
            store.set_derivation(BTC, Derivation(series_of("1m"), DerivationOrigin.RECOMPUTED))
            lost = bare(rows[40])
            store.write(BTC, [lost._replace(volume=lost.volume + 1)], Origin("test", 0))
            store.write(BTC, [lost], Origin("test", 0))
            step.advance(
                store,
                [Applied(BTC, (lost,), frozenset(), rounded=frozenset({lost.time}), enriched=frozenset({lost.time}))],
                0.0,
            )

        await database.write(lose)
        assert (await ledger_of(database)).epoch == 1
        await check_readers(database, step, BTC, random.Random(5))


async def test_a_factor_that_fails_at_order_flow_costs_its_ledger_a_rewind(tmp_path: Path) -> None:
    class Failing(Cumulative):
        name = "failing"
        failing = False

        def numbers(self, state: Bought) -> Sequence[float | None]:
            if self.failing and state.total:
                raise ZeroDivisionError("a divisor")
            return super().numbers(state)

    rows, failing = market(6), Failing()
    step = make_step(failing)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        await database.write(lambda store: write(store, step, [bare(row) for row in rows]))
        failing.failing = True
        await database.write(lambda store: write(store, step, rows[40:]))
        lag = step.lag(BTC)
        assert lag is not None
        assert "a divisor" in lag.reason
        ledger = await ledger_of(database)
        assert (ledger.epoch, ledger.factor_head) == (1, rows[39].time)
        failing.failing = False
        await database.write(lambda store: step.catch_up(store, BTC, 1e9))
        await check_readers(database, step, BTC, random.Random(6))


def test_order_flow_that_is_filled_in_behind_the_comparison_of_a_ledger_is_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = market(7), tmp_path / "store.sqlite"

    async def fill(part: Sequence[Candle]) -> None:
        async with InThreadSqliteDatabase(path, pause=no_pause) as database:
            await database.write(lambda store: write(store, make_step(Cumulative()), part))

    asyncio.run(fill([bare(row) for row in rows]))
    monkeypatch.setattr(verify_ledger, "WINDOW_CANDLES", 50)
    filled: list[int] = []

    def meanwhile(audit: SeriesAudit) -> None:
        if len(filled) < 2:
            asyncio.run(fill(rows[len(filled) : len(filled) + 1]))
            filled.append(1)

    def audited() -> dict[str, int]:
        audit = SeriesAudit(BTC)
        with SqliteReader(path) as reader:
            LedgerVerifier(make_step(Cumulative()), INDICATORS).audit(reader, audit, meanwhile)
        return audit.kinds

    assert audited() == {}
    assert len(filled) == 2
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE checkpoint SET states = (SELECT states FROM checkpoint ORDER BY time LIMIT 1)")
    connection.close()
    assert set(audited()) == {"checkpoint_wrong"}
