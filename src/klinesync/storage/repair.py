"""Repair of a damaged store: what can be read is copied into a new file, which takes the old one's place.

The old file is kept aside. Candles that are lost leave gaps, with a note in the quarantine: the next start fetches or
computes them again. Ledgers of series that lost candles are computed again. The pages of the new file have checksums.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import apsw

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, common, joined, runs, without
from klinesync.runtime.looking import is_file, real_path
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore, as_gap
from klinesync.storage.damage import OddValue
from klinesync.storage.disk import UNREADABLE, disk_trouble, sync
from klinesync.storage.lock import StoreLock
from klinesync.storage.memory import integer, ledger_of
from klinesync.storage.quarantine import MAX_QUARANTINED, Taken
from klinesync.storage.records import Derivation, DerivationOrigin, Ledger, Origin
from klinesync.storage.salvage import Salvage, StoredSeries, mend_header
from klinesync.storage.sqlite import refuse_foreign
from klinesync.storage.sqlite_file import SqliteFile
from klinesync.storage.sqlite_schema import check_owner, migrate
from klinesync.storage.tables import Row, Values
from klinesync.storage.wal_origin import refuse_foreign_log

# Candles of one transaction of the new file.
CANDLES_AT_ONCE = 20_000
# The source of the copied candles; it is seen nowhere, because nothing is revised.
SOURCE = "repair"
# Why candles of a span are missing whose bytes are gone.
GONE = "the part of the file that had them could not be read"
# Tables of a ledger, with the columns of their rows behind the series' number.
_OF_LEDGER = {
    "factor_event": "visible_time, event_no, factor, event",
    "drawing": "version_id, visible_time, instruction",
    "checkpoint": "time, kept, states",
}
# Tables that are copied as they are.
_BESIDE = {
    "derivation": "base, targets",
    "listing": "exchange, market, symbols",
    "backfill": "series_id, start_time, end_time",
    "series_event": "scope, event_no, event, detail, at_ms, since_ms, times",
}
_QUARANTINE = "series_id, start_time, end_time, found_at, why, bytes, healing"

Progress = Callable[[str], None]


class _NoStore(StoreError):
    """Nothing of a store was found in the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"nothing of a store was found in {path}, and it was not changed; name another file with --database-url, "
            "or move this one away, and the next start makes a new store"
        )


@dataclass(slots=True)
class Repaired:
    """The result of a repair.

    series, candles: what was copied.
    errors: what could not be read, as sentences for people.
    lost: spans of candles that are missing now, by series.
    aside: where the old file is kept; None: nothing was damaged, and the old file stays.
    """

    series: int = 0
    candles: int = 0
    errors: list[str] = field(default_factory=list)
    lost: dict[SeriesId, list[Span]] = field(default_factory=dict)
    aside: Path | None = None


def repair(path: Path, at: int, progress: Progress = lambda _: None) -> Repaired:
    """Copy what can be read of the store at `path` into a new file, which takes its place. A sound store whose pages
    have checksums stays as it is; a sound one without gets them.

    path: of the store; no other process may use it.
    at: UTC seconds.
    progress: called with a sentence about the progress.

    Raises `StoreError`; then the store is as it was. The copies need twice the room of the store on its disk.
    """
    if not is_file(path):
        raise StoreError(f"there is no store {path}; name another one with --database-url")
    refuse_foreign(path)
    refuse_foreign_log(path)
    lock = StoreLock(path, "verify --repair")
    unlocked = not is_file(lock.path)
    try:
        lock.acquire()
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.repair-", dir=real_path(path).parent) as folder:
            progress(f"{path}: copied, to be read")
            result, new = _copied(path, Path(folder), at, progress)
            # Not the lock file: it is also made beside a file of another kind whose name was mistaken for a store's.
            if not result.series and not page_checksums.is_checked(path):
                raise _NoStore(path)
            if result.errors or result.lost or not page_checksums.is_checked(path):
                result.aside = _put_in_place(path, new)
        return result
    except (_NoStore, apsw.NotADBError) as error:
        if unlocked:  # no process waits for it: opening such a file without a lock file is refused
            lock.path.unlink(missing_ok=True)
        raise _NoStore(path) from error
    except (apsw.Error, OSError, *UNREADABLE) as error:
        raise StoreError(f"the store {path} cannot be repaired: {disk_trouble(error, path)}") from error
    finally:
        lock.release()


def _copied(path: Path, folder: Path, at: int, progress: Progress) -> tuple[Repaired, Path]:
    """What was copied, and the new file. Raises `apsw.Error`, `OSError`, `StoreError`."""
    old, new = folder / "old.sqlite", folder / "new.sqlite"
    real = real_path(path)
    shutil.copyfile(path, old)
    if (wal := Path(f"{real}-wal")).exists():
        shutil.copyfile(wal, Path(f"{old}-wal"))
    result = Repaired()
    if mend_header(old):
        result.errors.append("the first page of the file was damaged")
    page_checksums.load()
    source = apsw.Connection(str(old))
    try:
        source.execute("PRAGMA writable_schema = ON")  # a damaged entry of the schema costs its table alone
        check_owner(source, path)
        with suppress(apsw.Error):
            migrate(source, path)
        salvage = Salvage(source)
        salvage.errors = result.errors
        file = SqliteFile(new)
        file.open()
        try:
            _Copy(salvage, file, result, at, progress).run()
        finally:
            file.close()
        _check_pages(old, result)
    finally:
        source.close()
    sync(new)
    return result, new


def _check_pages(old: Path, result: Repaired) -> None:
    """Report pages that fail their checksum, although nothing that was read lies in them."""
    file = os.open(old, os.O_RDONLY)
    try:
        size, first, wrong = page_checksums.checked_page_size(file), 1, 0
        while size is not None:
            bad, checked = page_checksums.bad_pages(file, size, first, (1 << 20) // size)
            if not checked:
                break
            wrong += len(bad)
            first += checked
    finally:
        os.close(file)
    if wrong:
        result.errors.append(f"{wrong} pages of the file fail their checksum")


def _put_in_place(path: Path, new: Path) -> Path:
    """Put the new file in the place of the store at `path`, which is kept aside with its log. Returns where. A crash in
    between leaves the old store, or the new one beside the old one's log, which is refused. Raises `OSError`."""
    real = real_path(path)
    aside = next(path for number in count(1) if not os.path.lexists(path := Path(f"{real}.damaged{number}")))
    os.link(real, aside)
    wal, shm = Path(f"{real}-wal"), Path(f"{real}-shm")
    if wal.exists():
        os.link(wal, f"{aside}-wal")
    shutil.copymode(real, new)
    new.rename(real)
    sync(real.parent)
    wal.unlink(missing_ok=True)
    shm.unlink(missing_ok=True)
    sync(real.parent)
    return aside


class _Copy:
    """Copies what can be read into the new file."""

    def __init__(self, salvage: Salvage, file: SqliteFile, result: Repaired, at: int, progress: Progress) -> None:
        self._salvage = salvage
        self._file = file
        self._result = result
        self._at = at
        self._progress = progress

    def run(self) -> None:
        all_series = self._salvage.series()
        names = {stored.number: stored.series for stored in all_series}
        # Quarantine and settings first: what is found damaged now is newer.
        self._copy_beside()
        for stored in sorted(all_series, key=lambda stored: (stored.base is not None, stored.number)):
            self._progress(f"{stored.series}: copied")
            self._copy_series(stored, names.get(stored.base) if stored.base is not None else None)

    def _copy_series(self, stored: StoredSeries, base: SeriesId | None) -> None:
        series, frame = stored.series, stored.series.timeframe
        covered: list[Span] = []
        taken: list[Taken] = []
        batch: list[Candle] = []
        origin = Origin(SOURCE, self._at, base)
        errors = len(self._result.errors)

        def write() -> None:
            candles = list(batch)
            batch.clear()
            covered.extend(runs(frame, [candle.time for candle in candles]))
            self._result.candles += len(candles)
            self._file.write(lambda store: store.write(series, candles, origin))

        newest = self._salvage.candles(stored.number, series)
        for part in self._salvage.chunks(stored.number, series):
            if isinstance(part, Taken):
                # From the first row on no candle is packed, although the last chunk may reach further.
                end = min(part.span.end, newest[0].time) if newest else part.span.end
                if part.span.start < end:
                    taken.append(part._replace(span=Span(part.span.start, end)))
            else:
                batch += part
            if len(batch) >= CANDLES_AT_ONCE:
                write()
        batch += newest
        if batch:
            write()
        if not covered:
            self._result.errors.append(f"{series}: no candle can be read")
            return
        self._result.series += 1
        covered = joined(covered)
        first = covered[0].start
        if stored.first is not None and 0 <= stored.first < first and frame.is_open(stored.first):
            first = stored.first
        holes = without([Span(first, covered[-1].end)], covered)
        rows = self._of(stored, "gap", "start_time, end_time, state, proof, confirmed_at", "ORDER BY start_time")
        old = _gaps(rows or [])
        declared = sorted(gap.over(span) for gap in old for span in common([gap.span], holes))
        undeclared = without(holes, joined(gap.span for gap in declared))
        if undeclared:
            self._result.lost[series] = undeclared
        whole = errors == len(self._result.errors) and not undeclared and not taken
        derivation = Derivation(base, _origin(stored.origin))
        gap_rows = tuple(sorted([*declared, *(Gap(*span, GapState.UNKNOWN) for span in undeclared)]))

        def settle(store: CandleStore) -> None:
            store.begin_at(series, first)
            store.change_gaps(series, GapChange((), gap_rows))
            if base is not None or stored.origin:
                store.set_derivation(series, derivation)
            for part in _for_quarantine(taken, undeclared):
                store.quarantine.keep(series, part, self._at)

        self._file.write(settle)
        self._copy_revisions(stored, series)
        self._copy_ledger(stored, series, whole=whole)

    def _copy_revisions(self, stored: StoredSeries, series: SeriesId) -> None:
        fields = ", ".join(Candle._fields)
        rows = self._of(stored, "candle_revision", f"{fields}, revised_at, source", "ORDER BY revision_no")
        if rows:
            self._put("candle_revision", f"series_no, {fields}, revised_at, source", rows, series)

    def _copy_ledger(self, stored: StoredSeries, series: SeriesId, *, whole: bool) -> None:
        """Copy the ledger of a series, or leave one that is computed anew; its epoch never goes back."""
        columns = "fingerprint, epoch, record_id, factor_head, overlay_head, version_id"
        row = self._of(stored, "ledger", columns)
        if row == []:
            return
        parts = {table: self._of(stored, table, names) for table, names in _OF_LEDGER.items()}
        try:
            ledger = None if row is None else ledger_of(row[0])
        except OddValue:
            ledger = None
        if ledger is None:
            ledger = Ledger("", epoch=self._at, record_id=self._at)
        elif whole and None not in parts.values():
            for table, names in _OF_LEDGER.items():
                self._put(table, f"series_no, {names}", parts[table] or [], series)
        else:
            ledger = Ledger("", ledger.epoch + 1, max(ledger.record_id, ledger.version_id) + 1)
        kept = ledger
        self._file.write(lambda store: store.ledger.put(series, kept))

    def _copy_beside(self) -> None:
        for table, columns in _BESIDE.items():
            rows = self._salvage.whole(table, columns)
            if rows:
                self._put(table, columns, rows)
        kept = self._salvage.whole("quarantine", _QUARANTINE, "ORDER BY quarantine_no")
        if kept:
            self._put("quarantine", _QUARANTINE, kept)

    def _of(self, stored: StoredSeries, table: str, columns: str, order: str = "") -> list[Row] | None:
        return self._salvage.whole(table, columns, f"WHERE series_no = ? {order}", (stored.number,))

    def _put(self, table: str, columns: str, rows: Sequence[Row], series: SeriesId | None = None) -> None:
        """Put rows into a table of the new file; rows of a series get its new number before them."""

        def put(store: CandleStore) -> None:
            number = () if series is None else (integer(store.tables.number(str(series))),)
            values = [(*number, *_values(row)) for row in rows]
            store.tables.put_raw(table, columns, values)

        self._file.write(put)


def _for_quarantine(taken: Sequence[Taken], undeclared: Sequence[Span]) -> list[Taken]:
    """What is kept in quarantine of a series: damaged chunks with missing candles, and missing spans without bytes."""
    with_bytes = [part for part in taken if any(span.overlaps(part.span) for span in undeclared)]
    gone = without(undeclared, joined(part.span for part in with_bytes))
    return list(islice((*with_bytes, *(Taken(span, b"", GONE) for span in gone)), MAX_QUARANTINED))


def _values(row: Row) -> Values:
    """A row as it was read, to be written."""
    return tuple(value if isinstance(value, int | float | str | bytes) else None for value in row)


def _gaps(rows: Sequence[Row]) -> list[Gap]:
    """The gaps of a ledger that are gaps."""
    gaps: list[Gap] = []
    for row in rows:
        with suppress(OddValue):
            gap = as_gap(row)
            if gap.start < gap.end and (not gaps or gaps[-1].end <= gap.start):
                gaps.append(gap)
    return gaps


def _origin(number: int) -> DerivationOrigin:
    try:
        return DerivationOrigin(number)
    except ValueError:
        return DerivationOrigin.MIXED  # it is computed anew
