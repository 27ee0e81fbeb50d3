"""The table of venues: the properties of each, and how many series it allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.installed import Ccxt
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import USUAL_TURNS
from klinesync.exchanges.ccxt.turn_queue import Kind
from klinesync.exchanges.ccxt.venues import FIT_SHARE, PACED_SHARE, VENUES, Polling, polling, venue
from klinesync.exchanges.registry import ExchangeRegistry
from support.fake_exchange import context
from support.timeframes import TIMEFRAMES

NINE = ("okx", "bybit", "kraken", "coinbase", "kucoin", "gate", "hyperliquid", "bitget", "krakenfutures")
MINUTE = Timeframe.parse("1m")
FRAMES = TIMEFRAMES
NOW_S = 1_700_000_000


def _no_maker(_name: str) -> Ccxt:
    raise AssertionError("nobody asks the exchange")


def series(name: str, market: str = "spot", frame: str = "1m") -> SeriesId:
    return SeriesId.parse(f"{name}:{market}:BTC/USDT:{frame}")


def test_nine_venues_are_in_the_table_and_any_other_is_taken_as_ccxt_describes_it() -> None:
    assert tuple(VENUES) == NINE
    other = venue("elsewhere")
    assert (other.name, other.oldest(series("elsewhere"), NOW_S)) == ("elsewhere", None)
    assert polling(other, "spot", None) is None, "nothing is known of it before ccxt is asked"
    assert polling(other, "spot", 0.5) == Polling(other, 0.5)


def test_a_request_for_candles_of_hyperliquid_weighs_20_and_1_for_each_60_of_them() -> None:
    one = VENUES["hyperliquid"]
    assert [one.weight(Kind.ROWS, "futures", rows) for rows in (0, 59, 60, 5000)] == [20, 20, 21, 103]
    assert one.weight(Kind.TIME) == 2
    assert one.request_s("futures") == pytest.approx(20 / (1200 * PACED_SHARE / 60))


@pytest.mark.parametrize(
    ("name", "market", "depth"),
    [("kraken", "spot", 720), ("gate", "spot", 10_000), ("hyperliquid", "futures", 5000), ("okx", "spot", None)],
)
@pytest.mark.parametrize("frame", ["1m", "1h"])
def test_the_depth_is_the_venues_in_candles_of_any_length(
    name: str, market: str, depth: int | None, frame: str
) -> None:
    one = series(name, market, frame)
    oldest = venue(name).oldest(one, NOW_S)
    if depth is None:
        assert oldest is None
        return
    assert oldest is not None
    held = one.timeframe.count(oldest, one.timeframe.next(one.timeframe.floor(NOW_S)))
    assert depth - 5 < held < depth, "some candles end while a request waits"
    assert venue(name).depth_sentence(one) == f"{name} keeps the newest {depth:,} candles of {frame} only"


@pytest.mark.parametrize("code", ["1m", "5m", "1h"])
@pytest.mark.parametrize("name", NINE)
def test_as_many_series_as_fit_take_their_share_and_one_more_is_too_many(name: str, code: str) -> None:
    frame = Timeframe.parse(code)
    for market in VENUES[name].rows:
        cost = polling(VENUES[name], market)
        assert cost is not None
        fit = cost.fit(frame)
        assert cost.load([frame] * fit) <= 1.0 + 1e-9
        assert cost.load([frame] * (fit + 1)) > 1.0
        assert fit * cost.needs(frame) <= FIT_SHARE * cost.per_minute + 1e-9


def test_series_that_do_not_fit_are_told_with_how_many_do() -> None:
    cost = polling(VENUES["hyperliquid"], "futures")
    assert cost is not None
    assert cost.fit(MINUTE) == 19
    those = [SeriesId.parse(f"hyperliquid:futures:S{number}/USDC:1m") for number in range(20)]
    others = [series("okx"), series("elsewhere"), *(series("kraken", frame="1h") for _ in range(900))]
    registry = ExchangeRegistry([CcxtEntry(makers=dict.fromkeys((*NINE, "elsewhere"), _no_maker))], context())
    (sentence,) = registry.excess([*others, *those])
    takes = "hyperliquid allows about 45 requests for candles a minute, and a series of 1m takes 2"
    assert sentence == f"{takes}: 19 series fit, and 20 are too many"
    assert registry.excess(those[:19]) == []
    half = [SeriesId.parse(f"hyperliquid:spot:S{number}/USDC:1m") for number in range(10)]
    assert len(registry.excess([*half, *those[:10]])) == 1, "both markets share the budget of an address"


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.sampled_from([2.0, 20.0, 103.0, 120.0])), min_size=1, max_size=400))
def test_a_paced_budget_is_never_exceeded_in_any_minute_and_a_request_waits_no_longer_than_for_it(
    wishes: list[tuple[float, float]],
) -> None:
    pace, now_s = Pace(PACED_SHARE * 1200 / 60), 1000.0
    spent: list[tuple[float, float]] = []
    for pause_s, weight in wishes:
        now_s += pause_s
        now_s += pace.held_s(now_s)
        assert pace.held_s(now_s) < 1e-6
        pace.spend(weight, now_s)
        spent.append((now_s, weight))
        assert sum(one for at_s, one in spent if now_s - at_s < 60.0) <= 1200.0
    assert Pace().held_s(0.0) == 0.0


def test_a_quiet_venue_lets_a_burst_pass_at_once() -> None:
    pace = Pace(15.0)
    for _ in range(7):
        assert pace.held_s(1000.0) == 0.0
        pace.spend(20.0, 1000.0)
    assert pace.held_s(1000.0) == 0.0
    pace.spend(20.0, 1000.0)
    assert pace.held_s(1000.0) == pytest.approx(160 / 15 - USUAL_TURNS.burst_s)
