"""The exchange's answers at a moment, against a slow and simple model."""

from __future__ import annotations

from math import isclose

from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import ROUNDING, Candle, agree, check_candle
from klinesync.core.derived import fold
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.exchanges.binance.decode import decode_klines
from klinesync.sim import tape as tapes
from klinesync.sim.exchange import Grid, Listing
from klinesync.sim.generator import generated_tapes
from klinesync.sim.recorded import RecordedTape
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Market, Row, join, rows_of
from klinesync.sim.wire import kline_rows
from support.thorough import examples

FIRST_S = 1_780_012_800 + 7 * 60
GRIDS = st.builds(
    Grid,
    st.sampled_from(
        [Timeframe.parse(code) for code in ("1m", "3m", "5m", "15m", "30m", "1h", "4h", "1d", "3d", "1w", "1M")]
    ),
    st.sampled_from((0, 0, 8 * 3600, -5 * 3600 - 1800)),
)


@st.composite
def minutes(draw: st.DrawFn) -> list[Row]:
    """Up to a few hours of minutes, some untraded, some missing."""
    present = draw(st.lists(st.sampled_from((0, 1, 1, 1, 40, 400)), min_size=1, max_size=60))
    rows: list[Row] = []
    time, price, first_id = FIRST_S, 1000, 1
    for step in present:
        time += 60 * max(1, step)
        trades = draw(st.integers(0, 5)) if step else 0
        close = max(2, price + draw(st.integers(-9, 9))) if trades >= 2 else price
        high, low = (max(price, close) + (trades > 3), min(price, close) - (trades > 3))
        volume = draw(st.integers(1, 10**6)) / 1e5 if trades else 0.0
        rows.append(
            Row(time, price / 100, high / 100, low / 100, close / 100, volume, round(volume * 10, 8), trades,
                round(volume / 2, 8), round(volume * 5, 8), first_id)
        )  # fmt: skip
        price, first_id = close, first_id + trades
    return rows


def listing_of(market: Market, rows: list[Row]) -> Listing:
    return Listing(Symbol(market, "XYZUSDT", "XYZ", "USDT", 2, 5), RecordedTape(rows_of(rows), 0), 3)


def model(listing: Listing, rows: list[Row], grid: Grid, now_ms: int) -> dict[int, Row]:
    """The candles at `now_ms` by open time."""
    candles: dict[int, Row] = {}
    for row in rows:
        if (row.time + 60) * 1000 > now_ms:
            continue
        open_s = grid.floor(row.time)
        before = candles.get(open_s)
        candles[open_s] = row._replace(time=open_s) if before is None else join(before, row)
    running = listing.running(now_ms)
    open_s = grid.floor(now_ms // 1000)
    if running is not None and (open_s not in candles or running.trades):
        before = candles.get(open_s)
        candles[open_s] = running._replace(time=open_s) if before is None else join(before, running)
    if listing.symbol.market == "futures" and open_s in candles and candles[open_s].trades == 0:
        del candles[open_s]
    return candles


def alike(one: Row, other: Row) -> bool:
    return all(isclose(a, b, rel_tol=1e-12, abs_tol=1e-8) for a, b in zip(one, other, strict=True))


@settings(max_examples=examples(100), deadline=None)
@given(
    st.sampled_from(("spot", "futures")),
    minutes(),
    GRIDS,
    st.floats(-0.1, 1.2),
    st.none() | st.floats(-0.2, 1.3),
    st.none() | st.floats(-0.2, 1.3),
    st.integers(1, 30),
)
def test_klines_answers_the_oldest_from_the_start_on_or_else_the_newest_up_to_the_end(
    market: Market, rows: list[Row], grid: Grid, now: float, start: float | None, end: float | None, limit: int
) -> None:
    listing = listing_of(market, rows)

    def moment(share: float) -> int:
        return int((rows[0].time + (rows[-1].time + 60 - rows[0].time) * share) * 1000)

    now_ms = moment(now)
    start_ms, end_ms = (None if share is None else moment(share) for share in (start, end))
    truth = model(listing, rows, grid, now_ms)
    wanted = [
        candle
        for open_s, candle in sorted(truth.items())
        if (start_ms is None or open_s * 1000 >= start_ms) and (end_ms is None or open_s * 1000 <= end_ms)
    ]
    wanted = wanted[:limit] if start_ms is not None else wanted[-limit:]
    shown = listing.klines(grid, start_ms, end_ms, limit, now_ms).rows()
    assert [row.time for row in shown] == [row.time for row in wanted]
    assert all(alike(a, b) for a, b in zip(shown, wanted, strict=True))


@settings(deadline=None)
@given(minutes(), GRIDS)
def test_a_folded_candle_does_not_depend_on_how_its_minutes_were_added_up(rows: list[Row], grid: Grid) -> None:
    columns = rows_of(rows)
    folded = tapes.fold(columns, grid.floors(columns.time)).rows()
    joined: dict[int, Row] = {}
    for row in rows:
        open_s = grid.floor(row.time)
        before = joined.get(open_s)
        joined[open_s] = row._replace(time=open_s) if before is None else join(before, row)
    assert folded == list(joined.values())


@settings(deadline=None)
@given(minutes(), st.floats(0.0, 1.0))
def test_the_day_is_what_was_traded_from_an_hour_on_until_now(rows: list[Row], at: float) -> None:
    listing = listing_of("spot", rows)
    listing.day(rows[0].time * 1000)
    now_ms = int((rows[0].time + (rows[-1].time + 60 - rows[0].time) * at) * 1000)
    day = listing.day(now_ms)
    from_s = (now_ms // 3_600_000 - 23) * 3600
    total: Row | None = None
    for row in rows:
        if row.time >= from_s and (row.time + 60) * 1000 <= now_ms:
            total = join(total, row)
    running = listing.running(now_ms)
    if running is not None and (total is None or running.trades):
        total = join(total, running)
    if total is None:
        assert day is None
    else:
        assert day is not None
        assert alike(day._replace(time=0), total._replace(time=0))


@settings(max_examples=examples(30), deadline=None)
@given(st.sampled_from(("spot", "futures")), st.integers(0, 30), st.integers(0, 10**6))
def test_minutes_of_rest_roll_up_to_its_own_longer_candles_in_all_nine_values(
    market: Market, rank: int, seed: int
) -> None:
    symbol, tape = generated_tapes(market, rank + 1, seed, FIRST_S - FIRST_S % DAY_S)[rank]
    listing = Listing(symbol, tape, seed)
    start_s = FIRST_S - FIRST_S % DAY_S + DAY_S
    end_s, now_ms = start_s + 6 * 3600, (start_s + DAY_S) * 1000

    def answered(code: str) -> list[Candle]:
        grid = Grid(Timeframe.parse(code))
        answer = decode_klines(kline_rows(listing, grid, listing.candles(grid, start_s, end_s, now_ms)))
        assert not answer.flow_left_out.count
        return [check_candle(Candle(row[0] // 1000, *row[1:]), grid.timeframe) for row in answer.rows]

    parts = answered("1m")
    assert all(None not in candle for candle in parts)
    for code in ("5m", "15m", "1h"):
        parts, own = fold(Timeframe.parse(code), parts), answered(code)
        assert [(part.time, *part[1:5], part.trades) for part in parts] == [
            (one.time, *one[1:5], one.trades) for one in own
        ]
        assert all(agree(part, other, ROUNDING) for part, other in zip(parts, own, strict=True))
