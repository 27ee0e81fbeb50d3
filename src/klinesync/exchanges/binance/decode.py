"""Decoders of Binance's REST answers. Pure.

Every decoder accepts any bytes and raises only `BadAnswer`. Lists are decoded item by item: an item that cannot be read
is left out and counted, and the others are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import TypeVar

import msgspec

from klinesync.core import decoding
from klinesync.core.candle import MAX_TIME, NO_FLOW
from klinesync.core.series_id import names_series
from klinesync.exchanges.exchange import Listing, Ticker

EXCHANGE = "binance"
Item = TypeVar("Item")

# [open time, open, high, low, close, volume, quote volume, trades, taker-buy volume, taker-buy quote volume], the last
# four None where they are missing or cannot be read.
Row = tuple[
    int, float, float, float, float, float, float | None, int | None, float | None, float | None
]  # fmt: skip
# Number of columns that a row must have, and the columns of its order flow.
_COLUMNS = 6
_FLOW_COLUMNS = slice(7, 11)
# A delivery date from 2100-01-01 (in ms) on marks a contract that is never delivered.
_NEVER_DELIVERED_MS = 4_102_444_800_000
# Most characters of an item that an error quotes.
_MOST_QUOTED_CHARS = 200


class BadAnswer(ValueError):
    """An answer that cannot be understood. The message says why."""


@dataclass(slots=True)
class LeftOut:
    """The number of items of an answer that were left out, and what was wrong with the first one."""

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        """Count one more item."""
        self.count += 1
        self.first = self.first or reason[:_MOST_QUOTED_CHARS]


@dataclass(frozen=True, slots=True)
class Klines:
    """The rows of one answer to klines, in the order of the answer.

    rows: the readable rows.
    times: open times, in ms, of all rows that have one, also of unreadable ones: such a time is not empty.
    count: number of rows of the answer.
    blind: whether a row has no open time; then the answer proves no open time empty.
    left_out: unreadable rows.
    flow_left_out: readable rows whose order flow cannot be read.
    """

    rows: list[Row]
    times: list[int]
    count: int
    blind: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    flow_left_out: LeftOut = field(default_factory=LeftOut)


class _Time(msgspec.Struct):
    serverTime: decoding.Int64  # noqa: N815  # the exchange's name


class _List(msgspec.Struct):
    symbols: list[msgspec.Raw]


class _Spot(msgspec.Struct):
    symbol: str
    status: str
    baseAsset: str  # noqa: N815  # the exchange's name
    quoteAsset: str  # noqa: N815  # the exchange's name


class _Contract(_Spot):
    contractType: str  # noqa: N815  # the exchange's name
    pair: str = ""
    marginAsset: str = ""  # noqa: N815  # the exchange's name
    deliveryDate: int | None = None  # noqa: N815  # the exchange's name
    onboardDate: int | None = None  # noqa: N815  # the exchange's name


class _Ticker(msgspec.Struct):
    symbol: str
    lastPrice: float  # noqa: N815  # the exchange's name
    quoteVolume: float  # noqa: N815  # the exchange's name
    priceChangePercent: float  # noqa: N815  # the exchange's name


class _Problem(msgspec.Struct):
    code: decoding.Int64 = 0
    msg: str = ""


_WholeRow = tuple[
    decoding.Int64,
    float,
    float,
    float,
    float,
    float,
    msgspec.Raw,
    float,
    decoding.Int64,
    float,
    float,
    msgspec.Raw,
]
_time = msgspec.json.Decoder(_Time)
_list = msgspec.json.Decoder(_List)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_spot = msgspec.json.Decoder(_Spot)
_contract = msgspec.json.Decoder(_Contract)
_ticker = msgspec.json.Decoder(_Ticker, strict=False)
_problem = msgspec.json.Decoder(_Problem)
_whole_rows = msgspec.json.Decoder(list[_WholeRow], strict=False)
_number = msgspec.json.Decoder(float, strict=False)
_whole_number = msgspec.json.Decoder(decoding.Int64, strict=False)
_number_or_null: msgspec.json.Decoder[float | None] = msgspec.json.Decoder(float | None, strict=False)
_whole_number_or_null: msgspec.json.Decoder[int | None] = msgspec.json.Decoder(decoding.Int64 | None, strict=False)


def decoded(decoder: msgspec.json.Decoder[Item], data: bytes | str | msgspec.Raw) -> Item:
    """Decode any data. Raises `BadAnswer`."""
    try:
        return decoding.decoded(decoder, data)
    except decoding.Undecodable as error:
        raise BadAnswer(str(error)) from None


def decode_time(body: bytes) -> int:
    """The exchange's time, in ms. Raises `BadAnswer`."""
    return decoded(_time, body).serverTime


def decode_problem(body: bytes) -> str:
    """The code and message of an error's body, or the body itself where it has none, as a part of a sentence."""
    try:
        problem = decoded(_problem, body)
    except BadAnswer:
        return repr(body[:_MOST_QUOTED_CHARS])
    return f"{problem.code} {problem.msg[:_MOST_QUOTED_CHARS]}"


def decode_klines(body: bytes) -> Klines:
    """The rows of klines. Raises `BadAnswer` when the answer is not a list."""
    try:
        rows: list[Row] = [
            (time_ms, open_, high, low, close, volume, quote, trades, taker, taker_quote)
            for time_ms, open_, high, low, close, volume, _, quote, trades, taker, taker_quote, _ in decoded(
                _whole_rows, body
            )
        ]
    except BadAnswer:
        return _klines(decoded(_raw_list, body))
    return Klines(rows, [row[0] for row in rows], len(rows))


def _klines(items: list[msgspec.Raw]) -> Klines:
    """Read row by row: also rows with more columns, or with odd values in columns that are not used."""
    rows: list[Row] = []
    times: list[int] = []
    left_out, flow_left_out = LeftOut(), LeftOut()
    blind = False
    for item in items:
        try:
            time_ms, values, flow = _row(item)
        except BadAnswer as error:
            left_out.add(f"a row without an open time: {error}")
            blind = True
            continue
        times.append(time_ms)
        try:
            open_, high, low, close, volume = (decoded(_number, value) for value in values)
        except BadAnswer as error:
            left_out.add(f"the row of {time_ms}: {error}")
            continue
        quote, trades, taker, taker_quote = _read_flow(time_ms, flow, flow_left_out)
        rows.append((time_ms, open_, high, low, close, volume, quote, trades, taker, taker_quote))
    return Klines(rows, times, len(items), blind, left_out, flow_left_out)


def _row(item: msgspec.Raw) -> tuple[int, list[msgspec.Raw], list[msgspec.Raw]]:
    """The open time of a row, the texts of its prices and volume, and those of its order flow."""
    values = decoded(_raw_list, item)
    if len(values) < _COLUMNS:
        raise BadAnswer(f"it has {len(values)} columns")
    return decoded(_whole_number, values[0]), values[1:_COLUMNS], values[_FLOW_COLUMNS]


def _read_flow(
    time_ms: int, texts: list[msgspec.Raw], left_out: LeftOut
) -> tuple[float | None, int | None, float | None, float | None]:
    """The order flow of a row; `NO_FLOW` where it cannot be read, or where the row has fewer columns."""
    if len(texts) < len(NO_FLOW):
        return NO_FLOW
    quote, trades, taker, taker_quote = texts
    try:
        return (
            decoded(_number_or_null, quote),
            decoded(_whole_number_or_null, trades),
            decoded(_number_or_null, taker),
            decoded(_number_or_null, taker_quote),
        )
    except BadAnswer as error:
        left_out.add(f"the order flow of {time_ms}: {error}")
        return NO_FLOW


def decode_tickers(body: bytes) -> tuple[list[Ticker], LeftOut]:
    """The tickers of the last 24 hours; those with numbers that are not finite are left out. Raises `BadAnswer`."""
    tickers: list[Ticker] = []
    left_out = LeftOut()
    for item in decoded(_raw_list, body):
        try:
            one = decoded(_ticker, item)
        except BadAnswer as error:
            left_out.add(f"{_quoted(item)}: {error}")
            continue
        if isfinite(one.lastPrice) and isfinite(one.quoteVolume) and isfinite(one.priceChangePercent):
            tickers.append(Ticker(one.symbol, one.lastPrice, one.quoteVolume, one.priceChangePercent))
        else:
            left_out.add(f"{_quoted(item)}: a number that is not finite")
    return tickers, left_out


def decode_listings(market: str, body: bytes) -> tuple[list[Listing], LeftOut]:
    """The symbols of `exchangeInfo` under our names, in the exchange's order. Raises `BadAnswer`."""
    read: Callable[[msgspec.Raw], Listing] = _spot_listing if market == "spot" else _contract_listing
    listings: list[Listing] = []
    left_out = LeftOut()
    for item in decoded(_list, body).symbols:
        try:
            listing = read(item)
            _check_name(market, listing)
        except BadAnswer as error:
            left_out.add(f"{_quoted(item)}: {error}")
        else:
            listings.append(listing)
    return listings, left_out


def _spot_listing(item: msgspec.Raw) -> Listing:
    one = decoded(_spot, item)
    return Listing(f"{one.baseAsset}/{one.quoteAsset}", one.symbol, one.baseAsset, one.quoteAsset, one.status)


def _contract_listing(item: msgspec.Raw) -> Listing:
    one = decoded(_contract, item)
    settle = one.marginAsset or one.quoteAsset
    name = f"{one.baseAsset}/{one.quoteAsset}"
    kind = "perpetual" if _is_perpetual(one) else "delivery"
    if kind == "delivery":
        name += f":{settle}-{_delivery_day(one)}"
    elif settle != one.quoteAsset:
        name += f":{settle}"
    onboard_s = None if one.onboardDate is None else one.onboardDate // 1000
    if onboard_s is not None and not 0 <= onboard_s <= MAX_TIME:
        raise BadAnswer(f"onboardDate is {one.onboardDate}")
    return Listing(name, one.symbol, one.baseAsset, one.quoteAsset, one.status, onboard_s, kind)


def _is_perpetual(contract: _Contract) -> bool:
    """Whether a contract is perpetual: by its type; without a type (a suspended contract), by its pair; with an unknown
    type, by its delivery date."""
    if "PERPETUAL" in contract.contractType:
        return True
    if not contract.contractType and contract.symbol == (contract.pair or contract.baseAsset + contract.quoteAsset):
        return True
    return bool(contract.contractType) and (contract.deliveryDate or 0) >= _NEVER_DELIVERED_MS


def _delivery_day(contract: _Contract) -> str:
    date_ms = contract.deliveryDate
    if date_ms is None or not 0 < date_ms < _NEVER_DELIVERED_MS:
        raise BadAnswer(f"contract type {contract.contractType!r} with delivery date {date_ms}")
    return datetime.fromtimestamp(date_ms // 1000, UTC).strftime("%y%m%d")


def _check_name(market: str, listing: Listing) -> None:
    """Raises `BadAnswer` for a symbol that no series id, stream or request can name."""
    if (
        not listing.symbol_id.strip()
        or not listing.symbol_id.isprintable()
        or not set(listing.symbol_id).isdisjoint("/@&?# ")
    ):
        raise BadAnswer("its name fits no stream")
    if not names_series(EXCHANGE, market, listing.symbol):
        raise BadAnswer(f"no series id can name {listing.symbol}")


def _quoted(item: msgspec.Raw) -> str:
    return repr(bytes(item)[:80])
