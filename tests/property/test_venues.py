"""The table of venues: what is known of each, and how many series fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.ingest.turn_queue import Kind
from klinesync.ingest.venues import FIT_SHARE, VENUES, Polling, polling, venue

NINE = ("okx", "bybit", "kraken", "coinbase", "kucoin", "gate", "hyperliquid", "bitget", "krakenfutures")
MINUTE = Timeframe.parse("1m")
FRAMES = st.sampled_from([Timeframe.parse(code) for code in ("1m", "5m", "1h", "1d", "1w")])
NOW_S = 1_700_000_000


def series(name: str, market: str = "spot", frame: str = "1m") -> SeriesId:
    return SeriesId.parse(f"{name}:{market}:BTC/USDT:{frame}")


def test_nine_venues_are_in_the_table_and_any_other_is_taken_as_ccxt_describes_it() -> None:
    assert tuple(VENUES) == NINE
    other = venue("elsewhere")
    assert (other.name, other.oldest(series("elsewhere"), NOW_S)) == ("elsewhere", None)
    assert polling(other, "spot", None) is None, "nothing is known of it before ccxt is asked"
    assert polling(other, "spot", 0.5) == Polling(other, 0.5)


def test_a_request_for_candles_of_hyperliquid_weighs_20_and_1_for_each_60_of_them() -> None:
    cost = VENUES["hyperliquid"].cost
    assert [cost.of(Kind.ROWS) + cost.of_rows(rows) for rows in (0, 59, 60, 5000)] == [20, 20, 21, 103]
    assert cost.of(Kind.TIME) == 2
    assert VENUES["hyperliquid"].request_s["futures"] * 1200 / 60 == cost.of(Kind.ROWS), "a tail of few candles"


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


@given(st.sampled_from(NINE), FRAMES)
def test_as_many_series_as_fit_take_their_share_and_one_more_is_too_many(name: str, frame: Timeframe) -> None:
    for market in VENUES[name].request_s:
        cost = polling(VENUES[name], market, None)
        assert cost is not None
        fit = cost.fit(frame)
        assert cost.load([frame] * fit) <= 1.0 + 1e-9
        assert cost.load([frame] * (fit + 1)) > 1.0
        assert fit * cost.needs(frame) <= FIT_SHARE * cost.per_minute + 1e-9


def test_a_venue_that_allows_a_request_a_second_has_room_for_two_dozen_series_of_a_minute() -> None:
    cost = polling(VENUES["hyperliquid"], "futures", 0.2)
    assert cost is not None
    assert cost.request_s == 1.0, "ccxt's own limit is wrong there"
    assert cost.fit(MINUTE) == 24
