"""History files: freqtrade's data folder, and an exchange's archive.

Files prove nothing about missing candles: candles that they lack may exist. Unusable files and bad rows are left out,
and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from functools import partial
from pathlib import Path

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S
from klinesync.exchanges.exchange import HistoryPage
from klinesync.history.files import rows
from klinesync.history.files.archive_location import ArchiveLocation, archive_at
from klinesync.history.files.names import (
    ARCHIVE_EXCHANGE,
    FREQTRADE_ENDINGS,
    ArchiveFile,
    freqtrade_path,
    months,
)
from klinesync.history.files.readers import (
    BadFile,
    batches,
    next_in_thread,
)
from klinesync.history.reading import Pages
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.proxies import Proxies

log = Log(__name__)

# Candles of a page: almost three days of minutes, which take the writer some milliseconds.
PAGE_CANDLES = 4000
# Shortest time between two warnings about one file, in seconds.
LOG_EVERY_S = 600.0
# Seconds for which an unusable archive file is not read again: archives are reissued now and then.
QUARANTINE_S = 6 * 3600.0
# Most files in quarantine; the oldest are evicted.
MAX_QUARANTINED = 1000
# Most remembered files whose rows are out of order; the oldest are evicted.
MAX_UNORDERED = 1000
# Most remembered ends of files; the oldest are evicted.
MAX_ENDS = 10_000
# Most rows of a file out of order that are sorted in memory: two years of minutes, 50 MB.
MAX_SORTED_ROWS = 1_000_000
# Shortest part of a month, in seconds, for which the monthly file is fetched; shorter parts come from daily files.
MONTHLY_FROM_S = 3 * DAY_S


# The exchange's name of a series' symbol; None for a symbol that the exchange does not list.
SymbolId = Callable[[SeriesId], Awaitable[str | None]]
# A version of a file: path, size, and modification time in ns.
FileVersion = tuple[str, int, int]


class FreqtradeFiles:
    """Freqtrade's data folder: the folder of one `exchange`, or a folder with a folder for each exchange."""

    name = "freqtrade"

    def __init__(self, folder: Path, exchange: str = ARCHIVE_EXCHANGE) -> None:
        self._folder = folder
        self._exchange = exchange
        self._unordered = _UnorderedFiles()
        self._ends: dict[FileVersion, int | None] = {}
        self._logged = LogLimit(LOG_EVERY_S)

    async def has(self, series: SeriesId) -> bool:
        """Whether there is a file of the series."""
        return await self._path(series) is not None

    async def end(self, series: SeriesId, before: int) -> int | None:
        """See `TailFiles`. The end is read once for each version of a file."""
        path = await self._path(series)
        if path is None:
            return None
        version = _version(path)
        if version not in self._ends:
            try:
                newest = await asyncio.to_thread(_newest_open, path, series)
            except BadFile as error:
                _warn(self._logged, error.path, str(error))
                newest = None
            if len(self._ends) >= MAX_ENDS:
                del self._ends[next(iter(self._ends))]
            self._ends[version] = newest
        newest = self._ends[version]
        return None if newest is None else min(series.timeframe.next(newest), series.timeframe.floor(before))

    async def pages(self, series: SeriesId, span: Span) -> Pages:
        """See `HistoryFiles`. Of several formats the first is read: feather, parquet, JSON."""
        path = await self._path(series)
        if path is None:
            return
        reading = _Reading(path, series, span, self._unordered, self._logged)
        async with aclosing(reading.pages(self._refuse)) as pages:
            async for page in pages:
                yield page

    def _refuse(self, error: BadFile) -> None:
        _warn(self._logged, error.path, str(error))

    async def _path(self, series: SeriesId) -> Path | None:
        """The file of the series; None when there is none, or when its folder cannot be read, which is logged."""
        try:
            return await asyncio.to_thread(self._find, series)
        except OSError as error:
            _warn(self._logged, self._folder, f"{error.filename} cannot be read: {error.strerror}")
            return None

    def _find(self, series: SeriesId) -> Path | None:
        folders = [self._folder / series.exchange]
        if series.exchange == self._exchange:
            folders.append(self._folder)
        places = (folder / freqtrade_path(series, ending) for folder in folders for ending in FREQTRADE_ENDINGS)
        return next((path for path in places if path.is_file()), None)


class ExchangeArchive:
    """An exchange's archive. A file is read only if it has its checksum; a damaged file is quarantined for
    `QUARANTINE_S`, and the daily files of a damaged month are read in its place.

    location: a folder, or an `http://` address, which has `data/spot/monthly/klines/…`.
    symbol_id: the exchange's name of a symbol, for the names of its files. Raises `UpstreamError` when the exchange's
        list is not available.
    exchange: the exchange whose archive this is; Binance by default.
    proxies: for requests to the address; none by default.
    """

    def __init__(
        self,
        location: Path | str,
        symbol_id: SymbolId,
        exchange: str = ARCHIVE_EXCHANGE,
        *,
        proxies: Proxies | None = None,
    ) -> None:
        self._symbol_id = symbol_id
        self._location = location if isinstance(location, Path) else location.rstrip("/")
        self._exchange = exchange
        self._proxies = proxies
        self._unordered = _UnorderedFiles()
        self._quarantined: dict[str, tuple[str, float]] = {}  # why, and until when (monotonic)
        self._logged = LogLimit(LOG_EVERY_S)

    @property
    def quarantined(self) -> dict[str, str]:
        """The quarantined files (paths from `data/` on), and why."""
        return {path: why for path, (why, until_s) in self._quarantined.items() if SYSTEM_CLOCK.monotonic_s() < until_s}

    async def pages(self, series: SeriesId, span: Span) -> Pages:
        """See `HistoryFiles`. Monthly files are read where they exist and `MONTHLY_FROM_S` or more of the month is
        wanted, else daily files."""
        if series.exchange != self._exchange or span.start >= span.end:
            return
        symbol_id = await self._symbol_id(series)
        if symbol_id is None:
            _warn(self._logged, str(series), f"{series}: its exchange lists no such symbol, so that it has no archive")
            return
        files = self._files
        async with (
            archive_at(self._location, self._proxies) as archive,
            aclosing(files(archive, series, symbol_id, span)) as archive_files,
        ):
            async for file, path in archive_files:
                wanted = span.clipped(file.span)
                reading = _Reading(path, series, wanted, self._unordered, self._logged)
                async with aclosing(reading.pages(partial(self._quarantine, file))) as pages:
                    async for page in pages:
                        yield page

    async def _files(
        self, location: ArchiveLocation, series: SeriesId, symbol_id: str, span: Span
    ) -> AsyncGenerator[tuple[ArchiveFile, Path], None]:
        """The files that cover `span`, ascending and verified; each exists until the next is requested."""
        for month in months(series, symbol_id, span):
            wanted = span.clipped(month.span)
            if wanted.end - wanted.start >= min(MONTHLY_FROM_S, month.span.end - month.span.start):
                path = await self._get(location, month)
                if path is not None:
                    yield month, path
                    continue
            days = [day for day in month.days() if day.span.overlaps(wanted)]
            if not await location.may_have_any(days):
                continue
            for day in days:
                path = await self._get(location, day)
                if path is not None:
                    yield day, path

    async def _get(self, location: ArchiveLocation, file: ArchiveFile) -> Path | None:
        if file.path in self.quarantined:
            return None
        try:
            return await location.get(file)
        except BadFile as error:
            self._quarantine(file, error)
            return None

    def _quarantine(self, file: ArchiveFile, error: BadFile) -> None:
        self._quarantined.pop(file.path, None)
        if len(self._quarantined) >= MAX_QUARANTINED:
            del self._quarantined[next(iter(self._quarantined))]
        self._quarantined[file.path] = error.reason, SYSTEM_CLOCK.monotonic_s() + QUARANTINE_S
        _warn(self._logged, file.path, f"archive file {file.path} is left out: {error.reason}")


def _version(path: Path) -> FileVersion:
    try:
        facts = path.stat()
    except OSError:  # deleted: reading it raises the error
        return str(path), 0, 0
    return str(path), facts.st_size, facts.st_mtime_ns


def _newest_open(path: Path, series: SeriesId) -> int | None:
    """The newest open time in a file. Raises `BadFile`."""
    judge = rows.Judge(series.timeframe, MAX_TIME)
    opens = (judge.newest_open(batch) for batch in batches(path, judge.broken))
    return max((newest for newest in opens if newest is not None), default=None)


class _UnorderedFiles:
    """File versions whose rows are not in the order of time."""

    def __init__(self) -> None:
        self._known: dict[FileVersion, None] = {}

    def __contains__(self, path: Path) -> bool:
        return _version(path) in self._known

    def add(self, path: Path) -> None:
        """Remember a file; beyond `MAX_UNORDERED` the oldest is evicted."""
        if len(self._known) >= MAX_UNORDERED:
            del self._known[next(iter(self._known))]
        self._known[_version(path)] = None


class _Reading:
    """Reads the rows of a file within a span. When rows prove to be out of order in the middle of the file, the rest is
    sorted; rows older than those that were already read are left to the next reading.

    path: the file.
    series: of its candles.
    span: open times that are read.
    unordered: files that have to be sorted.
    logged: rate limit of warnings about bad rows.
    """

    def __init__(self, path: Path, series: SeriesId, span: Span, unordered: _UnorderedFiles, logged: LogLimit) -> None:
        self._path = path
        self._span = span
        self._series = series
        self._unordered = unordered
        self._logged = logged
        self._judge = rows.Judge(series.timeframe, MAX_TIME)

    def _candles(self) -> Generator[list[Candle], None, None]:
        for page in rows.pages(self._sound(), PAGE_CANDLES):
            yield page.candles()

    def _sound(self) -> Generator[rows.Columns, None, None]:
        start = self._span.start
        if self._path not in self._unordered:
            try:
                for batch in batches(self._path, self._judge.broken):
                    sound = self._judge.sound(batch)
                    part = rows.within(sound, self._span)
                    if len(part):
                        start = int(part.time[-1]) + 1
                        yield part
                    if len(sound) and sound.time[-1] >= self._span.end:
                        return
                return
            except rows.OutOfOrder:
                self._unordered.add(self._path)
        judge = self._judge = rows.Judge(self._series.timeframe, MAX_TIME)
        if start < self._span.end:
            try:
                yield judge.in_order(batches(self._path, judge.broken), MAX_SORTED_ROWS, Span(start, self._span.end))
            except rows.TooManyRows:
                why = f"its rows are not in the order of time, and more than {MAX_SORTED_ROWS} are wanted; import it"
                raise BadFile(self._path, why) from None

    async def pages(self, refuse: Callable[[BadFile], None]) -> Pages:
        """The candles, read in a thread. `refuse`: called with the error of a file that cannot be read further."""
        candles = self._candles()
        try:
            while (page := await next_in_thread(candles, f"reading {self._path.name}")) is not None:
                yield HistoryPage(page, [])
        except BadFile as error:
            refuse(error)
        finally:
            candles.close()
        if (flows := self._judge.flow_left_out) > 0:
            text = f"{self._path}: {flows} candles of {self._series} have no order flow; {self._judge.flow_example}"
            _warn(self._logged, self._path, text)
        if (bad := self._judge.bad) > 0:
            text = f"{self._path}: {bad} bad rows of {self._series} are left out; {self._judge.examples[0]}"
            _warn(self._logged, self._path, text)


def _warn(logged: LogLimit, what: Path | str, sentence: str) -> None:
    if logged.allow(str(what), SYSTEM_CLOCK.monotonic_s()) is not None:
        log.warning("files.left_out", "%s", printable(sentence))
