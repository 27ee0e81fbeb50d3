"""The path of a minute ends exactly in its candle."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.sim.path import MAX_STEPS, MinutePath, PathKey, first_trade_ms
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Row

SYMBOL = Symbol("spot", "BTCUSDT", "BTC", "USDT", 2, 5)
KEY = PathKey(1, SYMBOL)


@st.composite
def traded_minutes(draw: st.DrawFn) -> Row:
    """A minute with at least one trade, with a shape that its number of trades allows."""
    trades = draw(st.one_of(st.integers(1, 6), st.integers(1, 50_000)))
    low, a, b, high = sorted(draw(st.lists(st.integers(1, 10_000_000), min_size=4, max_size=4)))
    open_, close = draw(st.permutations((a, b)))
    if trades == 1:
        low = high = close = open_
    elif trades == 2:
        low, high = min(open_, close), max(open_, close)
    elif trades == 3:
        low = min(open_, close)
    volume = draw(st.integers(1, 10**12))
    taker = draw(st.integers(0, volume))
    time = 60 * draw(st.integers(0, 40_000_000))
    first_id = draw(st.integers(0, 10**10))
    return Row(
        time, open_ / 100, high / 100, low / 100, close / 100, volume / 1e5, volume / 1e3, trades,
        taker / 1e5, taker / 1e3, first_id,
    )  # fmt: skip


def path_of(row: Row) -> MinutePath:
    return MinutePath(row, KEY, SYMBOL.price_digits, SYMBOL.volume_digits)


@settings(deadline=None)
@given(traded_minutes())
def test_the_last_update_of_a_minute_is_its_candle_in_every_value(row: Row) -> None:
    path = path_of(row)
    assert path.states()[-1] == row
    assert path.at(59_999) == row


@settings(deadline=None)
@given(traded_minutes())
def test_updates_stay_inside_the_candle_and_grow_towards_it(row: Row) -> None:
    states = path_of(row).states()
    assert len(states) == min(row.trades, MAX_STEPS)
    previous = states[0]
    for state in states:
        assert row.low <= state.low <= min(state.open, state.close)
        assert max(state.open, state.close) <= state.high <= row.high
        assert (state.time, state.open, state.first_id) == (row.time, row.open, row.first_id)
        assert state.high >= previous.high
        assert state.low <= previous.low
        assert state.volume >= previous.volume
        assert state.quote >= previous.quote
        assert state.taker_volume >= previous.taker_volume
        assert state.taker_quote >= previous.taker_quote
        assert state is previous or state.trades > previous.trades
        previous = state


@settings(deadline=None)
@given(traded_minutes(), st.lists(st.integers(0, 59_999), max_size=8))
def test_what_is_seen_at_a_moment_does_not_depend_on_when_else_one_looked(row: Row, moments: list[int]) -> None:
    path = path_of(row)
    for moment in moments:
        path.at(moment)
    assert [path.at(moment) for moment in moments] == [path_of(row).at(moment) for moment in moments]


@settings(deadline=None)
@given(traded_minutes())
def test_nothing_is_traded_before_the_first_trade_and_something_from_it_on(row: Row) -> None:
    path = path_of(row)
    first_ms = first_trade_ms(KEY, row)
    assert first_ms is not None
    assert path.at(first_ms - 1) is None
    assert path.at(first_ms) is not None
    assert path.next_ms(first_ms - 1) == first_ms


@settings(deadline=None)
@given(traded_minutes(), st.integers(-1, 59_999))
def test_the_next_update_is_the_moment_at_which_something_changes(row: Row, moment: int) -> None:
    path = path_of(row)
    next_ms = path.next_ms(moment)
    if next_ms is None:
        assert path.at(moment) == row
    else:
        assert path.at(next_ms - 1) == path.at(moment)
        assert path.at(next_ms) != path.at(moment)


@settings(deadline=None)
@given(traded_minutes(), st.floats(0, 1e9, allow_subnormal=False))
def test_a_candle_with_odd_decimals_is_met_exactly_too(row: Row, odd: float) -> None:
    row = row._replace(volume=odd, quote=odd * 0.7, taker_volume=odd * 0.3, taker_quote=odd * 0.2)
    assert path_of(row).states()[-1] == row


def test_an_untraded_minute_has_no_updates() -> None:
    row = Row(60, 5.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0, 0.0, 0.0, 7)
    assert first_trade_ms(KEY, row) is None
    assert path_of(row).states() == []
    assert path_of(row).at(59_999) is None
    assert path_of(row).next_ms(0) is None
