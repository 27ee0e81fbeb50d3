"""History from files: what lies in freqtrade's folder, and in an exchange's archive.

Both bring rows and prove nothing: what they lack may well exist. A file that cannot be used is left out with a sentence
in the log, and so is a bad row.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Protocol

import aiohttp

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.network_errors import unreachable
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S
from klinesync.exchanges.exchange import HistoryPage
from klinesync.history.files import rows
from klinesync.history.files.names import (
    ARCHIVE_EXCHANGE,
    CHECKSUM,
    FREQTRADE_ENDINGS,
    ArchiveFile,
    freqtrade_path,
    months,
)
from klinesync.history.files.readers import MAX_CHECKSUM_BYTES, BadFile, batches, check_sha256, verify_checksum
from klinesync.history.reading import Pages
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.http_client import HttpClient, location
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.proxies import Proxies

log = Log(__name__)

# Candles in a page: two days of minutes and more, and some milliseconds of the writer's time.
PAGE_CANDLES = 4000
# About one file the same trouble is logged this often at most.
LOG_EVERY_S = 600.0
# For how long a file that cannot be used is left alone: archives are issued anew now and then.
QUARANTINE_S = 6 * 3600.0
# So many such files are remembered; of more, the oldest are tried again.
MAX_QUARANTINED = 1000
# Files with rows in another order than that of time that are remembered.
MAX_SHUFFLED = 1000
# Files of which it is remembered where they end.
MAX_ENDS = 10_000
# Rows of such a file that are sorted at a time: two years of minutes, 50 MB.
MAX_SORTED_ROWS = 1_000_000
# From so much of a month on, its file is worth fetching; less comes from daily files.
MONTHLY_FROM_S = 3 * DAY_S
# A month of one-second candles has less than a fifth of it.
MAX_ZIP_BYTES = 512 << 20
CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 10.0
# Between two pieces of an answer; a file as a whole may take as long as it takes.
READ_TIMEOUT_S = 30.0


SymbolId = Callable[[SeriesId], Awaitable[str | None]]
# A file as it is now: its path, size and time of change in ns.
FileVersion = tuple[str, int, int]


class FreqtradeFiles:
    """The data folder of freqtrade: that of one `exchange` itself, or one with a folder for each exchange."""

    name = "freqtrade"

    def __init__(self, folder: Path, exchange: str = ARCHIVE_EXCHANGE) -> None:
        self._folder = folder
        self._exchange = exchange
        self._shuffled = _Shuffled()
        self._ends: dict[FileVersion, int | None] = {}
        self._logged = LogLimit(LOG_EVERY_S)

    async def has(self, series: SeriesId) -> bool:
        """Whether there is a file of the series."""
        return await self._path(series) is not None

    async def end(self, series: SeriesId, before: int) -> int | None:
        """See `TailFiles`. A file is read once for this, and again when it changes."""
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
        """See `HistoryFiles`. Of several formats the first counts that is there: feather, parquet, JSON."""
        path = await self._path(series)
        if path is None:
            return
        reading = _Reading(path, series, span, self._shuffled)
        try:
            async with aclosing(reading.pages()) as pages:
                async for page in pages:
                    yield HistoryPage(page, [])
        except BadFile as error:
            _warn(self._logged, error.path, str(error))
        reading.tell(self._logged)

    async def _path(self, series: SeriesId) -> Path | None:
        """The file of the series; None where there is none, or its folder cannot be looked into, which is logged."""
        try:
            return await asyncio.to_thread(self._find, series)
        except OSError as error:  # a folder that this user may not look into
            _warn(self._logged, self._folder, f"{error.filename} cannot be read: {error.strerror}")
            return None

    def _find(self, series: SeriesId) -> Path | None:
        folders = [self._folder / series.exchange]
        if series.exchange == self._exchange:
            folders.append(self._folder)
        places = (folder / freqtrade_path(series, ending) for folder in folders for ending in FREQTRADE_ENDINGS)
        return next((path for path in places if path.is_file()), None)


class ExchangeArchive:
    """An exchange's archive: a folder or an `http://` address below which `data/spot/monthly/klines/…` lies.

    `symbol_id` tells the exchange's name of a series' symbol, which is in the names of its files; None for a symbol
    that is not listed, which has no files then. It raises `UpstreamError` when no list can be had.

    A file counts only with its checksum. One that is truncated, or is not what its checksum says, is left alone for
    `QUARANTINE_S`; a month's days are tried in its place.
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
        self._shuffled = _Shuffled()
        self._quarantined: dict[str, tuple[str, float]] = {}  # why, and until when (monotonic)
        self._logged = LogLimit(LOG_EVERY_S)

    @property
    def quarantined(self) -> dict[str, str]:
        """The files that are left alone, from `data/` on, and why."""
        return {path: why for path, (why, until_s) in self._quarantined.items() if SYSTEM_CLOCK.monotonic_s() < until_s}

    async def pages(self, series: SeriesId, span: Span) -> Pages:
        """See `HistoryFiles`. Monthly files where they exist and most of the month is wanted, else daily ones."""
        if series.exchange != self._exchange or span.start >= span.end:
            return
        symbol_id = await self._symbol_id(series)
        if symbol_id is None:
            _warn(self._logged, str(series), f"{series}: its exchange lists no such symbol, so that it has no archive")
            return
        files = self._files
        async with (
            _shelf(self._location, self._proxies) as shelf,
            aclosing(files(shelf, series, symbol_id, span)) as found,
        ):
            async for file, path in found:
                wanted = span.clipped(file.span)
                reading = _Reading(path, series, wanted, self._shuffled)
                try:
                    async with aclosing(reading.pages()) as pages:
                        async for page in pages:
                            yield HistoryPage(page, [])
                except BadFile as error:
                    self._quarantine(file, error)
                reading.tell(self._logged)

    async def _files(
        self, shelf: _Shelf, series: SeriesId, symbol_id: str, span: Span
    ) -> AsyncGenerator[tuple[ArchiveFile, Path], None]:
        """The files that cover `span`, ascending, each checked; one lies there until the next is asked for."""
        for month in months(series, symbol_id, span):
            wanted = span.clipped(month.span)
            if wanted.end - wanted.start >= min(MONTHLY_FROM_S, month.span.end - month.span.start):
                path = await self._get(shelf, month)
                if path is not None:
                    yield month, path
                    continue
            days = [day for day in month.days() if day.span.overlaps(wanted)]
            if not await shelf.worth_a_look(days):
                continue
            for day in days:
                path = await self._get(shelf, day)
                if path is not None:
                    yield day, path

    async def _get(self, shelf: _Shelf, file: ArchiveFile) -> Path | None:
        if file.path in self.quarantined:
            return None
        try:
            return await shelf.get(file)
        except BadFile as error:
            self._quarantine(file, error)
            return None

    def _quarantine(self, file: ArchiveFile, error: BadFile) -> None:
        self._quarantined.pop(file.path, None)
        if len(self._quarantined) >= MAX_QUARANTINED:
            del self._quarantined[next(iter(self._quarantined))]
        self._quarantined[file.path] = error.reason, SYSTEM_CLOCK.monotonic_s() + QUARANTINE_S
        _warn(self._logged, file.path, f"archive file {file.path} is left out: {error.reason}")


class _Shelf(Protocol):
    """Where an archive's files are taken from."""

    async def worth_a_look(self, days: Sequence[ArchiveFile]) -> bool:
        """Whether to ask for each of a month's days. Raises `UpstreamError`."""

    async def get(self, file: ArchiveFile) -> Path | None:
        """The file, which is what its checksum says; None when it is not there. It may be gone when the next one is
        asked for. Raises `BadFile`, `UpstreamError`."""

    async def __aenter__(self) -> _Shelf: ...

    async def __aexit__(self, *exc: object) -> None: ...


def _shelf(location: Path | str, proxies: Proxies | None) -> _Shelf:
    return _Folder(location) if isinstance(location, Path) else _Server(location, proxies)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def worth_a_look(self, days: Sequence[ArchiveFile]) -> bool:
        paths = [self._folder / day.path for day in days]
        try:
            return await asyncio.to_thread(lambda: any(path.is_file() for path in paths))
        except OSError:  # `get` tells
            return True

    async def get(self, file: ArchiveFile) -> Path | None:
        path = self._folder / file.path
        try:
            if not await asyncio.to_thread(path.is_file):
                return None
        except OSError as error:
            raise BadFile(path, f"it cannot be read: {error.strerror}") from error
        if not await asyncio.to_thread(verify_checksum, path):
            raise BadFile(path, f"no {CHECKSUM} file lies beside it")
        return path

    async def __aenter__(self) -> _Folder:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class _Server:
    """Files come one at a time, into a temporary folder."""

    def __init__(self, url: str, proxies: Proxies | None) -> None:
        self._url = url
        self._proxies = proxies
        self._stack = AsyncExitStack()
        self._checksums: dict[str, bytes | None] = {}  # of the days that were looked for ahead

    async def __aenter__(self) -> _Server:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        client = HttpClient(timeout, self._proxies, auto_decompress=False)
        self._session = await self._stack.enter_async_context(client)
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="klinesync-archive-")))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def worth_a_look(self, days: Sequence[ArchiveFile]) -> bool:
        # Where the first, the middle and the last day are all missing the symbol was not listed, as a rule. Years of
        # that must not cost thirty requests a month.
        probes = {0, len(days) // 2, len(days) - 1}
        if len(days) <= len(probes):
            return True
        for at in sorted(probes):
            self._checksums[days[at].path] = await self._checksum(days[at])
        return any(self._checksums[days[at].path] is not None for at in probes)

    async def get(self, file: ArchiveFile) -> Path | None:
        checksum = self._checksums.pop(file.path) if file.path in self._checksums else await self._checksum(file)
        path = self._place / "candles.zip"
        if checksum is None or not await self._fetch(file.path, path, MAX_ZIP_BYTES):
            return None
        try:
            await asyncio.to_thread(check_sha256, path, checksum)
        except BadFile as error:
            raise BadFile(file.path, error.reason) from None
        return path

    async def _checksum(self, file: ArchiveFile) -> bytes | None:
        path = self._place / "checksum"
        if not await self._fetch(file.path + CHECKSUM, path, MAX_CHECKSUM_BYTES):
            return None
        return await asyncio.to_thread(path.read_bytes)

    async def _fetch(self, name: str, path: Path, most: int) -> bool:
        """Download a file to `path`; False when there is none. Raises `BadFile`, `UpstreamError`."""
        url = f"{self._url}/{name}"
        try:
            async with self._session.get(url) as answer:
                if answer.status == 404:
                    return False
                if answer.status != 200:
                    retry = answer.headers.get("Retry-After", "")
                    raise UpstreamError(
                        f"the archive answered {answer.status} for {url}{location(answer)}",
                        answer.status,
                        float(retry) if retry.isdecimal() else None,
                    )
                size = 0
                with await asyncio.to_thread(path.open, "wb") as target:
                    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                        size += len(chunk)
                        if size > most:
                            raise BadFile(name, f"it is larger than {most} bytes")
                        await asyncio.to_thread(target.write, chunk)
        except (aiohttp.ClientError, OSError) as error:
            reason = unreachable(url, error)
            raise UpstreamError(f"the archive does not send {url}: {reason}", cause=reason) from error
        return True


def _version(path: Path) -> FileVersion:
    try:
        facts = path.stat()
    except OSError:  # it has gone: the reading says so
        return str(path), 0, 0
    return str(path), facts.st_size, facts.st_mtime_ns


def _newest_open(path: Path, series: SeriesId) -> int | None:
    """The newest open time in a file. Raises `BadFile`."""
    judge = rows.Judge(series.timeframe, MAX_TIME)
    opens = (judge.newest_open(batch) for batch in batches(path, judge.broken))
    return max((newest for newest in opens if newest is not None), default=None)


class _Shuffled:
    """Files whose rows were seen not to be in the order of time, as they are now: by path, size and time of change."""

    def __init__(self) -> None:
        self._known: dict[FileVersion, None] = {}

    def __contains__(self, path: Path) -> bool:
        return _version(path) in self._known

    def add(self, path: Path) -> None:
        """Remember the file; of more than `MAX_SHUFFLED` the oldest is forgotten."""
        if len(self._known) >= MAX_SHUFFLED:
            del self._known[next(iter(self._known))]
        self._known[_version(path)] = None


class _Reading:
    """One file's rows within a span. `shuffled`: files that have to be sorted. Of a file that proves to be one in the
    middle, rows behind those that were read already are left to the next reading."""

    def __init__(self, path: Path, series: SeriesId, span: Span, shuffled: _Shuffled) -> None:
        self._path = path
        self._span = span
        self._series = series
        self._shuffled = shuffled
        self._judge = rows.Judge(series.timeframe, MAX_TIME)

    def _candles(self) -> Generator[list[Candle], None, None]:
        for page in rows.pages(self._sound(), PAGE_CANDLES):
            yield page.candles()

    def _sound(self) -> Generator[rows.Columns, None, None]:
        start = self._span.start
        if self._path not in self._shuffled:
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
                self._shuffled.add(self._path)
        judge = self._judge = rows.Judge(self._series.timeframe, MAX_TIME)
        if start < self._span.end:
            try:
                yield judge.arranged(batches(self._path, judge.broken), MAX_SORTED_ROWS, Span(start, self._span.end))
            except rows.TooManyRows:
                why = f"its rows are not in the order of time, and more than {MAX_SORTED_ROWS} are wanted; import it"
                raise BadFile(self._path, why) from None

    async def pages(self) -> AsyncGenerator[list[Candle], None]:
        """Its candles, read in a thread. Raises `BadFile`."""
        candles = self._candles()
        step: asyncio.Task[list[Candle] | None] | None = None
        try:
            while True:
                step = asyncio.create_task(asyncio.to_thread(next, candles, None), name=f"reading {self._path.name}")
                page = await asyncio.shield(step)
                if page is None:
                    return
                yield page
        finally:
            if step is not None and not step.done():
                await asyncio.wait([step])  # a generator that runs cannot be closed
            candles.close()

    def tell(self, logged: LogLimit) -> None:
        """Log what was left out."""
        if self._judge.bad:
            _warn(
                logged,
                self._path,
                f"{self._path}: {self._judge.bad} bad rows of {self._series} are left out; {self._judge.told[0]}",
            )


def _warn(logged: LogLimit, what: Path | str, sentence: str) -> None:
    if logged.allow(str(what), SYSTEM_CLOCK.monotonic_s()) is not None:
        log.warning("files.left_out", "%s", printable(sentence))
