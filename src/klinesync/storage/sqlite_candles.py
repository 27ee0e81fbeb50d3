"""Candles, gaps and revisions in SQLite: `CandleStore` on one connection.

The newest candles of a series are rows, which are cheap to add; those before them are chunks, which are cheap to read
and to keep. A series' chunks all lie before its rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import chain
from operator import itemgetter
from typing import Concatenate, NamedTuple, ParamSpec

import apsw

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import Rejected, StoreError
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined, runs
from klinesync.core.timeframe import Timeframe
from klinesync.storage.chunks import (
    CANDLE_BYTES,
    Grid,
    Maker,
    T,
    as_candles,
    chunk_of,
    chunk_start,
    first_time,
    pack,
    unpack_between,
)
from klinesync.storage.damage import Damage, DamageBoard, Kept, StoreDamaged
from klinesync.storage.database import (
    Corrected,
    Derivation,
    DerivationOrigin,
    Ledger,
    Origin,
    Revision,
    SeriesChange,
)
from klinesync.storage.disk import UNREADABLE, OddValue
from klinesync.storage.sqlite_events import SqliteEventStore
from klinesync.storage.sqlite_ledger import SqliteLedgerStore

# The newest candles of a series that its writer remembers: as many as the next derived candle is made of (seven days).
TAIL_CANDLES = 8
# Rows that one statement puts: a statement each would give the interpreter away for each, to whoever waits for it.
ROWS_OF_A_STATEMENT = 100
_PUT = (
    "INSERT INTO candle VALUES {} ON CONFLICT DO UPDATE SET open = excluded.open, high = excluded.high,"
    " low = excluded.low, close = excluded.close, volume = excluded.volume"
)
# The edges of a series: of its rows, which are the newest candles, and of its first chunk. Each is a look at one end.
_EDGES = """
    (SELECT min(time) FROM candle WHERE candle.series_no = series.series_no),
    (SELECT max(time) FROM candle WHERE candle.series_no = series.series_no),
    (SELECT substr(candles, 1, 8) FROM candle_chunk WHERE chunk_id >= series.series_no << 32
        AND chunk_id < (series.series_no + 1) << 32 ORDER BY chunk_id LIMIT 1)
"""
_GAP_STATES = {state.value: state for state in GapState}
_NUMBERS = frozenset({int, float})
_ROW = "(?, ?, ?, ?, ?, ?, ?)"
_PUT_ONE, _PUT_MANY = _PUT.format(_ROW), _PUT.format(", ".join([_ROW] * ROWS_OF_A_STATEMENT))


class _Edges(NamedTuple):
    """The oldest and the newest stored open time of a series. Not a span: that would end behind the newest candle."""

    oldest: int
    newest: int


class Known:
    """What a connection remembers of the store, so as not to ask for it a thousand times a minute.

    The numbers of series never change. The edges, the newest candles, the chunk in which a
    series' rows begin, the rows of ledgers, and which series have no gap are facts of the one writer: it alone may
    remember them, and it forgets them when a transaction is rolled back.
    """

    def __init__(self, *, writes: bool, damage: DamageBoard | None = None) -> None:
        self.writes = writes
        self.damage = DamageBoard() if damage is None else damage
        self.numbers: dict[SeriesId, int] = {}
        self.edges: dict[SeriesId, _Edges] = {}
        self.tails: dict[SeriesId, tuple[Candle, ...]] = {}
        self.row_chunks: dict[SeriesId, int] = {}
        self.gapless: set[SeriesId] = set()
        self.ledgers: dict[SeriesId, Ledger] = {}

    def learn(self, connection: apsw.Connection) -> None:
        """Everything at once: a question a series would keep its first candle waiting, and that of all others."""
        assert self.writes, "only the writer may remember"
        found = connection.execute(
            f"SELECT series_no, series_id, (SELECT 1 FROM gap WHERE gap.series_no = series.series_no), {_EDGES}"  # noqa: S608
            " FROM series"
        )
        for number, name, gap, oldest_row, head, packed in found:
            series = _series(name)
            self.numbers[series] = int(number)
            if gap is None:
                self.gapless.add(series)
            edges = _edges_of(oldest_row, head, packed)
            if edges is not None:
                self.edges[series] = edges
                self.row_chunks[series] = chunk_of(int(number), series.timeframe, int(oldest_row))

    def number(self, connection: apsw.Connection, series: SeriesId) -> int | None:
        """Of a stored series; None of another."""
        number = self.numbers.get(series)
        if number is None:
            found = connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(series),)).get
            if found is not None:
                number = self.numbers[series] = _integer(found)
        return number

    def forget(self) -> None:
        self.numbers.clear()
        self.edges.clear()
        self.tails.clear()
        self.row_chunks.clear()
        self.gapless.clear()
        self.ledgers.clear()


# After these SQLite may have rolled back all of the transaction.
_REFUSED_BY_DISK = (apsw.FullError, apsw.IOError, apsw.NoMemError, apsw.CantOpenError, apsw.ReadOnlyError)

P = ParamSpec("P")


def _refusal_of_disk(error: BaseException) -> apsw.Error | None:
    """The disk's refusal behind an error: where it ended the transaction, SQLite goes on to say that there is no
    savepoint any more."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, _REFUSED_BY_DISK):
            return behind
        behind = behind.__context__
    return None


class TransactionLost(StoreError):
    """The disk refused a write inside a savepoint (it is full, or failing): no more of the transaction is to be done,
    for SQLite may have rolled all of it back. The cause is SQLite's error."""


def _names_series(
    method: Callable[Concatenate[SqliteCandleStore, SeriesId, P], T],
) -> Callable[Concatenate[SqliteCandleStore, SeriesId, P], T]:
    """Of a method that asks for one series: pages of the file that SQLite cannot read are damage of that series, and
    raise `StoreDamaged`."""

    @wraps(method)
    def named(store: SqliteCandleStore, series: SeriesId, /, *args: P.args, **more: P.kwargs) -> T:
        try:
            return method(store, series, *args, **more)
        except UNREADABLE as error:
            raise store._unreadable(series, error) from error  # noqa: SLF001  # a decorator of its methods

    return named


class SqliteCandleStore:
    """`CandleStore` on one connection, in one transaction; `commit` is its number where that is known.

    A writing one keeps rows until they are read or `save` is called.
    """

    def __init__(self, connection: apsw.Connection, known: Known, commit: int | None = None) -> None:
        self._connection = connection
        self._known = known
        self._commit = commit
        self._unsaved: list[tuple[int | float, ...]] = []
        # Damage that this transaction has met. The board may have forgotten it meanwhile, by a look at a later state.
        self._met: list[tuple[SeriesId, Span]] = []
        self.changes: list[SeriesChange] = []
        # Not a method of this: one that held the other would leave both to be found as garbage, after each transaction.
        number = partial(known.number, connection)
        self.ledger = SqliteLedgerStore(connection, number, known.ledgers if known.writes else None, known.damage)

    @property
    def events(self) -> SqliteEventStore:
        return SqliteEventStore(self._connection)

    @_names_series
    def head(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges.newest

    @_names_series
    def first(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges.oldest

    @_names_series
    def newest(
        self, series: SeriesId, limit: int, *, before: int | None = None, after: int | None = None
    ) -> list[Candle]:
        return self._newest_rows(series, limit, as_candles, before, after, strict=True)

    @_names_series
    def newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], *, before: int | None = None, after: int | None = None
    ) -> list[T]:
        return self._newest_rows(series, limit, make, before, after, strict=False)

    def _newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], before: int | None, after: int | None, *, strict: bool
    ) -> list[T]:
        number = self._number(series)
        if number is None:
            return []
        start, end = 0 if after is None else after + 1, MAX_TIME + 1 if before is None else before
        rows = self._rows(number, start, end, make, limit, newest=True)
        rows.reverse()
        if len(rows) >= limit:
            return rows
        parts = [rows]
        lacking = limit - len(rows)
        for some in self._chunks(series, number, start, end, make, newest=True, strict=strict):
            parts.append(some[-lacking:])
            lacking -= len(parts[-1])
            if not lacking:
                break
        return [row for part in reversed(parts) for row in part]

    @_names_series
    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        return self._oldest_rows(series, limit, as_candles, since, strict=True)

    @_names_series
    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int) -> list[T]:
        return self._oldest_rows(series, limit, make, since, strict=False)

    def _oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], since: int, *, strict: bool) -> list[T]:
        number = self._number(series)
        if number is None:
            return []
        found: list[T] = []
        for some in self._chunks(series, number, since + 1, MAX_TIME + 1, make, strict=strict):
            found += some
            if len(found) >= limit:
                return found[:limit]
        return found + self._rows(number, since + 1, MAX_TIME + 1, make, limit - len(found))

    @_names_series
    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        number = self._number(series)
        if number is None:
            return 0
        self._save_rows()
        found = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM candle WHERE series_no = ? AND time > ? LIMIT ?)",
            (number, since, most),
        ).get
        found = _integer(found)
        if found < most:
            chunk = chunk_of(number, series.timeframe, max(since, 0))
            found += sum(len(few) for few in self._chunks_of(series, number, chunk, chunk, since + 1))
        if found < most:
            limits = (_chunk_id(number, chunk + 1), _chunk_id(number + 1, 0), most - found)
            # The length of a blob is told without reading it.
            packed = self._connection.execute(
                "SELECT sum(bytes) FROM (SELECT length(candles) AS bytes FROM candle_chunk"
                " WHERE chunk_id >= ? AND chunk_id < ? ORDER BY chunk_id LIMIT ?)",
                limits,
            ).get
            found += (0 if packed is None else _integer(packed)) // CANDLE_BYTES
        return min(found, most)

    @_names_series
    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        number = self._number(series)
        return [] if number is None else self._between(series, number, start, end)

    @_names_series
    def span(self, series: SeriesId) -> Span | None:
        edges = self._edges(series)
        return None if edges is None else Span(edges.oldest, series.timeframe.next(edges.newest))

    def commit(self) -> int:
        if self._commit is None:
            found = self._connection.execute("SELECT commits FROM commit_count").get
            self._commit = _integer(found)
        return self._commit

    def series(self) -> list[SeriesId]:
        found = self._connection.execute("SELECT series_id FROM series ORDER BY series_no")
        return [_series(text) for (text,) in found]

    @_names_series
    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        number = self._number(series)
        found = self._connection.execute("SELECT series_id FROM series WHERE derived_from = ?", (number,))
        return [_series(text) for (text,) in found]

    @_names_series
    def derivation(self, series: SeriesId) -> Derivation:
        found = self._connection.execute(
            "SELECT base.series_id, series.origin FROM series LEFT JOIN series AS base"
            " ON base.series_no = series.derived_from WHERE series.series_id = ?",
            (str(series),),
        ).get
        if found is None:
            return Derivation(None)
        base, origin = found
        if origin not in iter(DerivationOrigin):
            raise OddValue(f"{str(origin)[:40]!r} is no origin of a series")
        return Derivation(None if base is None else _series(base), DerivationOrigin(origin))

    @_names_series
    def set_derivation(self, series: SeriesId, derivation: Derivation) -> None:
        base = None if derivation.base is None else self._number(derivation.base)
        self._connection.execute(
            "UPDATE series SET derived_from = ?, origin = ? WHERE series_id = ?",
            (base, int(derivation.origin), str(series)),
        )

    def derived_settings(self) -> tuple[Timeframe, tuple[Timeframe, ...]] | None:
        found = self._connection.execute("SELECT base, targets FROM derivation").get
        if found is None:
            return None
        base, targets = found
        try:
            return Timeframe.parse(str(base)), tuple(Timeframe.parse(code) for code in str(targets).split(",") if code)
        except Rejected as error:
            raise OddValue(str(error)) from error

    def set_derived_settings(self, base: Timeframe, targets: Sequence[Timeframe]) -> None:
        self._connection.execute("DELETE FROM derivation")
        self._connection.execute(
            "INSERT INTO derivation VALUES (?, ?)", (base.code, ",".join(target.code for target in targets))
        )

    @_names_series
    def gaps(self, series: SeriesId, window: Span | None = None) -> list[Gap]:
        if series in self._known.gapless:
            return []
        number = self._number(series)
        if number is None:
            return []
        start, end = window or (-1, MAX_TIME + 1)
        found = self._connection.execute(
            "SELECT start_time, end_time, state, proof, confirmed_at FROM gap"
            " WHERE series_no = ? AND start_time <= ? AND end_time >= ? ORDER BY start_time",
            (number, end, start),
        )
        gaps = [_as_gap(row) for row in found]
        if not gaps and self._known.writes:
            any_gap = self._connection.execute("SELECT 1 FROM gap WHERE series_no = ? LIMIT 1", (number,)).get
            if any_gap is None:
                self._known.gapless.add(series)
        return gaps

    def damaged(self, series: SeriesId) -> list[Span]:
        met = [span for whose, span in self._met if whose == series]
        return joined([*self._known.damage.spans(series), *met])

    def recheck(self, damage: Damage) -> None:
        if damage.series is None:
            return
        if damage.kept in (Kept.CANDLES, Kept.ANY):
            self._recheck(damage.series, damage.kept, damage.span)
        else:
            self.ledger.recheck(damage)

    @_names_series
    def _recheck(self, series: SeriesId, kept: Kept, span: Span | None) -> None:
        number = self._number(series)
        start, end = span or (0, MAX_TIME + 1)
        if number is not None:
            for _ in self._chunks(series, number, start, end, as_candles):
                pass
            self._rows(number, start, end, as_candles)
            self._edges(series)
            self.gaps(series)
            self.revisions(series)
        self._known.damage.clear(series, kept, span)

    @_names_series
    def revisions(self, series: SeriesId) -> list[Revision]:
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume, revised_at, source FROM candle_revision"
            " WHERE series_no = ? ORDER BY revision_no",
            (self._number(series),),
        )
        return [_as_revision(row) for row in found]

    @_names_series
    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        if len(candles) == 1:
            ascending = list(candles)
        else:
            ascending = [by_time for _, by_time in sorted({candle.time: candle for candle in candles}.items())]
        if not ascending:
            return Applied(series, (), frozenset(), commit=self.commit())
        number = self._number(series)
        if number is None:
            number = self._add_series(series, origin)
        edges = self._edges(series)
        head = None if edges is None else edges.newest
        revised: frozenset[int] = frozenset()
        rounded: frozenset[int] = frozenset()
        if head is not None and ascending[0].time <= head:
            # By runs: a batch may hold candles that lie years apart.
            times = [candle.time for candle in ascending]
            spans = runs(series.timeframe, times)
            stored = {row.time: row for span in spans for row in self._between(series, number, *span)}
            ascending = [candle for candle in ascending if stored.get(candle.time) != candle]
            revising = [one for one in ascending if origin.revises(stored.get(one.time), one)]
            late = (one.time for one in ascending if one.time <= head and one.time not in stored)
            revised = frozenset(one.time for one in revising).union(late)
            rounded = frozenset(one.time for one in ascending if one.time <= head) - revised
            self._connection.executemany(
                "INSERT INTO candle_revision (series_no, time, open, high, low, close, volume, revised_at, source)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(number, *stored[one.time], origin.at, origin.source) for one in revising],
            )
            if revising:
                corrected = Corrected(revising[0].time, revising[-1].time, len(revising), origin.source)
                self.changes.append((series, corrected))
        if ascending:
            first, last = ascending[0].time, ascending[-1].time
            if edges is not None:
                first, last = min(edges.oldest, first), max(edges.newest, last)
            self._place(series, number, ascending, last)
            self._known.edges[series] = _Edges(first, last)
            if head is None or head < ascending[0].time:
                tail = (*self._known.tails.get(series, ()), *ascending[-TAIL_CANDLES:])
                self._known.tails[series] = tail[-TAIL_CANDLES:]
            else:
                self._known.tails.pop(series, None)
        return Applied(series, tuple(ascending), revised, commit=self.commit(), rounded=rounded)

    @_names_series
    def trim(self, series: SeriesId, before: int) -> None:
        number = self._number(series)
        if number is None:
            return
        self._save_rows()
        self._known.edges.pop(series, None)
        self._known.tails.pop(series, None)
        self._known.row_chunks.pop(series, None)
        chunk = chunk_of(number, series.timeframe, max(before, 0))
        self._connection.execute(
            "DELETE FROM candle_chunk WHERE chunk_id >= ? AND chunk_id < ?",
            (_chunk_id(number, 0), _chunk_id(number, chunk)),
        )
        # A damaged chunk stays as it is: nobody knows which candles are in it.
        candles = [one for few in self._chunks_of(series, number, chunk, chunk, 0) for one in few]
        if candles and candles[0].time < before:
            self._put_chunk(number, chunk, [candle for candle in candles if candle.time >= before])
        for table in ("candle", "candle_revision"):
            self._connection.execute(
                f"DELETE FROM {table} WHERE series_no = ? AND time < ?",  # noqa: S608  # only our own word is joined in
                (number, before),
            )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self.save()
        try:
            with self._connection:  # apsw makes a block of a connection a savepoint
                yield
                self.ledger.save()
        except BaseException as error:
            self._unsaved = []
            self.ledger.forget()
            self._known.forget()
            cause = _refusal_of_disk(error)
            if cause is None and isinstance(error, apsw.Error) and not self._connection.in_transaction:
                cause = error
            if cause is not None:
                raise TransactionLost(str(cause)) from cause
            raise

    def save(self) -> None:
        self._save_rows()
        self.ledger.save()

    def _save_rows(self) -> None:
        rows = self._unsaved
        if not rows:
            return
        self._unsaved = []
        whole = len(rows) - len(rows) % ROWS_OF_A_STATEMENT
        try:
            for at in range(0, whole, ROWS_OF_A_STATEMENT):
                some = rows[at : at + ROWS_OF_A_STATEMENT]
                self._connection.execute(_PUT_MANY, [value for row in some for value in row])
            self._connection.executemany(_PUT_ONE, rows[whole:])
        except apsw.CorruptError as error:
            numbers = {row[0] for row in rows}
            whose = [series for series, number in self._known.numbers.items() if number in numbers]
            if len(whose) == 1:
                raise self._unreadable(whose[0], error) from error
            # Of several series nobody knows which: the caller tries each by itself.
            raise StoreDamaged(Damage(None, None, str(error))) from error

    @_names_series
    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        if not change:
            return
        self.changes.append((series, change))
        number = self._number(series)
        self._known.gapless.discard(series)
        self._connection.executemany(
            "DELETE FROM gap WHERE series_no = ? AND start_time = ?", [(number, gap.start) for gap in change.delete]
        )
        self._connection.executemany(
            "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?)",
            [(number, gap.start, gap.end, str(gap.state), gap.proof, gap.time) for gap in change.insert],
        )

    def listing(self, exchange: str, market: str) -> bytes | None:
        row = self._connection.execute(
            "SELECT symbols FROM listing WHERE exchange = ? AND market = ?", (exchange, market)
        ).get
        if not isinstance(row, bytes | None):
            raise OddValue("a list of symbols is no bytes")
        return row

    def keep_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO listing VALUES (?, ?, ?)", (exchange, market, symbols))

    def backfills(self) -> list[tuple[SeriesId, Span]]:
        found = []
        for series, start, end in self._connection.execute("SELECT series_id, start_time, end_time FROM backfill"):
            found.append((_series(series), Span(_integer(start), _integer(end))))
        return found

    def add_backfill(self, series: SeriesId, span: Span) -> None:
        self._connection.execute("INSERT OR IGNORE INTO backfill VALUES (?, ?, ?)", (str(series), *span))

    def end_backfill(self, series: SeriesId, span: Span) -> None:
        self._connection.execute(
            "DELETE FROM backfill WHERE series_id = ? AND start_time = ? AND end_time = ?", (str(series), *span)
        )

    def _add_series(self, series: SeriesId, origin: Origin) -> int:
        base = None if origin.base is None else self._number(origin.base)
        self._connection.execute("INSERT INTO series (series_id, derived_from) VALUES (?, ?)", (str(series), base))
        number = self._known.numbers[series] = self._connection.last_insert_rowid()
        return number

    def _between(self, series: SeriesId, number: int, start: int, end: int) -> list[Candle]:
        tail = self._known.tails.get(series)
        if tail is not None and start >= tail[0].time:
            return [candle for candle in tail if start <= candle.time < end]
        rows = self._rows(number, start, end, as_candles)
        row_chunk = self._known.row_chunks.get(series)
        if row_chunk is not None and chunk_of(number, series.timeframe, start) >= row_chunk:
            return rows
        found = [candle for candles in self._chunks(series, number, start, end, as_candles) for candle in candles]
        return found + rows if found else rows

    def _rows(
        self, number: int, start: int, end: int, make: Maker[T], limit: int = -1, *, newest: bool = False
    ) -> list[T]:
        """The oldest (or newest, newest first) `limit` candles among the rows that open in `[start, end)`."""
        self._save_rows()
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume FROM candle"  # noqa: S608  # only our own word is joined in
            f" WHERE series_no = ? AND time >= ? AND time < ? ORDER BY time {'DESC' if newest else 'ASC'} LIMIT ?",
            (number, start, end, limit),
        )
        rows = found.fetchall()
        if not _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
            raise OddValue("a candle has a value that is no number")
        return make(rows)

    def _chunks(
        self,
        series: SeriesId,
        number: int,
        start: int,
        end: int,
        make: Maker[T],
        *,
        newest: bool = False,
        strict: bool = True,
    ) -> Iterator[list[T]]:
        """The packed candles that open in `[start, end)`, chunk by chunk; the newest chunk first where that is asked.
        Each is ascending, and none is empty. A damaged chunk is noted; it raises `StoreDamaged`, or is passed over
        when not `strict`."""
        first = chunk_of(number, series.timeframe, max(start, 0))
        last = chunk_of(number, series.timeframe, min(max(end - 1, 0), MAX_TIME))
        for chunk, packed in self._packed(series, number, first, last, newest=newest, strict=strict):
            why = None if isinstance(packed, bytes) else "it is no bytes"
            rows: list[T] = []
            if isinstance(packed, bytes):  # else another program wrote it
                try:
                    rows = unpack_between(packed, start, end, make, self._grid(series, number, chunk))
                except ValueError as error:
                    why = str(error)
            if why is not None:
                self._damaged(series, number, chunk, chunk, why, strict=strict)
                continue
            if self._known.damage:
                self._known.damage.clear(series, Kept.CANDLES, self._chunk_span(series, number, chunk))
            if rows:
                yield rows

    def _packed(
        self, series: SeriesId, number: int, first: int, last: int, *, newest: bool, strict: bool
    ) -> Iterator[tuple[int, object]]:
        """The chunks from `first` to `last` (inclusive) as they are stored. Pages of the file that SQLite cannot read
        are damage of the chunks that lie in them."""
        order = "DESC" if newest else "ASC"
        while first <= last:
            try:
                for chunk_id, packed in self._connection.execute(
                    "SELECT chunk_id, candles FROM candle_chunk WHERE chunk_id BETWEEN ? AND ?"  # noqa: S608  # our words
                    f" ORDER BY chunk_id {order}",
                    (_chunk_id(number, first), _chunk_id(number, last)),
                ):
                    chunk = _integer(chunk_id) - _chunk_id(number, 0)
                    # The next read after a failed one begins behind this chunk.
                    first, last = (first, chunk - 1) if newest else (chunk + 1, last)
                    yield chunk, packed
            except UNREADABLE as error:
                strict = strict or self._known.writes  # what met such a page cannot be committed
                bad = self._next_chunk(number, first, last, newest=newest)
                if bad is None:
                    self._damaged(series, number, first, last, str(error), strict=strict)
                    return
                self._damaged(series, number, bad, bad, str(error), strict=strict)
                first, last = (first, bad - 1) if newest else (bad + 1, last)
            else:
                return

    def _next_chunk(self, number: int, first: int, last: int, *, newest: bool) -> int | None:
        """The next stored chunk, without reading what is in it; None when even that cannot be read."""
        try:
            found = self._connection.execute(
                f"SELECT {'max' if newest else 'min'}(chunk_id) FROM candle_chunk WHERE chunk_id BETWEEN ? AND ?",  # noqa: S608
                (_chunk_id(number, first), _chunk_id(number, last)),
            ).get
        except UNREADABLE:
            return None
        return found - _chunk_id(number, 0) if isinstance(found, int) else None

    def _damaged(self, series: SeriesId, number: int, first: int, last: int, why: str, *, strict: bool) -> None:
        start, end = self._chunk_span(series, number, first).start, self._chunk_span(series, number, last).end
        damage = Damage(series, Span(start, end), f"the stored candles cannot be read: {why}")
        self._known.damage.note(damage)
        self._met.append((series, Span(start, end)))
        if strict:
            raise StoreDamaged(damage)

    def _unreadable(self, series: SeriesId, error: Exception) -> StoreDamaged:
        damage = Damage(series, None, f"the store's file cannot be read there: {error}", Kept.ANY)
        self._known.damage.note(damage)
        return StoreDamaged(damage)

    def _grid(self, series: SeriesId, number: int, chunk: int) -> Grid:
        span = self._chunk_span(series, number, chunk)
        return Grid(span.start, span.end, series.timeframe.step_s)

    def _chunk_span(self, series: SeriesId, number: int, chunk: int) -> Span:
        frame = series.timeframe
        start, end = chunk_start(number, frame, chunk), chunk_start(number, frame, chunk + 1)
        return Span(max(start, 0), min(end, MAX_TIME + 1))

    def _chunks_of(self, series: SeriesId, number: int, first: int, last: int, start: int) -> Iterator[list[Candle]]:
        span = Span(
            max(start, self._chunk_span(series, number, first).start), self._chunk_span(series, number, last).end
        )
        return self._chunks(series, number, span.start, span.end, as_candles, strict=False)

    def _chunk(self, series: SeriesId, number: int, chunk: int) -> list[Candle]:
        """The candles of one chunk; none when there is no such chunk. Raises `StoreDamaged`."""
        span = self._chunk_span(series, number, chunk)
        return [one for few in self._chunks(series, number, *span, as_candles) for one in few]

    def _put_chunk(self, number: int, chunk: int, candles: Sequence[Candle]) -> None:
        if candles:
            self._connection.execute(
                "INSERT OR REPLACE INTO candle_chunk VALUES (?, ?)", (_chunk_id(number, chunk), pack(candles))
            )
        else:
            self._connection.execute("DELETE FROM candle_chunk WHERE chunk_id = ?", (_chunk_id(number, chunk),))

    def _place(self, series: SeriesId, number: int, candles: Sequence[Candle], head: int) -> None:
        """Put candles where they belong: those in the chunk of the new head are rows, all others are packed, and so
        are the rows that the head has left behind."""
        frame = series.timeframe
        newest = chunk_of(number, frame, head)
        row_chunk = self._known.row_chunks.get(series)
        if row_chunk is None:
            oldest = self._oldest_row(number)
            row_chunk = newest if oldest is None else chunk_of(number, frame, oldest)
        if row_chunk == newest == chunk_of(number, frame, candles[0].time):
            by_chunk = {newest: candles}
        else:
            by_chunk = _by_chunk(number, frame, candles)
            if row_chunk < newest:
                self._pack_rows(series, number, newest, by_chunk)
        for chunk, few in by_chunk.items():
            if chunk != newest:
                self._put_chunk(number, chunk, _merged(self._chunk(series, number, chunk), few))
                continue
            self._unsaved += [(number, *candle) for candle in few]
        self._known.row_chunks[series] = newest

    def _pack_rows(self, series: SeriesId, number: int, before: int, arriving: dict[int, Sequence[Candle]]) -> None:
        """Pack the rows of all chunks before `before`, a chunk at a time, with what arrives of these."""
        while (oldest := self._oldest_row(number)) is not None:
            chunk = chunk_of(number, series.timeframe, oldest)
            if chunk >= before:
                return
            end = chunk_start(number, series.timeframe, chunk + 1)
            rows = self._rows(number, oldest, end, as_candles)
            self._connection.execute("DELETE FROM candle WHERE series_no = ? AND time < ?", (number, end))
            arriving[chunk] = _merged(rows, arriving.get(chunk, ()))

    def _oldest_row(self, number: int) -> int | None:
        self._save_rows()
        found = self._connection.execute("SELECT min(time) FROM candle WHERE series_no = ?", (number,)).get
        return None if found is None else _integer(found)

    def _edges(self, series: SeriesId) -> _Edges | None:
        edges = self._known.edges.get(series)
        if edges is None:
            number = self._number(series)
            if number is None:
                return None
            self._save_rows()
            found = self._connection.execute(f"SELECT {_EDGES} FROM series WHERE series_no = ?", (number,)).get  # noqa: S608
            if not isinstance(found, tuple):
                raise OddValue("the row of the series is gone")
            edges = _edges_of(*found)
            if edges is not None and self._known.writes:
                self._known.edges[series] = edges
        return edges

    def _number(self, series: SeriesId) -> int | None:
        return self._known.number(self._connection, series)


def _chunk_id(number: int, chunk: int) -> int:
    return (number << 32) + chunk


def _edges_of(oldest_row: object, head: object, packed: object) -> _Edges | None:
    """Of a series with that oldest and newest row, whose first chunk begins with these bytes, if it has chunks."""
    if oldest_row is None:
        return None
    oldest, newest = _integer(oldest_row), _integer(head)
    if packed is None:
        return _Edges(oldest, newest)
    if not isinstance(packed, bytes):
        raise OddValue("a chunk is no bytes")
    return _Edges(first_time(packed), newest)


def _by_chunk(number: int, timeframe: Timeframe, ascending: Sequence[Candle]) -> dict[int, Sequence[Candle]]:
    found: dict[int, Sequence[Candle]] = {}
    first = 0
    while first < len(ascending):
        chunk = chunk_of(number, timeframe, ascending[first].time)
        end = chunk_start(number, timeframe, chunk + 1)
        last = bisect_left(ascending, end, first, key=_time_of)
        found[chunk] = ascending[first:last]
        first = last
    return found


_time_of = itemgetter(0)


def _merged(stored: Sequence[Candle], arriving: Sequence[Candle]) -> Sequence[Candle]:
    """Both, ascending; of two of one time the arriving one."""
    if not stored or not arriving or stored[-1].time < arriving[0].time:
        return [*stored, *arriving]
    return [one for _, one in sorted(({one.time: one for one in stored} | {one.time: one for one in arriving}).items())]


def _as_gap(row: Sequence[object]) -> Gap:
    start, end, state, proof, time = row
    known = _GAP_STATES.get(str(state))
    if known is None:
        raise OddValue(f"{str(state)[:40]!r} is no state of a gap")
    proof = None if proof is None else str(proof)
    return Gap(_integer(start), _integer(end), known, proof, None if time is None else _integer(time))


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise OddValue(f"{str(value)[:40]!r} is no integer")
    return value


def _series(text: object) -> SeriesId:
    try:
        return SeriesId.parse(str(text))
    except Rejected as error:
        raise OddValue(str(error)) from error


def _as_revision(row: Sequence[object]) -> Revision:
    return Revision(Candle(*row[:6]), *row[6:])  # type: ignore[arg-type]  # the table is STRICT
