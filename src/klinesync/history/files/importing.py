"""Import: files into a store. Each is read to its end before anything of it is written, because it may have to be
refused as a whole; a short one is held meanwhile, a long one is read again.

Writing again what is stored changes nothing: an import that was interrupted is run again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from klinesync.core.candle import Candle
from klinesync.core.counted import counted
from klinesync.core.errors import KlinesyncError, Rejected
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.history.files import rows
from klinesync.history.files.names import CHECKSUM
from klinesync.history.files.planning import Imported, ImportFile
from klinesync.history.files.readers import BadFile, batches, verify_checksum

T = TypeVar("T")

# Candles that are written together, in one transaction: thirteen days of minutes, so that a day is seldom cut in two.
BATCH_CANDLES = 13 * 1440
# Sound rows of a file that are held (ten megabytes): of months of minutes, so that those are read once.
HELD_ROWS = 200_000
# Rows of a file that are sorted in memory, when they are not in the order of time: seven years of minutes, 200 MB.
MAX_SORTED_ROWS = 4_000_000
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


class PartlyStored(KlinesyncError):
    """Trouble in the middle of candles of which the first `stored` are in."""

    def __init__(self, error: KlinesyncError, stored: int) -> None:
        self.stored = stored
        self.code = error.code
        super().__init__(str(error))


@dataclass(slots=True)
class Survey:
    """What one reading of a file found: `judge` of its rows, whether it was compared with a checksum, and, when there
    are few enough of them or they had to be sorted, its sound rows."""

    judge: rows.Judge
    checked: bool
    held: list[rows.Columns] | None = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manner:
    """How files are read. `strict`: one bad row refuses a file. `unterminated`: the last line of a CSV may lack its
    line end."""

    strict: bool = False
    unterminated: bool = False


class Stopped(Exception):
    """The import was interrupted."""


def survey(file: ImportFile, now: int, manner: Manner, stopped: Callable[[], bool] = lambda: False) -> Survey:
    """Read a file to its end, whatever the order of its rows.

    now: UTC seconds by which its candles must have closed.
    stopped: asked between batches of rows; ends the reading early.

    Raises `BadFile` when the file is to be refused as a whole.
    """
    path = file.path

    def read(judge: rows.Judge) -> Iterator[rows.Columns]:
        for batch in batches(path, judge.broken, unterminated=manner.unterminated):
            if stopped():
                raise Stopped
            yield batch

    found = Survey(rows.Judge(file.series.timeframe, now), path.suffix != ".zip" or verify_checksum(path, stopped))
    try:
        for batch in read(found.judge):
            sound = found.judge.sound(batch)
            if found.held is not None:
                found.held.append(sound)
            if found.judge.good > HELD_ROWS:
                found.held = None
    except rows.OutOfOrder:
        found.judge = rows.Judge(file.series.timeframe, now)
        try:
            found.held = [found.judge.arranged(read(found.judge), MAX_SORTED_ROWS)]
        except rows.TooManyRows:
            why = f"its rows are not in the order of time, and more than the {MAX_SORTED_ROWS} that are sorted here"
            raise BadFile(path, why) from None
    judge = found.judge
    if not judge.rows:
        raise BadFile(path, "it holds no rows")
    if judge.bad and (manner.strict or judge.bad > judge.rows * MAX_BAD_SHARE):
        raise BadFile(path, f"{judge.bad} of its {judge.rows} rows are bad; {judge.told[0]}")
    return found


async def stoppable(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work` in a thread. It gets a function that says whether to stop, which is so once this is cancelled."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(work, stopped.is_set)
    finally:
        stopped.set()


async def import_files(
    files: Sequence[ImportFile],
    put: Put,
    now: Now,
    manner: Manner,
    done: list[Imported],
    progress: Callable[[ImportFile, int, int], None] = lambda _file, _done, _all: None,
) -> None:
    """Import files one after the other. The next one is read while one is written.

    now: asked when a file's turn comes.
    done: gets what became of each file, as soon as its turn comes.
    progress: gets candles stored of a file, and candles that it has.

    Raises what `put` and `now` do, save `Rejected`; the last one of `done` has `failed` then. When cancelled, what is
    handed to `put` may still be written.
    """
    reading: asyncio.Task[Survey] | None = None
    try:
        for number, file in enumerate(files):
            found = reading or _survey_task(file, now, manner)
            one = Imported(file.path, file.series)
            done.append(one)
            try:
                await asyncio.wait([found])
                reading = _survey_task(files[number + 1], now, manner) if number + 1 < len(files) else None
                await _import_file(file, one, found, put, manner, progress)
            except asyncio.CancelledError:
                one.failed = "interrupted"
                found.cancel()
                raise
            except KlinesyncError as error:
                one.failed = str(error)
                raise
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _survey_task(file: ImportFile, now: Now, manner: Manner) -> asyncio.Task[Survey]:
    async def read() -> Survey:
        now_s = await now(file.series)
        return await stoppable(lambda stopped: survey(file, now_s, manner, stopped))

    return asyncio.create_task(read(), name=f"reading {file.path.name}")


async def _import_file(
    file: ImportFile,
    done: Imported,
    reading: asyncio.Task[Survey],
    put: Put,
    manner: Manner,
    progress: Callable[[ImportFile, int, int], None],
) -> None:
    try:
        found = await reading
    except BadFile as error:
        done.refused = str(error)
        return
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

    pages = _sound_pages(file, judge.now, manner, found.held)
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
        stored = f"; {done.stored} of its {counted(judge.good, 'candle')} are stored" if done.stored else ""
        done.refused = (str(error) if isinstance(error, BadFile) else str(BadFile(file.path, str(error)))) + stored
    except PartlyStored as error:
        done.stored += error.stored
        raise
    finally:
        pages.close()
        for task, _ in waiting:
            task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)
        done.stored += sum(count for task, count in waiting if not task.cancelled() and task.exception() is None)


async def _put(put: Put, series: SeriesId, page: list[Candle]) -> int | None:
    return await put(series, page)


def _sound_pages(
    file: ImportFile, now: int, manner: Manner, held: list[rows.Columns] | None
) -> Generator[list[Candle], None, None]:
    judge = rows.Judge(file.series.timeframe, now)
    again = batches(file.path, judge.broken, unterminated=manner.unterminated)
    sound = held if held is not None else map(judge.sound, again)
    try:
        for page in rows.pages(sound, BATCH_CANDLES):
            yield page.candles()
    except rows.OutOfOrder:
        raise BadFile(file.path, "it was changed while it was read; import it again") from None


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
    if done.failed is not None:
        stored = f"{done.stored} of its candles are stored" if done.stored else "nothing of it is stored"
        return printable(f"{done.path}: {done.failed}; {stored}")
    if not done.rows:
        return printable(f"{done.path}: {done.note}")
    new = "" if done.new is None else f", {done.new} of them new"
    bad = f", {counted(done.quarantined, 'bad row')} left out" if done.quarantined else ""
    span = "" if done.first is None or done.last is None else f" from {_iso(done.first)} to {_iso(done.last)}"
    note = "" if done.note is None else f"; {done.note}"
    return printable(f"{done.path}: {counted(done.stored, 'candle')} of {done.series}{span}{new}{bad}{note}")


def _iso(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
