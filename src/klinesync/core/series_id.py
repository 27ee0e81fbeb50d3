"""SeriesId: the name of one stream of candles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from klinesync.core.errors import BadSeriesId, BadTimeframe
from klinesync.core.timeframe import Timeframe

MAX_SERIES_ID_CHARS = 100
# Names that are cached, so that equal names give one object, and a dictionary finds a series without comparing text.
MAX_REMEMBERED = 65_536
_EXCHANGE = re.compile(r"[a-z][a-z0-9_]*")
_ASSET = r"[^\W_][\w.\-]*"  # letters and digits of any script (Binance lists such), then . - _ as ccxt has them
_SYMBOL = re.compile(rf"({_ASSET})/({_ASSET})(?::({_ASSET}))?")


@dataclass(frozen=True, slots=True, repr=False)
class SeriesId:
    """`{exchange}:{market}:{symbol}:{timeframe}`, for example `binance:futures:BTC/USDT:1m`.

    `symbol` is `BASE/QUOTE`; on futures a settlement asset other than the quote follows as `BASE/QUOTE:SETTLE`.
    A settlement asset that equals the quote is dropped, so both spellings of a linear contract are one series.
    """

    exchange: str
    market: str
    symbol: str
    timeframe: Timeframe
    # A name is looked up and written many times a candle, so its hash and its text are computed once.
    _hash: int = field(init=False, repr=False, compare=False)
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.exchange, self.market, self.symbol, self.timeframe.code)))
        text = f"{self.exchange}:{self.market}:{self.symbol}:{self.timeframe.code}"
        object.__setattr__(self, "_text", text)

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def parse(cls, text: str) -> SeriesId:
        """The series of that name. Raises `BadSeriesId` with the reason."""
        if len(text) > MAX_SERIES_ID_CHARS:
            raise BadSeriesId(text, f"is longer than {MAX_SERIES_ID_CHARS} characters")
        parts = text.split(":")
        if len(parts) not in (4, 5):
            raise BadSeriesId(text, "does not have four parts")
        exchange, market, timeframe = parts[0], parts[1], parts[-1]
        symbol = ":".join(parts[2:-1])
        if not _EXCHANGE.fullmatch(exchange):
            raise BadSeriesId(text, "has no exchange in lower case before the first colon")
        if market not in ("spot", "futures"):
            raise BadSeriesId(text, f"has market {market!r}; it is spot or futures")
        match = _SYMBOL.fullmatch(symbol)
        if match is None:
            raise BadSeriesId(text, f"has symbol {symbol!r} in place of BASE/QUOTE")
        base, quote, settle = match.groups()
        if settle is not None and market == "spot":
            raise BadSeriesId(text, "names a settlement asset, which only futures have")
        if settle == quote:
            symbol = f"{base}/{quote}"
        try:
            frame = Timeframe.parse(timeframe)
        except BadTimeframe as error:
            raise BadSeriesId(text, f"has an unknown timeframe: {error}") from None
        return _shared(exchange, market, symbol, frame)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"SeriesId({self._text!r})"

    def with_timeframe(self, timeframe: Timeframe) -> SeriesId:
        """The same symbol in another timeframe."""
        return _with_timeframe(self, timeframe)

    def candle_id(self, candle_time: int) -> str:
        """`{series_id}:{candle_time}`."""
        return f"{self._text}:{candle_time}"


def is_exchange_name(text: str) -> bool:
    """Whether a series id can name such an exchange."""
    return len(text) <= MAX_SERIES_ID_CHARS and _EXCHANGE.fullmatch(text) is not None


def names_series(exchange: str, market: str, symbol: str) -> bool:
    """Whether a series_id can be made of an exchange, a market and a symbol in this spelling."""
    try:
        return SeriesId.parse(f"{exchange}:{market}:{symbol}:1m").symbol == symbol
    except BadSeriesId:
        return False


_shared = lru_cache(MAX_REMEMBERED)(SeriesId)


@lru_cache(MAX_REMEMBERED)
def _with_timeframe(series: SeriesId, timeframe: Timeframe) -> SeriesId:
    return _shared(series.exchange, series.market, series.symbol, timeframe)
