"""Binance's REST and streams, decoded: any bytes lead to one error at most; a bad item loses only itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import (
    BadAnswer,
    decode_klines,
    decode_listings,
    decode_problem,
    decode_tickers,
    decode_time,
)
from klinesync.exchanges.binance.frames import BadFrame, Stream, parse_frame
from klinesync.exchanges.binance.symbols import SymbolTable, coin_margined
from klinesync.exchanges.exchange import Listing

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
STREAMS = {"btcusdt@kline_1m": Stream("BTCUSDT", SERIES)}
ROW = [1_700_000_040_000, "1", "2", "0.5", "1.5", "10", 1_700_000_099_999, "0", 1, "0", "0", "0"]
SYMBOL = {
    "symbol": "BTCUSDT",
    "pair": "BTCUSDT",
    "contractType": "PERPETUAL",
    "deliveryDate": 4_133_404_800_000,
    "onboardDate": 1_569_398_400_000,
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "marginAsset": "USDT",
}
TICKER = {"symbol": "BTCUSDT", "lastPrice": "1", "quoteVolume": "2", "priceChangePercent": "3"}
FRAME = {
    "stream": "btcusdt@kline_1m",
    "data": {
        "E": 1_700_000_050_000,
        "k": {
            "t": 1_700_000_040_000,
            "s": "BTCUSDT",
            "i": "1m",
            "o": "1",
            "h": "2",
            "l": "1",
            "c": "1",
            "v": "3",
            "x": False,
        },
    },
}
DECODERS: list[Callable[[bytes], object]] = [
    decode_time,
    decode_klines,
    decode_tickers,
    lambda body: decode_listings("spot", body),
    lambda body: decode_listings("futures", body),
]
WHOLE = [
    json.dumps(answer).encode()
    for answer in ({"serverTime": 1}, [ROW, ROW], [TICKER], {"symbols": [SYMBOL]}, FRAME, {"code": -1, "msg": "x"})
]
PIECES = [b"1e999", b"9" * 40, b"9" * 400, b"9" * 5_000, b"NaN", b"null", b"[", b"\xed\xa0"]
DEEP = [opening * 20_000 + closing * 20_000 for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b"[", b""))]


def check(body: bytes) -> None:
    """Every decoder returns its values, or raises its declared error."""
    for decode in DECODERS:
        with suppress(BadAnswer):
            decode(body)
    assert isinstance(decode_problem(body), str)
    with suppress(BadFrame, BadCandle):
        parse_frame(body, STREAMS)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_are_the_one_declared_error(body: bytes) -> None:
    check(body)


@pytest.mark.parametrize("number", [b"9" * 400, b"-" + b"9" * 400, b"9" * 5_000, b"1" + b"0" * 22, b"1e999", b"NaN"])
@pytest.mark.parametrize("whole", WHOLE)
def test_numbers_without_end_are_the_one_declared_error_wherever_they_are(number: bytes, whole: bytes) -> None:
    for place in re.finditer(rb'"[^"]*"|-?\d+', whole):
        check(whole[: place.start()] + number + whole[place.end() :])
        check(whole[: place.start()] + b'"' + number + b'"' + whole[place.end() :])


@given(st.sampled_from(WHOLE), st.data())
def test_answers_with_bytes_changed_are_read_or_are_the_one_declared_error(whole: bytes, data: st.DataObject) -> None:
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        size = data.draw(st.integers(0, 3))
        body[at : at + size] = data.draw(st.binary(max_size=4) | st.sampled_from(PIECES))
        if not body:
            break
    check(bytes(body))


@pytest.mark.parametrize("deep", DEEP)
@pytest.mark.parametrize("whole", WHOLE)
def test_nesting_without_end_is_the_one_declared_error_wherever_it_is(deep: bytes, whole: bytes) -> None:
    check(deep)
    check(whole[:-1] + b',"nobody reads this":' + deep + b"}")
    check(b"[" + deep + b"," + whole + b"]")
    for number in re.finditer(rb'"BTCUSDT"|"1m"|\b1\b', whole):
        check(whole[: number.start()] + deep + whole[number.end() :])


# JSON has no NaN and no infinity: an answer that contains one is invalid as a whole.
odd_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@given(st.sampled_from([SYMBOL, TICKER]), st.data())
def test_an_odd_symbol_or_ticker_costs_itself_alone(good: dict[str, object], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(good)))
    odd = {name: value for name, value in good.items() if name != field}
    if data.draw(st.booleans()):
        odd[field] = data.draw(odd_values)
    other = good | {"symbol": "ETHUSDT", "baseAsset": "ETH", "pair": "ETHUSDT"}
    if good is TICKER:
        tickers, left_out = decode_tickers(json.dumps([good, odd, other]).encode())
        assert [ticker.symbol_id for ticker in (tickers[0], tickers[-1])] == ["BTCUSDT", "ETHUSDT"]
        assert len(tickers) + left_out.count == 3
    else:
        body = json.dumps({"symbols": [good, odd, other]}).encode()
        for market in ("spot", "futures"):
            listings, left_out = decode_listings(market, body)
            assert [one.symbol_id for one in (listings[0], listings[-1])] == ["BTCUSDT", "ETHUSDT"]
            assert len(listings) + left_out.count == 3
            assert bool(left_out.count) == bool(left_out.first)


def named(*symbols: dict[str, object]) -> list[str]:
    return [listing.symbol for listing in decode_listings("futures", json.dumps({"symbols": symbols}).encode())[0]]


def test_a_contract_is_named_by_what_the_exchange_says_it_is() -> None:
    quarterly = SYMBOL | {
        "symbol": "BTCUSDT_250328",
        "contractType": "CURRENT_QUARTER",
        "deliveryDate": 1_743_148_800_000,
    }
    assert named(quarterly) == ["BTC/USDT:USDT-250328"]
    assert named(quarterly | {"contractType": "NEXT_FORTNIGHT"}) == ["BTC/USDT:USDT-250328"], "a type that may come"
    assert named(quarterly | {"contractType": "", "status": "SETTLING"}) == ["BTC/USDT:USDT-250328"]
    assert named(quarterly | {"deliveryDate": None}) == [], "when?"
    assert named(SYMBOL) == ["BTC/USDT"]
    assert named(SYMBOL | {"contractType": "TRADIFI_PERPETUAL", "baseAsset": "XAU", "symbol": "XAUUSDT"}) == [
        "XAU/USDT"
    ]
    assert named(SYMBOL | {"contractType": "EVERLASTING"}) == ["BTC/USDT"], "a type that may come"
    assert named(SYMBOL | {"contractType": "", "status": "PENDING_TRADING"}) == ["BTC/USDT"]
    assert named(SYMBOL | {"contractType": "PERPETUAL DELIVERING", "deliveryDate": 1_743_148_800_000}) == ["BTC/USDT"]
    assert named(SYMBOL | {"marginAsset": "USDC"}) == ["BTC/USDT:USDC"]
    assert named(SYMBOL | {"symbol": "币安人生USDT", "pair": "币安人生USDT", "baseAsset": "币安人生"}) == [
        "币安人生/USDT"
    ]


assets = st.sampled_from(["BTC", "BT", "BTCUSD", "C", "CUSDT", "USDT", "T", "USD", "1000PEPE"])
listings_of_a_market = st.lists(
    st.builds(
        lambda base, quote, day, suffix: Listing(
            f"{base}/{quote}" + (f":{quote}-{day}" if day else ""),
            base + quote + (f"_{day}" if day else "") + suffix,
            base,
            quote,
            "TRADING",
            kind="delivery" if day else "perpetual",
        ),
        assets,
        assets,
        st.sampled_from(["", "250328", "250627"]),
        st.sampled_from(["", "", "", "_OLD"]),
    ),
    max_size=12,
)


@given(listings_of_a_market)
def test_names_map_one_to_one_there_and_back(listings: list[Listing]) -> None:
    table = SymbolTable(listings)
    for name, listing in table.by_name.items():
        assert table.symbol(listing.symbol_id) == name
        assert table.symbol_id(name) == listing.symbol_id
    ids = [listing.symbol_id.lower() for listing in table.by_name.values()]
    assert len(set(ids)) == len(ids), "streams are named in lower case"
    assert len(table.by_name) + len(table.ambiguous) == len(listings)
    assert SymbolTable(reversed(listings)).by_name == table.by_name, "whatever their order"


def test_a_name_that_is_not_listed_is_nobodys() -> None:
    table = SymbolTable([Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", "TRADING")])
    assert table.symbol_id("BT/CUSDT") is None
    assert table.symbol_id("BTC/USDT:USDT-250328") is None
    assert table.symbol("BTCUSDT_250328") is None


@pytest.mark.parametrize(
    ("symbol", "refused"),
    [
        ("BTC/USD:BTC", True),
        ("BTC/USD:BTC-250328", True),
        ("BTC/USDT:USDT-250328", False),
        ("BTC/USDT", False),
        ("ETH/BTC", False),
    ],
)
def test_coin_margined_contracts_are_refused_with_a_sentence(symbol: str, refused: bool) -> None:
    why = coin_margined(SeriesId.parse(f"binance:futures:{symbol}:1m"))
    assert (why is not None) == refused
    assert why is None or "coin-margined" in why


def test_the_recorded_lists_are_read_whole_and_their_names_are_unique(real_data: Path) -> None:
    for market, count, dated in (("spot", 1695, 0), ("futures", 122, 2)):
        text = (real_data / "rest" / f"{market}_exchangeInfo_recorded.txt").read_text()
        body = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
        listings, left_out = decode_listings(market, json.dumps(body).encode())
        table = SymbolTable(listings)
        assert (len(table.by_name), left_out.count, table.ambiguous) == (count, 0, [])
        assert sum(listing.kind == "delivery" for listing in listings) == dated
    assert table.symbol("BTCUSDT_210924") == "BTC/USDT:USDT-210924"
