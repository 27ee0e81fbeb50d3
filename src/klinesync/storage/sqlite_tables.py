"""The statements of the store in SQLite: `Tables` on one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from types import FunctionType
from typing import Concatenate, ParamSpec, TypeVar

import apsw

from klinesync.core.candle import Candle
from klinesync.storage.chunks import HEADER_BYTES
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.disk import UNREADABLE, BadPage, bad_page
from klinesync.storage.records import Ledger
from klinesync.storage.tables import Row, TransactionLost, Values

# Most rows of one statement. A statement for each row would release the interpreter's lock for each.
ROWS_OF_A_STATEMENT = 100
# After these SQLite may have rolled back all of the transaction.
_REFUSED_BY_DISK = (apsw.FullError, apsw.IOError, apsw.NoMemError, apsw.CantOpenError, apsw.ReadOnlyError)
_FIELDS = ", ".join(Candle._fields)


class _Put:
    """A statement that puts rows, for one row and for `ROWS_OF_A_STATEMENT`. `{}` in the text stands for the rows."""

    def __init__(self, text: str, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self.one = text.format(row)
        self.many = text.format(", ".join([row] * ROWS_OF_A_STATEMENT))


_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in Candle._fields[1:])
_PUT_CANDLES = _Put(
    f"INSERT INTO candle (series_no, {_FIELDS}) VALUES {{}} ON CONFLICT DO UPDATE SET {_REPLACED}",  # noqa: S608
    len(Candle._fields) + 1,
)
_PUT_LEDGERS = _Put("INSERT OR REPLACE INTO ledger VALUES {}", 1 + len(Ledger._fields))
# The edges of a series: of its rows, which are the newest candles, and of its first chunk. Each is a look at one end.
_EDGES = """
    (SELECT min(time) FROM candle WHERE candle.series_no = series.series_no),
    (SELECT max(time) FROM candle WHERE candle.series_no = series.series_no),
    (SELECT substr(candles, 1, 8) FROM candle_chunk WHERE chunk_id >= series.series_no << 32
        AND chunk_id < (series.series_no + 1) << 32 ORDER BY chunk_id LIMIT 1),
    first_time
"""
_FACTS = (
    "SELECT series_no, series_id, (SELECT 1 FROM gap WHERE gap.series_no = series.series_no),"  # noqa: S608  # our words
    f" {_EDGES} FROM series"
)
_EDGES_OF = f"SELECT {_EDGES} FROM series WHERE series_no = ?"  # noqa: S608  # our words
_CANDLES = (
    f"SELECT {_FIELDS} FROM candle"  # noqa: S608  # our words
    " WHERE series_no = ? AND time >= ? AND time < ? ORDER BY time {} LIMIT ?"
)
_OLDEST, _NEWEST = _CANDLES.format("ASC"), _CANDLES.format("DESC")
_CHUNKS = "SELECT chunk_id, candles FROM candle_chunk WHERE chunk_id BETWEEN ? AND ? ORDER BY chunk_id {} LIMIT ?"
_CHUNKS_UP, _CHUNKS_DOWN = _CHUNKS.format("ASC"), _CHUNKS.format("DESC")
_NEXT_CHUNK = "SELECT {}(chunk_id) FROM candle_chunk WHERE chunk_id BETWEEN ? AND ?"
_FIRST_CHUNK, _LAST_CHUNK = _NEXT_CHUNK.format("min"), _NEXT_CHUNK.format("max")


P = ParamSpec("P")
R = TypeVar("R")


def _raises_bad_page(method: Callable[Concatenate[SqliteTables, P], R]) -> Callable[Concatenate[SqliteTables, P], R]:
    """A statement that meets a page which cannot be read raises `BadPage`. After that a transaction can only be read,
    to find out what is damaged: nothing is written outside of a transaction."""
    writes = method.__name__.startswith(_WRITES)

    @wraps(method)
    def guarded(tables: SqliteTables, /, *args: P.args, **more: P.kwargs) -> R:
        if writes and tables.lost is not None:
            raise BadPage(f"the transaction has met a page that cannot be read: {tables.lost}")
        try:
            return method(tables, *args, **more)
        except apsw.IOError as error:
            if (bad := bad_page(error)) is None:
                raise
            tables.lose_transaction(bad)
            raise bad from error

    return guarded


def _with_bad_pages(kind: type[SqliteTables]) -> type[SqliteTables]:
    """Decorates each statement of the class with `_raises_bad_page`."""
    for name, method in list(vars(kind).items()):
        if isinstance(method, FunctionType) and name not in _NO_STATEMENTS:
            setattr(kind, name, _raises_bad_page(method))
    return kind


# The beginnings of the names of statements that write.
_WRITES = ("add_", "delete_", "end_", "evict_", "put_", "set_")
_NO_STATEMENTS = frozenset({"__init__", "savepoint", "lose_transaction", "_one"})


@_with_bad_pages
class SqliteTables:
    """See `Tables`.

    `snapshot_lost`: a read has met a page that cannot be read, which ended its transaction: what it has read since then
    may be of a later state. `lost`: the page that has ended a writing transaction.
    """

    unreadable = UNREADABLE
    contradicted = (apsw.ConstraintError,)

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._run = connection.execute
        self._run_many = connection.executemany
        self.snapshot_lost = False
        self.lost: BadPage | None = None
        self._in_transaction = connection.in_transaction

    def lose_transaction(self, bad: BadPage) -> None:
        """SQLite has rolled the transaction back, because of a page that cannot be read. A reading one begins anew."""
        if self._connection.in_transaction or not self._in_transaction:
            return
        if self._connection.readonly("main"):
            self.snapshot_lost = True
            self._connection.execute("BEGIN")
            return
        self.lost = bad

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """See `Tables.savepoint`."""
        damaged: BaseException | None = None
        try:
            with self._connection:  # apsw makes a block of a connection a savepoint
                try:
                    yield
                except (StoreDamaged, BadPage) as error:
                    damaged = error
                    raise
        except BaseException as error:
            if damaged is not None and not self._connection.in_transaction:
                raise damaged from None  # there is no savepoint any more
            cause = refusal_of_disk(error)
            if cause is None and isinstance(error, apsw.Error) and not self._connection.in_transaction:
                cause = error
            if cause is not None:
                raise TransactionLost(str(cause)) from cause
            raise

    def commits(self) -> object:
        return self._run("SELECT commits FROM commit_count").get

    def series(self) -> Sequence[Row]:
        return self._run("SELECT series_id FROM series ORDER BY series_no").fetchall()

    def facts(self) -> Sequence[Row]:
        return self._run(_FACTS).fetchall()

    def names(self) -> Sequence[Row]:
        return self._run("SELECT series_no, series_id FROM series").fetchall()

    def number(self, name: str) -> object:
        return self._run("SELECT series_no FROM series WHERE series_id = ?", (name,)).get

    def add_series(self, name: str, base: int | None) -> int:
        self._run("INSERT INTO series (series_id, derived_from) VALUES (?, ?)", (name, base))
        return self._connection.last_insert_rowid()

    def edges(self, number: int) -> Row | None:
        return self._one(_EDGES_OF, (number,))

    def without_first(self) -> Sequence[Row]:
        return self._run("SELECT series_no, series_id FROM series WHERE first_time IS NULL").fetchall()

    def put_firsts(self, rows: Sequence[Values]) -> None:
        self._run_many("UPDATE series SET first_time = ? WHERE series_no = ?", rows)

    def derived_of(self, number: int | None) -> Sequence[Row]:
        return self._run("SELECT series_id FROM series WHERE derived_from = ?", (number,)).fetchall()

    def derivation(self, name: str) -> Row | None:
        return self._one(
            "SELECT base.series_id, series.origin FROM series LEFT JOIN series AS base"
            " ON base.series_no = series.derived_from WHERE series.series_id = ?",
            (name,),
        )

    def set_derivation(self, name: str, base: int | None, origin: int) -> None:
        self._run("UPDATE series SET derived_from = ?, origin = ? WHERE series_id = ?", (base, origin, name))

    def candles(self, number: int, start: int, end: int, limit: int, *, newest: bool) -> Sequence[Row]:
        return self._run(_NEWEST if newest else _OLDEST, (number, start, end, limit)).fetchall()

    def count_candles(self, number: int, after: int, most: int) -> object:
        return self._run(
            "SELECT count(*) FROM (SELECT 1 FROM candle WHERE series_no = ? AND time > ? LIMIT ?)",
            (number, after, most),
        ).get

    def oldest_candle(self, number: int) -> object:
        return self._run("SELECT min(time) FROM candle WHERE series_no = ?", (number,)).get

    def put_candles(self, rows: Sequence[Values]) -> None:
        self._put(_PUT_CANDLES, rows)

    def delete_candles(self, number: int, before: int) -> None:
        self._run("DELETE FROM candle WHERE series_no = ? AND time < ?", (number, before))

    def chunks(self, number: int, first: int, last: int, limit: int, *, newest: bool) -> list[tuple[int, object]]:
        base = number << 32
        found = self._run(_CHUNKS_DOWN if newest else _CHUNKS_UP, (base + first, base + last, limit))
        return [(chunk_id - base, packed) for chunk_id, packed in found]

    def next_chunk(self, number: int, first: int, last: int, *, newest: bool) -> object:
        base = number << 32
        found = self._run(_LAST_CHUNK if newest else _FIRST_CHUNK, (base + first, base + last)).get
        return None if found is None else found - base

    def headers_of_chunks(self, number: int, first: int, limit: int) -> Sequence[Row]:
        base = number << 32
        return self._run(
            "SELECT chunk_id - ?, substr(candles, 1, ?), length(candles) FROM candle_chunk"
            " WHERE chunk_id >= ? AND chunk_id < ? ORDER BY chunk_id LIMIT ?",
            (base, HEADER_BYTES, base + first, (number + 1) << 32, limit),
        ).fetchall()

    def repacking(self) -> Sequence[Row]:
        return self._run("SELECT series_id FROM repacking JOIN series USING (series_no) ORDER BY series_no").fetchall()

    def end_repacking(self, number: int) -> None:
        self._run("DELETE FROM repacking WHERE series_no = ?", (number,))

    def put_chunks(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        self._run_many(
            "INSERT OR REPLACE INTO candle_chunk VALUES (?, ?)",
            [((number << 32) + chunk, packed) for number, chunk, packed in rows],
        )

    def delete_chunks(self, number: int, first: int, end: int) -> None:
        base = number << 32
        self._run("DELETE FROM candle_chunk WHERE chunk_id >= ? AND chunk_id < ?", (base + first, base + end))

    def revisions(self, number: int | None) -> Sequence[Row]:
        return self._run(
            f"SELECT {_FIELDS}, revised_at, source FROM candle_revision"  # noqa: S608  # our words
            " WHERE series_no = ? ORDER BY revision_no",
            (number,),
        ).fetchall()

    def add_revisions(self, rows: Sequence[Values]) -> None:
        self._run_many(
            f"INSERT INTO candle_revision (series_no, {_FIELDS}, revised_at, source)"  # noqa: S608  # our words
            f" VALUES ({', '.join('?' * (len(Candle._fields) + 3))})",
            rows,
        )

    def delete_revisions(self, number: int, before: int) -> None:
        self._run("DELETE FROM candle_revision WHERE series_no = ? AND time < ?", (number, before))

    def put_raw(self, table: str, columns: str, rows: Sequence[Values]) -> None:
        marks = ", ".join("?" * len(columns.split(",")))
        self._run_many(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608  # our words

    def quarantined(self) -> Sequence[Row]:
        return self._run(
            "SELECT series_id, start_time, end_time, found_at, why, healing FROM quarantine ORDER BY quarantine_no DESC"
        ).fetchall()

    def quarantined_bytes(self, name: str, start: int, end: int) -> Sequence[Row]:
        return self._run(
            "SELECT bytes FROM quarantine WHERE series_id = ? AND start_time >= ? AND end_time <= ?"
            " ORDER BY quarantine_no DESC",
            (name, start, end),
        ).fetchall()

    def put_quarantined(self, row: Values) -> None:
        self._run(
            "INSERT INTO quarantine (series_id, start_time, end_time, found_at, why, bytes, healing)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )

    def evict_quarantined(self, most: int) -> None:
        self._run(
            "DELETE FROM quarantine WHERE quarantine_no <= (SELECT max(quarantine_no) FROM quarantine) - ?", (most,)
        )

    def end_quarantine(self, name: str, start: int, end: int) -> None:
        self._run(
            "UPDATE quarantine SET healing = 0 WHERE series_id = ? AND start_time >= ? AND end_time <= ?",
            (name, start, end),
        )

    def gaps(self, number: int, start: int, end: int) -> Sequence[Row]:
        return self._run(
            "SELECT start_time, end_time, state, proof, confirmed_at FROM gap"
            " WHERE series_no = ? AND start_time <= ? AND end_time >= ? ORDER BY start_time",
            (number, end, start),
        ).fetchall()

    def has_gap(self, number: int) -> bool:
        return self._run("SELECT 1 FROM gap WHERE series_no = ? LIMIT 1", (number,)).get is not None

    def delete_gaps(self, rows: Sequence[Values]) -> None:
        self._run_many("DELETE FROM gap WHERE series_no = ? AND start_time = ?", rows)

    def add_gaps(self, rows: Sequence[Values]) -> None:
        self._run_many("INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?)", rows)

    def ledgers(self) -> Sequence[Row]:
        return self._run(
            "SELECT series_id, fingerprint, epoch, record_id, factor_head, overlay_head, version_id"
            " FROM ledger JOIN series USING (series_no)"
        ).fetchall()

    def ledger(self, number: int) -> Row | None:
        return self._one(
            "SELECT fingerprint, epoch, record_id, factor_head, overlay_head, version_id FROM ledger"
            " WHERE series_no = ?",
            (number,),
        )

    def put_ledgers(self, rows: Sequence[Values]) -> None:
        self._put(_PUT_LEDGERS, rows)

    def events(self, number: int, start: int, end: int) -> Sequence[Row]:
        return self._run(
            "SELECT visible_time, factor, event FROM factor_event"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY visible_time, event_no",
            (number, start, end),
        ).fetchall()

    def add_events(self, rows: Sequence[Values]) -> None:
        self._run_many("INSERT INTO factor_event VALUES (?, ?, ?, ?, ?)", rows)

    def drawings(self, number: int, start: int, end: int) -> Sequence[Row]:
        return self._run(
            "SELECT visible_time, instruction FROM drawing"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY version_id",
            (number, start, end),
        ).fetchall()

    def newest_version(self, number: int, before: int) -> object:
        return self._run(
            "SELECT version_id FROM drawing WHERE series_no = ? AND visible_time < ?"
            " ORDER BY visible_time DESC, version_id DESC LIMIT 1",
            (number, before),
        ).get

    def add_drawings(self, rows: Sequence[Values]) -> None:
        self._run_many("INSERT INTO drawing VALUES (?, ?, ?, ?)", rows)

    def checkpoint(self, number: int, before: int) -> Row | None:
        return self._one(
            "SELECT time, states FROM checkpoint WHERE series_no = ? AND time < ? ORDER BY time DESC LIMIT 1",
            (number, before),
        )

    def put_checkpoints(self, rows: Sequence[Values]) -> None:
        self._run_many(
            "DELETE FROM checkpoint WHERE series_no = ? AND time < ? AND kept = 0", [row[:2] for row in rows]
        )
        self._run_many("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?)", rows)

    def delete_events(self, number: int, start: int, end: int) -> None:
        self._run(
            "DELETE FROM factor_event WHERE series_no = ? AND visible_time >= ? AND visible_time < ?",
            (number, start, end),
        )

    def delete_drawings(self, number: int, start: int, end: int) -> None:
        self._run(
            "DELETE FROM drawing WHERE series_no = ? AND visible_time >= ? AND visible_time < ?", (number, start, end)
        )

    def delete_checkpoints(self, number: int, start: int, end: int) -> None:
        self._run("DELETE FROM checkpoint WHERE series_no = ? AND time >= ? AND time < ?", (number, start, end))

    def series_events(self) -> Sequence[Row]:
        return self._run(
            "SELECT scope, event_no, event, detail, at_ms, since_ms, times FROM series_event ORDER BY event_no"
        ).fetchall()

    def delete_all_series_events(self) -> None:
        self._run("DELETE FROM series_event")

    def delete_series_events(self, rows: Sequence[Values]) -> None:
        self._run_many("DELETE FROM series_event WHERE scope = ? AND (event_no < ? OR event_no >= ?)", rows)

    def add_series_events(self, rows: Sequence[Values]) -> None:
        self._run_many("INSERT INTO series_event VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def derived_settings(self) -> Row | None:
        return self._one("SELECT base, targets FROM derivation", ())

    def set_derived_settings(self, base: str, targets: str) -> None:
        self._run("DELETE FROM derivation")
        self._run("INSERT INTO derivation VALUES (?, ?)", (base, targets))

    def listing(self, exchange: str, market: str) -> object:
        return self._run("SELECT symbols FROM listing WHERE exchange = ? AND market = ?", (exchange, market)).get

    def put_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        self._run("INSERT OR REPLACE INTO listing VALUES (?, ?, ?)", (exchange, market, symbols))

    def backfills(self) -> Sequence[Row]:
        return self._run(
            "SELECT series_id, start_time, end_time FROM backfill ORDER BY series_id, start_time, end_time"
        ).fetchall()

    def add_backfill(self, name: str, start: int, end: int) -> None:
        self._run("INSERT OR IGNORE INTO backfill VALUES (?, ?, ?)", (name, start, end))

    def delete_backfill(self, name: str, start: int, end: int) -> None:
        self._run("DELETE FROM backfill WHERE series_id = ? AND start_time = ? AND end_time = ?", (name, start, end))

    def _put(self, put: _Put, rows: Sequence[Values]) -> None:
        whole = len(rows) - len(rows) % ROWS_OF_A_STATEMENT
        for at in range(0, whole, ROWS_OF_A_STATEMENT):
            self._run(put.many, list(chain.from_iterable(rows[at : at + ROWS_OF_A_STATEMENT])))
        self._run_many(put.one, rows[whole:])

    def _one(self, statement: str, values: Values) -> Row | None:
        """The first row of the answer. (`Cursor.get` gives the value alone where a row has one column.)"""
        rows = self._run(statement, values).fetchall()
        return rows[0] if rows else None


def refusal_of_disk(error: BaseException) -> apsw.Error | None:
    """The disk's refusal behind an error: where it ended the transaction, SQLite goes on to say that there is no
    savepoint any more."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, _REFUSED_BY_DISK):
            return behind
        behind = behind.__context__
    return None
