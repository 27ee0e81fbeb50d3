"""Import: files into a store. Each is read to its end before anything of it is written, because it may have to be
refused as a whole; a short one is held meanwhile, a long one is read again.

Writing again what is stored changes nothing: an import that was interrupted is run again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from klinesync.core.candle import Candle
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.market_data.history import rows
from klinesync.market_data.history.files import BadFile, batches, verify_checksum
from klinesync.market_data.history.names import CHECKSUM, archive_file, freqtrade_series

# Candles that are written together, in one transaction: thirteen days of minutes, so that a day is seldom cut in two.
BATCH_CANDLES = 13 * 1440
# Sound rows of a file that are held (ten megabytes): of months of minutes, so that those are read once.
HELD_ROWS = 200_000
# Batches that wait for the writer, so that it never waits for a reader.
MAX_AHEAD = 2
# A file with more bad rows than good ones is not what it seems to be.
MAX_BAD_SHARE = 0.5

# Stores candles of a series; how many of them were new, or None where that is not told. Raises `Rejected`, and what
# else is in the way.
Put = Callable[[SeriesId, list[Candle]], Awaitable[int | None]]
# By what time (UTC seconds) candles of a series must have closed.
Now = Callable[[SeriesId], Awaitable[int]]


class PartlyRefused(Rejected):
    """Candles that were refused where the first `stored` of them were not."""

    def __init__(self, reason: str, stored: int) -> None:
        self.stored = stored
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file and the series that it holds. `first`: when an archive's file begins, by which they are ordered."""

    path: Path
    series: SeriesId
    first: int = 0


@dataclass(slots=True)
class Imported:
    """What became of one file. `refused`: why, as a sentence; nothing of it was written then, or, when `stored` is not
    zero, not all. `new`: candles that the store did not have; None where that is not told. `quarantined` rows are left
    out, and `told` are sentences about the first of them."""

    path: Path
    series: SeriesId | None
    rows: int = 0
    stored: int = 0
    new: int | None = 0
    quarantined: int = 0
    first: int | None = None
    last: int | None = None
    told: list[str] = field(default_factory=list)
    refused: str | None = None
    note: str | None = None


def plan(paths: Sequence[Path], series: SeriesId | None, exchange: str) -> tuple[list[ImportFile], list[Imported]]:
    """The files to import, in order, and those that are refused by their name. `series`: what they hold, whatever their
    names say. Of a folder the files count whose names say what they hold. `exchange`: whose freqtrade files are."""
    files: list[ImportFile] = []
    refused: list[Imported] = []
    for path in paths:
        if path.is_dir():
            found = [one for inner in sorted(path.rglob("*")) if (one := _identify(inner, exchange)) is not None]
            if series is not None:
                refused.append(_refuse(path, "it is a folder, and one series was named; name the files"))
            elif not found:
                refused.append(_refuse(path, "no file in this folder has a name that says which series it holds"))
            else:
                files += found
        elif not path.exists():
            refused.append(_refuse(path, "there is no such file"))
        else:
            one = ImportFile(path, series) if series is not None else _identify(path, exchange)
            if one is None:
                why = "its name does not say which series it holds; say so with --series binance:spot:BTC/USDT:1m"
                refused.append(_refuse(path, why))
            else:
                files.append(one)
    unique = {one.path.resolve(): one for one in files}
    return sorted(unique.values(), key=lambda one: (str(one.series), one.first)), refused


def _identify(path: Path, exchange: str) -> ImportFile | None:
    series = freqtrade_series(path.name, exchange)
    if series is not None:
        return ImportFile(path, series)
    file = archive_file(path)
    return None if file is None else ImportFile(path, file.series, file.span.start)


def _refuse(path: Path, why: str) -> Imported:
    return Imported(path, None, refused=str(BadFile(path, why)))


@dataclass(slots=True)
class Survey:
    """What one reading of a file found: `judge` of its rows, whether it was compared with a checksum, and, when there
    are few enough of them, its sound rows."""

    judge: rows.Judge
    checked: bool
    held: list[rows.Columns] | None = field(default_factory=list)


def survey(file: ImportFile, now: int, *, strict: bool) -> Survey:
    """Read a file to its end. `now`: UTC seconds by which its candles must have closed. Raises `BadFile` when it is to
    be refused as a whole, which with `strict` one bad row is reason for."""
    path = file.path
    found = Survey(rows.Judge(file.series.timeframe, now), path.suffix != ".zip" or verify_checksum(path))
    judge = found.judge
    for batch in batches(path, judge.broken):
        sound = judge.sound(batch)
        if found.held is not None:
            found.held.append(sound)
        if judge.good > HELD_ROWS:
            found.held = None
    if not judge.rows:
        raise BadFile(path, "it holds no rows")
    if judge.bad and (strict or judge.bad > judge.rows * MAX_BAD_SHARE):
        raise BadFile(path, f"{judge.bad} of its {judge.rows} rows are bad; {judge.told[0]}")
    return found


async def import_files(
    files: Sequence[ImportFile],
    put: Put,
    now: Now,
    *,
    strict: bool,
    progress: Callable[[ImportFile, int, int], None] = lambda _file, _done, _all: None,
) -> AsyncGenerator[Imported, None]:
    """Import files one after the other; what became of each. The next one is read while one is written.

    `now` is asked when a file's turn comes. `progress` gets candles stored of a file, and candles that it has. Raises
    what `put` and `now` do, save `Rejected`. When cancelled, what is handed to `put` may still be written.
    """
    reading: asyncio.Task[Survey] | None = None
    try:
        for number, file in enumerate(files):
            found = reading or _survey_task(file, now, strict=strict)
            await asyncio.wait([found])
            reading = _survey_task(files[number + 1], now, strict=strict) if number + 1 < len(files) else None
            yield await _import_file(file, found, put, progress)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _survey_task(file: ImportFile, now: Now, *, strict: bool) -> asyncio.Task[Survey]:
    async def read() -> Survey:
        return await asyncio.to_thread(survey, file, await now(file.series), strict=strict)

    return asyncio.create_task(read(), name=f"reading {file.path.name}")


async def _import_file(
    file: ImportFile,
    reading: asyncio.Task[Survey],
    put: Put,
    progress: Callable[[ImportFile, int, int], None],
) -> Imported:
    done = Imported(file.path, file.series)
    try:
        found = await reading
    except BadFile as error:
        done.refused = str(error)
        return done
    judge = found.judge
    done.rows, done.quarantined, done.told = judge.rows, judge.bad, judge.told
    done.first, done.last = judge.first, judge.last
    if not found.checked:
        done.note = f"no {CHECKSUM} file lies beside it; only the zip's own CRC was checked"
    waiting: deque[tuple[asyncio.Task[int | None], int]] = deque()

    async def oldest_written() -> None:
        task, count = waiting[0]
        new = await task
        waiting.popleft()
        done.stored += count
        done.new = None if new is None or done.new is None else done.new + new
        progress(file, done.stored, judge.good)

    pages = _sound_pages(file, judge.now, found.held)
    try:
        while (page := await _in_thread(pages)) is not None:
            if len(waiting) >= MAX_AHEAD:
                await oldest_written()
            task = asyncio.create_task(_put(put, file.series, page), name=f"import of {file.path.name}")
            waiting.append((task, len(page)))
        while waiting:
            await oldest_written()
    except Rejected as error:
        done.stored += error.stored if isinstance(error, PartlyRefused) else 0
        stored = f"; {done.stored} of its {judge.good} candles are stored" if done.stored else ""
        done.refused = (str(error) if isinstance(error, BadFile) else str(BadFile(file.path, str(error)))) + stored
    finally:
        pages.close()
        for task, _ in waiting:
            task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)
    return done


async def _put(put: Put, series: SeriesId, page: list[Candle]) -> int | None:
    return await put(series, page)


def _sound_pages(file: ImportFile, now: int, held: list[rows.Columns] | None) -> Generator[list[Candle], None, None]:
    judge = rows.Judge(file.series.timeframe, now)
    sound = held if held is not None else (judge.sound(batch) for batch in batches(file.path, judge.broken))
    for page in rows.pages(sound, BATCH_CANDLES):
        yield page.candles()


async def _in_thread(pages: Generator[list[Candle], None, None]) -> list[Candle] | None:
    """The next page, read in a thread; None behind the last one. When cancelled the reading is finished first."""
    step = asyncio.create_task(asyncio.to_thread(next, pages, None), name="reading a file")
    try:
        return await asyncio.shield(step)
    finally:
        if not step.done():
            await asyncio.wait([step])


def sentence(done: Imported) -> str:
    """What became of a file, in a line."""
    if done.refused is not None:
        return done.refused
    if not done.rows:
        return f"{done.path}: {done.note}"
    new = "" if done.new is None else f", {done.new} of them new"
    bad = f", {done.quarantined} bad rows left out" if done.quarantined else ""
    span = "" if done.first is None or done.last is None else f" from {_iso(done.first)} to {_iso(done.last)}"
    note = "" if done.note is None else f"; {done.note}"
    return f"{done.path}: {done.stored} candles of {done.series}{span}{new}{bad}{note}"


def _iso(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
