"""Names of series."""

import pytest

from klinesync.core.errors import BadSeriesId
from klinesync.core.series_id import SeriesId


@pytest.mark.parametrize(
    "text",
    [
        "binance:spot:BTC/USDT:1m",
        "binance:futures:BTC/USDT:1m",
        "binance:futures:BTC/USD:BTC:1d",
        "okx:futures:BTC/USDT:USDT-261225:1h",
        "binance:spot:1000SATS/USDT:1M",
        "binance:spot:币安人生/USDT:1m",
    ],
)
def test_a_name_is_written_as_it_was_read(text: str) -> None:
    assert str(SeriesId.parse(text)) == text


def test_a_linear_contract_is_one_series_in_both_spellings() -> None:
    short, long = "binance:futures:BTC/USDT:1m", "binance:futures:BTC/USDT:USDT:1m"
    assert SeriesId.parse(short) == SeriesId.parse(long)
    assert str(SeriesId.parse(long)) == short


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "four parts"),
        ("binance:spot:BTC/USDT", "four parts"),
        ("binance:spot:BTC/USDT:a:b:1m", "four parts"),
        (":spot:BTC/USDT:1m", "no exchange"),
        ("Binance:spot:BTC/USDT:1m", "no exchange in lower case"),
        ("binance:margin:BTC/USDT:1m", "market 'margin'"),
        ("binance:spot:BTCUSDT:1m", "has symbol 'BTCUSDT' in place of BASE/QUOTE; it is written exchange:market"),
        ("binance:spot:BTC/:1m", "BASE/QUOTE"),
        ("binance:spot:BTC /USDT:1m", "BASE/QUOTE"),
        ("binance:spot:BTC/USDT\n:1m", "BASE/QUOTE"),
        ("binance:spot:../../x:1m", "BASE/QUOTE"),
        ("binance:spot:BTC/USDT:USDT:1m", "only futures"),
        ("binance:spot:BTC/USDT:7m", "unknown timeframe"),
        ("binance:spot:" + "A" * 100 + "/USDT:1m", "longer than"),
    ],
)
def test_what_names_no_series_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadSeriesId, match=reason):
        SeriesId.parse(text)


def test_a_candle_is_named_by_series_and_open_time() -> None:
    series = SeriesId.parse("binance:spot:BTC/USDT:1m")
    assert series.candle_id(1700000040) == "binance:spot:BTC/USDT:1m:1700000040"
