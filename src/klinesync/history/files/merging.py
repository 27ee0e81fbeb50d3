"""Merging an export with an existing file: their union, and candles or columns that only the file has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from klinesync.core.candle import Candle
from klinesync.core.dates import iso
from klinesync.history.files import rows
from klinesync.history.files.cells import TIME_COLUMNS, VALUE_COLUMNS
from klinesync.history.files.readers import BadFile, batches, column_names, ending_by_content
from klinesync.history.files.rows import MAX_EXAMPLES, NO_TIME, Columns, Ints

# Most rows of the existing file, which are held in memory: nineteen years of minutes, 500 MB.
MAX_MERGED_ROWS = 10_000_000


@dataclass(slots=True)
class Merged:
    """How an export and the existing file compare.

    same: candles with the same values in both.
    different: candles with other values in the store, which replace those of the file.
    kept: candles of the file alone.
    examples: sentences about the first different candles.
    """

    same: int = 0
    different: int = 0
    kept: int = 0
    examples: list[str] = field(default_factory=list)

    def union(self, old: Columns, new: Columns) -> Columns:
        """The rows of both, ascending; both ascend strictly. Rows of `new` replace rows of `old` with the same time."""
        both = np.isin(old.time, new.time)
        beside = new.take(np.searchsorted(new.time, old.time[both]))
        equal = np.logical_and.reduce(
            [before == after for before, after in zip(old.take(both).values(), beside.values(), strict=True)]
        )
        for at in np.flatnonzero(~equal)[: MAX_EXAMPLES - len(self.examples)].tolist():
            before, after = old.take(both).candle(at), beside.candle(at)
            self.examples.append(
                f"{iso(after.time)} was {_values(before)} in the file, and is {_values(after)} in the store"
            )
        only = old.take(~both)
        self.same += int(np.count_nonzero(equal))
        self.different += int(np.count_nonzero(~equal))
        self.kept += len(only)
        if not len(only):
            return new
        together = rows.joined([new, only])
        return together.take(np.argsort(together.time, kind="stable"))


def merged(pages: Iterable[Columns], old: Columns, how: Merged) -> Iterator[Columns]:
    """The union of an export and an existing file, page by page.

    pages: rows of the export, strictly ascending, without order flow.
    old: rows of the file, strictly ascending, without order flow.
    how: counts how they compare.
    """
    at = 0
    for page in pages:
        if len(page):
            end = int(np.searchsorted(old.time, page.time[-1], side="right"))
            yield how.union(old.take(slice(at, end)), page)
            at = end
    rest = old.take(slice(at, None))
    how.kept += len(rest)
    if len(rest):
        yield rest


def rows_of(path: Path) -> Columns:
    """All rows of a file, ascending, each time once, without validation and order flow. Raises `BadFile`."""

    def broken(why: str) -> None:
        raise BadFile(path, f"it has rows that cannot be kept: {why}")

    parts = [rows.columns([])]
    count = 0
    for batch in batches(path, broken, unterminated=True, ending=ending_by_content(path)):
        if (batch.time == NO_TIME).any():
            broken(f"row {count + int(np.argmax(batch.time == NO_TIME)) + 1} has no time that can be read")
        count += len(batch)
        if count > MAX_MERGED_ROWS:
            raise BadFile(path, f"it has more than the {MAX_MERGED_ROWS} rows that are merged in memory")
        parts.append(batch.with_flow(None))
    whole = rows.joined(parts)
    return whole.take(np.unique(whole.time, return_index=True)[1])


def poorer(path: Path, columns: Iterable[str], times: Ints | None) -> str | None:
    """Why an export would lose something that the existing file has; None when it would not.

    path: the existing file.
    columns: columns of the export.
    times: open times of the export; None: only columns are compared.
    """
    try:
        names = {name.strip().lower() for name in column_names(path, ending_by_content(path))}
        missing = 0 if times is None else int(np.count_nonzero(~np.isin(rows_of(path).time, times)))
    except BadFile as error:
        return f"it holds something else than candles ({error.reason})"
    if missing:
        return f"it holds {missing} candles that this export does not have"
    lost = sorted(names - set(columns) - set(TIME_COLUMNS) - set(VALUE_COLUMNS))
    return f"it has the columns {', '.join(lost)}, which this export does not have" if lost else None


def _values(candle: Candle) -> str:
    return " ".join(f"{value!r}" for value in candle.ohlcv[1:])
