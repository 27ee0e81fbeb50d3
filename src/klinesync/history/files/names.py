"""Names of history files: the series of a file, and the files of a series. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePath

from klinesync.core.errors import BadTimeframe, Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S, Timeframe

FREQTRADE_ENDINGS = (".feather", ".parquet", ".json", ".json.gz")
ARCHIVE_EXCHANGE = "binance"
CHECKSUM = ".CHECKSUM"

_FREQTRADE = re.compile(
    r"(?P<base>[^_-]+)_(?P<quote>[^_-]+)(?:_(?P<settle>[^_-]+(?:-\d{6})?))?-(?P<timeframe>\d+(?:Mo|[mhdw]))"
    r"(?P<futures>-futures)?(?:\.feather|\.parquet|\.json|\.json\.gz)"
)
_ARCHIVE = re.compile(
    r"(?P<symbol>[^\s/@&?#]+?)-(?P<timeframe>\d+(?:mo|[mhdw]))-(?P<year>\d{4})-(?P<month>\d\d)(?:-(?P<day>\d\d))?\.zip"
)
# Names of the timeframe of a month: ours, freqtrade's, the archive's.
_MONTH, _FREQTRADE_MONTH, _ARCHIVE_MONTH = "1M", "1Mo", "1mo"
# Folders of an archive that name a market; `cm` are coin-margined contracts.
_FUTURES, _SPOT, _COIN_MARGINED = frozenset({"futures", "um"}), "spot", "cm"


def freqtrade_series(name: str, exchange: str) -> SeriesId | None:
    """The series of a freqtrade file by its name (`BTC_USDT-1m.feather`), which separates base, quote and settlement
    asset; None when it is no name of a file with candles."""
    match = _FREQTRADE.fullmatch(name)
    if match is None or bool(match["settle"]) != bool(match["futures"]):
        return None
    market = "futures" if match["futures"] else "spot"
    settle = f":{match['settle']}" if match["settle"] else ""
    return _series(exchange, market, f"{match['base']}/{match['quote']}{settle}", match["timeframe"])


def freqtrade_path(series: SeriesId, ending: str) -> PurePath:
    """Freqtrade's file of a series, in its folder of the exchange. `ending`: `.feather` …"""
    pair = series.symbol
    if series.market == "futures" and ":" not in pair:
        pair = f"{pair}:{pair.split('/')[1]}"
    stem = re.sub(r"[/ .@$+:]", "_", pair)
    timeframe = _FREQTRADE_MONTH if series.timeframe.code == _MONTH else series.timeframe.code
    if series.market == "futures":
        return PurePath("futures", f"{stem}-{timeframe}-futures{ending}")
    return PurePath(f"{stem}-{timeframe}{ending}")


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A zip of an archive.

    series: whose candles.
    symbol_id: the exchange's name of its symbol.
    first: its first day.
    daily: whether it has a day; else a month.
    """

    series: SeriesId
    symbol_id: str
    first: date
    daily: bool

    @property
    def span(self) -> Span:
        """Its open times, UTC seconds."""
        return Span(_midnight(self.first), _midnight(self.first + timedelta(1) if self.daily else _next(self.first)))

    @property
    def path(self) -> str:
        """Its path in the archive, from `data/` on."""
        series = self.series
        market = "futures/um" if series.market == "futures" else "spot"
        symbol = self.symbol_id
        timeframe = _ARCHIVE_MONTH if series.timeframe.code == _MONTH else series.timeframe.code
        day = self.first.strftime("%Y-%m-%d" if self.daily else "%Y-%m")
        kind = "daily" if self.daily else "monthly"
        return f"data/{market}/{kind}/klines/{symbol}/{timeframe}/{symbol}-{timeframe}-{day}.zip"

    def days(self) -> Iterator[ArchiveFile]:
        """The daily files of a month."""
        day = self.first
        while day < _next(self.first):
            yield ArchiveFile(self.series, self.symbol_id, day, daily=True)
            day += timedelta(1)


def months(series: SeriesId, symbol_id: str, span: Span) -> Iterator[ArchiveFile]:
    """The monthly files that `span` touches, ascending. `symbol_id`: the exchange's name of the series' symbol."""
    moment = datetime.fromtimestamp(span.start, UTC).date().replace(day=1)
    while _midnight(moment) < span.end:
        yield ArchiveFile(series, symbol_id, moment, daily=False)
        moment = _next(moment)


@dataclass(frozen=True, slots=True)
class ArchiveName:
    """The name of an archive's zip.

    symbol_id: the exchange's name of the symbol; the exchange's list has its base and quote.
    markets: the market that the folders name; spot, then futures, when they name none.
    timeframe: of its candles.
    first, daily: as in `ArchiveFile`.
    """

    symbol_id: str
    markets: tuple[str, ...]
    timeframe: Timeframe
    first: date
    daily: bool

    def file(self, market: str, symbol: str) -> ArchiveFile:
        """The file of the given market and symbol."""
        series = SeriesId.parse(f"{ARCHIVE_EXCHANGE}:{market}:{symbol}:{self.timeframe}")
        return ArchiveFile(series, self.symbol_id, self.first, self.daily)


def archive_name(path: PurePath) -> ArchiveName | None:
    """Parse the name and the folders of an archive's zip; None for another file, or a zip of coin-margined
    contracts."""
    match = _ARCHIVE.fullmatch(path.name)
    folders = {part.lower() for part in path.parts[:-1]}
    if match is None or coin_margined_archive(path):
        return None
    try:
        timeframe = Timeframe.parse(_MONTH if match["timeframe"] == _ARCHIVE_MONTH else match["timeframe"])
        first = date(int(match["year"]), int(match["month"]), int(match["day"] or 1))
    except (BadTimeframe, ValueError):
        return None
    markets: tuple[str, ...] = ("spot",) if _SPOT in folders else ("spot", "futures")
    if folders & _FUTURES:
        markets = ("futures",)
    return ArchiveName(match["symbol"], markets, timeframe, first, daily=match["day"] is not None)


def coin_margined_archive(path: PurePath) -> bool:
    """Whether a zip is in an archive's folder of coin-margined contracts."""
    return _ARCHIVE.fullmatch(path.name) is not None and _COIN_MARGINED in {part.lower() for part in path.parts[:-1]}


def _series(exchange: str, market: str, symbol: str, timeframe: str) -> SeriesId | None:
    code = _MONTH if timeframe == _FREQTRADE_MONTH else timeframe
    try:
        return SeriesId.parse(f"{exchange}:{market}:{symbol}:{code}")
    except Rejected:  # an unknown timeframe, or an invalid symbol
        return None


def _midnight(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_S


def _next(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
