"""The validation of a candle."""

from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import (
    MAX_TRADES,
    MAX_VALUE,
    Candle,
    Forming,
    agree,
    check_candle,
    check_not_future,
    check_values,
    replacing,
)
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import DAY_S, MAX_DAYS, Timeframe
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase

MINUTE = Timeframe.parse("1m")
SOUND = Candle(1700000040, 1.0, 2.0, 0.5, 1.5, 10.0)


def test_a_sound_candle_gets_in() -> None:
    assert check_candle(SOUND, MINUTE) is SOUND
    flat = Candle(1700000040, 1.0, 1.0, 1.0, 1.0, 0.0)
    assert check_candle(flat, MINUTE) is flat


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"open": nan}, "open is nan"),
        ({"high": inf}, "high is inf"),
        ({"low": -inf}, "low is -inf"),
        ({"close": nan}, "close is nan"),
        ({"volume": nan}, "volume is nan"),
        ({"volume": inf}, "volume is inf"),
        ({"volume": -1.0}, "volume -1.0 is negative"),
        ({"high": 0.4}, "high 0.4 is below low 0.5"),
        ({"open": 2.5}, "high 2.0 is below open 2.5"),
        ({"close": 2.5}, "high 2.0 is below close 2.5"),
        ({"open": 0.1}, "low 0.5 is above open 0.1"),
        ({"close": 0.1}, "low 0.5 is above close 0.1"),
        ({"time": 1700000041}, "not on the 1m grid; the candle it falls into opens at 2023-11-14 22:14 UTC"),
        ({"time": -60}, "outside"),
        ({"time": 10**18}, "outside"),
        ({"high": 1e101}, "high 1e.101 is larger than 1e.100"),
        ({"low": -1e101}, "low is -1e.101; a price is greater than 0"),
        ({"low": 0.0}, "low is 0.0; a price is greater than 0"),
        ({"low": -0.0}, "low is -0.0; a price is greater than 0"),
        ({"open": -1.0, "low": -1.0}, "open is -1.0; a price is greater than 0"),
        ({"close": 0.0, "low": 0.0}, "low is 0.0; a price is greater than 0"),
        ({"volume": 1e101}, "volume 1e.101 is larger"),
        ({"trades": 10**400}, "trades is larger than 10000000000"),
    ],
)
def test_a_bad_candle_is_refused_with_the_value_and_the_reason(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(BadCandle, match=reason):
        check_candle(SOUND._replace(**changes), MINUTE)  # type: ignore[arg-type]  # by name


@given(st.tuples(st.integers(0, 100).map(lambda at: at * 60), *[st.floats()] * 5))
def test_what_gets_in_is_finite_ordered_and_on_the_grid(values: tuple[int, float, float, float, float, float]) -> None:
    candle = Candle(*values)
    sound = (
        all(abs(value) <= MAX_VALUE for value in values[1:])
        and 0 < candle.low <= min(candle.open, candle.close)
        and max(candle.open, candle.close) <= candle.high
        and candle.volume >= 0
    )
    if sound:
        assert check_candle(candle, MINUTE) is candle
        assert check_values(candle) is candle
    else:
        with pytest.raises(BadCandle):
            check_candle(candle, MINUTE)
        with pytest.raises(BadCandle):
            check_values(candle)


def test_a_candle_that_has_not_ended_is_in_the_future() -> None:
    assert check_not_future(SOUND, MINUTE, SOUND.time + 60) is SOUND
    with pytest.raises(BadCandle, match="after the exchange's now"):
        check_not_future(SOUND, MINUTE, SOUND.time + 59)


def test_the_trades_of_the_longest_derived_candle_are_an_integer_of_json() -> None:
    assert MAX_TRADES * MAX_DAYS * DAY_S // 60 < 2**53


@pytest.mark.parametrize(
    ("stored", "arriving"),
    [
        ({"taker_buy_quote_volume": 8.0}, {"quote_volume": 5.0}),
        ({"quote_volume": 5.0, "trades": 3}, {"taker_buy_quote_volume": 8.0}),
    ],
)
def test_order_flow_is_not_kept_beside_what_it_contradicts(
    stored: dict[str, float], arriving: dict[str, float]
) -> None:
    now = SOUND._replace(**arriving)  # type: ignore[arg-type]  # by name
    was = SOUND._replace(**stored)  # type: ignore[arg-type]
    assert replacing(was, now) is now
    assert not agree(was, now), "a revision, not an enrichment"


async def test_a_forming_candle_cannot_be_written(tmp_path: Path) -> None:
    """mypy refuses the line as well: otherwise it would report an unused ignore."""
    series = SeriesId.parse("binance:spot:BTC/USDT:1m")
    forming = Forming(series, SOUND)
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        with pytest.raises(AttributeError):
            await database.write(lambda store: store.write(series, [forming], Origin("stream", 0)))  # type: ignore[list-item]
        assert await database.read(lambda store: store.head(series)) is None
