"""Import: candles of files into a store. Each file is read to its end before any of it is written, because the file may
have to be refused as a whole. A short file is held in memory meanwhile, a long file is read a second time.

Writing is idempotent: an interrupted import is run again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from klinesync.core.candle import Candle
from klinesync.core.counted import counted
from klinesync.core.dates import iso
from klinesync.core.errors import KlinesyncError, Rejected
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.history.files import rows
from klinesync.history.files.names import CHECKSUM
from klinesync.history.files.planning import Imported, ImportFile
from klinesync.history.files.readers import BadFile, batches, next_in_thread, verify_checksum

T = TypeVar("T")

# Candles of one transaction: thirteen days of minutes, so that a day is seldom cut in two.
BATCH_CANDLES = 13 * 1440
# Most good rows of a file that are held in memory (16 MB): some months of minutes, which are then read once.
HELD_ROWS = 200_000
# Most rows of a file that are sorted in memory when they are out of order: seven years of minutes, 320 MB.
MAX_SORTED_ROWS = 4_000_000
# Most batches in flight to the writer, so that the writer never waits for a reader.
MAX_AHEAD = 2
# Largest share of bad rows; a file with more is refused as a whole.
MAX_BAD_SHARE = 0.5

# Stores candles of a series, and returns how many of them were new (None: unknown). Raises `Rejected`, and other errors
# of its destination.
Put = Callable[[SeriesId, list[Candle]], Awaitable[int | None]]
# Latest close of a candle of the series, UTC seconds.
Now = Callable[[SeriesId], Awaitable[int]]


class PartlyRefused(Rejected):
    """Candles were refused after the first `stored` had been stored."""

    def __init__(self, reason: str, stored: int) -> None:
        self.stored = stored
        super().__init__(reason)


class PartlyStored(KlinesyncError):
    """An error after the first `stored` candles had been stored."""

    def __init__(self, error: KlinesyncError, stored: int) -> None:
        self.stored = stored
        self.code = error.code
        super().__init__(str(error))


@dataclass(slots=True)
class Survey:
    """The result of reading a file to its end.

    judge: counts of its rows.
    checked: whether the file was compared with a checksum.
    held: its good rows, when they are few or had to be sorted; None: the file is read again.
    """

    judge: rows.Judge
    checked: bool
    held: list[rows.Columns] | None = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read. `strict`: a file with a bad row is refused. `unterminated`: the last line of a CSV may lack
    its line end."""

    strict: bool = False
    unterminated: bool = False


class Stopped(Exception):
    """The import was interrupted."""


def survey(file: ImportFile, now: int, options: ReadOptions, stopped: Callable[[], bool] = lambda: False) -> Survey:
    """Read a file to its end.

    file: the file; its rows may have any order.
    now: latest close of a candle, UTC seconds.
    options: how the file is read.
    stopped: asked between batches of rows whether to stop; never by default.

    Raises `BadFile` when the file is refused as a whole, `Stopped`.
    """
    path = file.path

    def read(judge: rows.Judge) -> Iterator[rows.Columns]:
        for batch in batches(path, judge.broken, unterminated=options.unterminated):
            if stopped():
                raise Stopped
            yield batch

    result = Survey(rows.Judge(file.series.timeframe, now), path.suffix != ".zip" or verify_checksum(path, stopped))
    try:
        for batch in read(result.judge):
            sound = result.judge.sound(batch)
            if result.held is not None:
                result.held.append(sound)
            if result.judge.good > HELD_ROWS:
                result.held = None
    except rows.OutOfOrder:
        result.judge = rows.Judge(file.series.timeframe, now)
        try:
            result.held = [result.judge.in_order(read(result.judge), MAX_SORTED_ROWS)]
        except rows.TooManyRows:
            why = f"its rows are not in the order of time, and more than the {MAX_SORTED_ROWS} that are sorted here"
            raise BadFile(path, why) from None
    judge = result.judge
    if not judge.rows:
        raise BadFile(path, "it holds no rows")
    if judge.flow_left_out and options.strict:
        raise BadFile(path, f"{judge.flow_left_out} of its {judge.rows} rows have bad order flow; {judge.flow_example}")
    if judge.bad and (options.strict or judge.bad > judge.rows * MAX_BAD_SHARE):
        raise BadFile(path, f"{judge.bad} of its {judge.rows} rows are bad; {judge.examples[0]}")
    return result


async def stoppable(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work` in a thread. Its argument returns whether to stop: after this call was cancelled."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(work, stopped.is_set)
    finally:
        stopped.set()


async def import_files(
    files: Sequence[ImportFile],
    put: Put,
    now: Now,
    options: ReadOptions,
    done: list[Imported],
    progress: Callable[[ImportFile, int, int], None] = lambda _file, _done, _all: None,
) -> None:
    """Import files one after the other. A file is read while the file before is written.

    files: in this order.
    put: stores candles.
    now: called when a file's turn comes.
    options: how the files are read.
    done: the result of each file is appended when its turn comes.
    progress: called with the file, the number of its stored candles, and the number of its candles.

    Raises what `put` and `now` raise, except `Rejected`; the last result then has `failed`. On cancellation candles
    that were handed to `put` may still be written.
    """
    reading: asyncio.Task[Survey] | None = None
    try:
        for number, file in enumerate(files):
            surveying = reading or _survey_task(file, now, options)
            result = Imported(file.path, file.series)
            done.append(result)
            try:
                await asyncio.wait([surveying])
                reading = _survey_task(files[number + 1], now, options) if number + 1 < len(files) else None
                await _import_file(file, result, surveying, put, options, progress)
            except asyncio.CancelledError:
                result.failed = "interrupted"
                surveying.cancel()
                raise
            except KlinesyncError as error:
                result.failed = str(error)
                raise
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _survey_task(file: ImportFile, now: Now, options: ReadOptions) -> asyncio.Task[Survey]:
    async def read() -> Survey:
        now_s = await now(file.series)
        return await stoppable(lambda stopped: survey(file, now_s, options, stopped))

    return asyncio.create_task(read(), name=f"reading {file.path.name}")


async def _import_file(
    file: ImportFile,
    done: Imported,
    reading: asyncio.Task[Survey],
    put: Put,
    options: ReadOptions,
    progress: Callable[[ImportFile, int, int], None],
) -> None:
    try:
        surveyed = await reading
    except BadFile as error:
        done.refused = str(error)
        return
    judge = surveyed.judge
    done.rows, done.quarantined, done.examples = judge.rows, judge.bad, judge.examples
    done.first, done.last = judge.first, judge.last
    done.flow_left_out, done.flow_example = judge.flow_left_out, judge.flow_example
    if not surveyed.checked:
        done.note = f"no {CHECKSUM} file lies beside it; only the zip's own CRC was checked"
    waiting: deque[tuple[asyncio.Task[int | None], int]] = deque()

    async def oldest_written() -> None:
        task, count = waiting[0]
        new = await task
        waiting.popleft()
        done.stored += count
        done.new = None if new is None or done.new is None else done.new + new
        progress(file, done.stored, judge.good)

    pages = _sound_pages(file, judge.now, options, surveyed.held)
    try:
        while (page := await next_in_thread(pages, "reading a file")) is not None:
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
    file: ImportFile, now: int, options: ReadOptions, held: list[rows.Columns] | None
) -> Generator[list[Candle], None, None]:
    judge = rows.Judge(file.series.timeframe, now)
    again = batches(file.path, judge.broken, unterminated=options.unterminated)
    sound = held if held is not None else map(judge.sound, again)
    try:
        for page in rows.pages(sound, BATCH_CANDLES):
            yield page.candles()
    except rows.OutOfOrder:
        raise BadFile(file.path, "it was changed while it was read; import it again") from None


def sentence(done: Imported) -> str:
    """The result of a file, in a line."""
    if done.refused is not None:
        return done.refused
    if done.failed is not None:
        stored = f"{done.stored} of its candles are stored" if done.stored else "nothing of it is stored"
        return printable(f"{done.path}: {done.failed}; {stored}")
    if not done.rows:
        return printable(f"{done.path}: {done.note}")
    new = "" if done.new is None else f", {done.new} of them new"
    bad = f", {counted(done.quarantined, 'bad row')} left out" if done.quarantined else ""
    flow = f", {counted(done.flow_left_out, 'candle')} without order flow" if done.flow_left_out else ""
    span = "" if done.first is None or done.last is None else f" from {iso(done.first)} to {iso(done.last)}"
    note = "" if done.note is None else f"; {done.note}"
    return printable(f"{done.path}: {counted(done.stored, 'candle')} of {done.series}{span}{new}{bad}{flow}{note}")
