"""Generated candles: valid, the same in every run, and any minute without computing the others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle, check_candle
from klinesync.core.timeframe import Timeframe
from klinesync.sim.dice import unit, units
from klinesync.sim.generator import GeneratedTape, generated_tapes
from klinesync.sim.symbol import has_digits
from klinesync.sim.tape import Market, Rows
from support.thorough import examples

FIRST_S = 1_780_012_800
MINUTE = Timeframe.parse("1m")
MARKET_NAMES: tuple[Market, Market] = ("spot", "futures")
MARKETS = st.sampled_from(MARKET_NAMES)


def same(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.columns(), other.columns(), strict=True))


def fresh(market: Market, rank: int, seed: int) -> GeneratedTape:
    return generated_tapes(market, rank + 1, seed, FIRST_S)[rank][1]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_single_dice_and_dice_in_bulk_are_the_same(key: int, index: list[int]) -> None:
    bulk = units(key, np.array(index, np.int64))
    assert bulk.tolist() == [unit(key, one) for one in index]
    assert ((bulk >= 0) & (bulk < 1)).all()


@settings(max_examples=examples(60), deadline=None)
@given(
    MARKETS,
    st.integers(0, 40),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(-100, 5000), st.integers(0, 400)), min_size=1, max_size=6),
)
def test_a_minute_is_the_same_however_it_is_asked_for(
    market: Market, rank: int, seed: int, asked: list[tuple[int, int]]
) -> None:
    whole = fresh(market, rank, seed).minutes(FIRST_S, FIRST_S + 5400 * 60)
    tape = fresh(market, rank, seed)
    for start, length in asked:
        start_s, end_s = FIRST_S + start * 60, FIRST_S + (start + length) * 60
        assert same(tape.minutes(start_s, end_s), whole.between(start_s, end_s))


@settings(max_examples=examples(40), deadline=None)
@given(MARKETS, st.integers(0, 60), st.integers(0, 10**6))
def test_generated_candles_are_sound_and_continue_each_other(market: Market, rank: int, seed: int) -> None:
    symbol, tape = generated_tapes(market, rank + 1, seed, FIRST_S)[rank]
    rows = tape.minutes(FIRST_S, FIRST_S + 3000 * 60)
    assert np.array_equal(rows.time, FIRST_S + 60 * np.arange(3000))
    for row in rows.rows():
        check_candle(Candle(row.time, row.open, row.high, row.low, row.close, row.volume), MINUTE)
    assert (rows.low > 0).all()
    assert np.array_equal(rows.open[1:], rows.close[:-1])
    assert np.array_equal(rows.first_id[1:], rows.first_id[:-1] + rows.trades[:-1])
    assert rows.first_id[0] > 0
    few, single = rows.trades < 4, rows.trades < 2
    assert (rows.open[single] == rows.close[single]).all(), "one trade has one price"
    assert np.array_equal(rows.high[few], np.maximum(rows.open, rows.close)[few]), "two or three trades: no wicks"
    assert np.array_equal(rows.low[few], np.minimum(rows.open, rows.close)[few])
    untraded = rows.trades == 0
    assert np.array_equal(untraded, rows.volume == 0)
    assert (rows.high[untraded] == rows.low[untraded]).all()
    assert (rows.taker_volume <= rows.volume).all()
    assert (rows.taker_quote <= rows.quote).all()
    for column in (rows.open, rows.high, rows.low, rows.close):
        assert has_digits(column, symbol.price_digits)
    for column in (rows.volume, rows.taker_volume):
        assert has_digits(column, symbol.volume_digits)


def test_busy_symbols_trade_every_minute_and_quiet_ones_often_do_not() -> None:
    tapes = {symbol.name: tape for symbol, tape in generated_tapes("spot", 20, 1, FIRST_S)}
    busy = tapes["BTCUSDT"].minutes(FIRST_S, FIRST_S + 86_400)
    quiet = tapes["TRXUSDT"].minutes(FIRST_S, FIRST_S + 86_400)
    assert (busy.trades > 0).all()
    assert 0.1 < (quiet.trades == 0).mean() < 0.95
    assert busy.trades.max() > 5 * np.median(busy.trades)


def test_another_seed_is_another_market_and_bitcoin_and_ether_are_always_listed() -> None:
    one, other = (generated_tapes("futures", 1, seed, FIRST_S) for seed in (1, 2))
    assert [symbol.name for symbol, _ in one] == ["BTCUSDT", "ETHUSDT"]
    assert not same(one[0][1].minutes(FIRST_S, FIRST_S + 6000), other[0][1].minutes(FIRST_S, FIRST_S + 6000))
    assert len({symbol.name for symbol, _ in generated_tapes("spot", 1000, 1, FIRST_S)}) == 1000


def test_futures_follow_the_prices_of_spot() -> None:
    spot, futures = (
        {
            symbol.name: tape.minutes(FIRST_S, FIRST_S + 86_400)
            for symbol, tape in generated_tapes(market, 12, 1, FIRST_S)
        }
        for market in MARKET_NAMES
    )
    for name in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "SUIUSDT"):
        basis = futures[name].close / spot[name].close - 1
        assert (np.abs(basis) < 0.005).all()
        assert not np.array_equal(futures[name].trades, spot[name].trades)


def test_nothing_exists_before_the_listing() -> None:
    tape = fresh("spot", 0, 1)
    assert len(tape.minutes(FIRST_S - 6000, FIRST_S)) == 0
    assert tape.minutes(0, FIRST_S + 60).time.tolist() == [FIRST_S]
