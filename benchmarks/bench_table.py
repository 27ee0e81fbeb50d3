"""The rows of `make bench`: what is measured, beside what, and which values must not be lost. Pure.

A program measures rows and gives a `Figure` for each. A row is judged by one number: the median of our values over the
rounds, or, where the row is relative, the median of ours divided by the yardstick's of the same round. The machine
drifts, so relative rows are comparable between runs, and the others only roughly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

Verdict = Literal["aim", "must", "missed", "unjudged", "unmeasured"]


class Figure(NamedTuple):
    """What a program measured of one row.

    row: key of the row.
    ours: one value of klinesync a round, in the row's unit.
    yardstick: the values of the same rounds; empty where the row has no yardstick.
    """

    row: str
    ours: Sequence[float]
    yardstick: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    key: name of the row between programs.
    name: what is measured, in words.
    unit: of our values and of the yardstick's.
    program: the file that measures it.
    must: the worst value that is not a regression.
    aim: the value that the project works towards.
    more: whether a larger value is better.
    beside: the yardstick, in words; empty: none.
    relative: whether ours divided by the yardstick is judged, instead of ours.
    sized: whether the value depends on the size of the run, so that a quick run does not judge it.
    """

    key: str
    name: str
    unit: str
    program: str
    must: float
    aim: float
    more: bool = False
    beside: str = ""
    relative: bool = False
    sized: bool = False


END = "minute's end of 1,000 series"
BARE_DATABASE = "bare database, same rows"
BARE_SERVER = "bare server, same store"
ROWS = (
    Row("minute.close", f"{END}, exchange's frame to client, p99", "ms", "follow_exchange.py", 150, 60, sized=True),
    Row("minute.midnight", "the same at 00:00 UTC, all timeframes close", "ms", "follow_exchange.py", 700, 250,
        sized=True),
    Row("minute.forming", "forming frames during a minute's end, p99", "ms", "follow_exchange.py", 50, 10, sized=True),
    Row("write.minute", f"write transaction, {END}, 1m closes", "ms", "write_path.py", 6, 2.5,
        beside=BARE_DATABASE, relative=True, sized=True),
    Row("write.midnight", f"write transaction, {END}, all timeframes close", "ms", "write_path.py", 9, 4,
        beside=BARE_DATABASE, relative=True, sized=True),
    Row("write.single", "one live candle in its own transaction, behind 1,000", "ms", "write_path.py", 2.6, 1.5,
        beside=BARE_DATABASE, relative=True),
    Row("write.single_long", "one live candle in its own transaction, behind 100,000", "ms", "write_path.py", 2.6, 1.5,
        beside=BARE_DATABASE, relative=True),
    Row("write.depth", "one live candle behind 100,000, of one behind 1,000", "ms", "write_path.py", 1.25, 1.1,
        beside="ours behind 1,000", relative=True),
    Row("pipe.closed", "closed candle end to end, bursts of 512, p99", "ms", "pipeline.py", 4, 2,
        beside="bare pipeline", relative=True, sized=True),
    Row("pipe.forming", "forming tick end to end, CPU time", "µs", "pipeline.py", 3, 1.5,
        beside="bare pipeline", relative=True, sized=True),
    Row("fanout.forming", "forming candle to 1,000 clients", "k/s", "fanout.py", 0.75, 0.9, more=True,
        beside="bare loop of sends", relative=True),
    Row("fanout.closed", "closed candle to 1,000 clients", "k/s", "fanout.py", 0.65, 0.9, more=True,
        beside="bare loop of sends", relative=True),
    Row("catchup.flow", "catch-up of 2,000 candles, first byte to last, p50", "ms", "reads.py", 1, 0.2),
    Row("catchup.whole", "catch-up of 2,000 candles, asked to last byte, p50", "ms", "reads.py", 6, 2.5),
    Row("page.repeated", "GET 2,000 candles, repeated", "/s", "reads.py", 3, 4, more=True,
        beside=BARE_SERVER, relative=True),
    Row("page.uncached", "GET 2,000 candles, not cached", "/s", "reads.py", 0.9, 1.0, more=True,
        beside=BARE_SERVER, relative=True),
    Row("import.archive", "archive file to durable, 5 derived timeframes", "k/s", "import_files.py", 250, 500,
        more=True, beside="reading the file alone", sized=True),
    Row("ledger.bulk", "bulk advance of factors and overlays", "k/s", "write_path.py", 120, 300, more=True),
    Row("export", "export as feather, start of the process included", "k/s", "import_files.py", 140, 500, more=True,
        beside="bare write of five columns", sized=True),
    Row("memory.following", "memory, 1,000 series followed, 2,000 candles each", "MB", "follow_exchange.py", 300, 250,
        sized=True),
    Row("memory.client", "memory of an idle WebSocket client", "KB", "fanout.py", 15, 12),
    Row("disk.candle", "bytes on disk a stored candle, nine values, recorded data", "B", "chunks.py", 55, 40,
        beside="nine doubles"),
    Row("start.ready", "start on 1,000 series and 5 timeframes, to ready", "s", "write_path.py", 2, 0.5,
        beside="on an empty store", sized=True),
    Row("start.warm", "states of these series in memory after the store is opened", "s", "write_path.py", 4, 1,
        sized=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A row with what was measured of it.

    ours, yardstick: medians over the rounds; None where nothing was measured.
    judged: the number that is compared with `must` and `aim`, with its lowest and highest value over the rounds.
    """

    row: Row
    verdict: Verdict
    ours: float | None = None
    yardstick: float | None = None
    judged: tuple[float, float, float] | None = None


def lines(figures: Iterable[Figure], *, quick: bool = False, rows: Sequence[Row] = ROWS) -> list[Line]:
    """One line for each row, in the order of the rows.

    figures: of all programs; one row may be measured once. Raises ValueError for an unknown row or a second figure,
        and where a relative row has not as many values of the yardstick as of ours.
    quick: whether sizes were reduced; rows that depend on them are not judged.
    """
    measured: dict[str, Figure] = {}
    known = {row.key for row in rows}
    for figure in figures:
        if figure.row not in known or figure.row in measured:
            raise ValueError(f"{figure.row!r} is no row, or was measured twice")
        measured[figure.row] = figure
    return [_line(row, measured.get(row.key), quick) for row in rows]


def _line(row: Row, figure: Figure | None, quick: bool) -> Line:
    if figure is None or not figure.ours:
        return Line(row, "unmeasured")
    values = list(figure.ours)
    if row.relative:
        values = [ours / bare for ours, bare in zip(figure.ours, figure.yardstick, strict=True)]
    middle = median(values)
    verdict: Verdict = "missed"
    if quick and row.sized:
        verdict = "unjudged"
    elif _reaches(row, middle, row.aim):
        verdict = "aim"
    elif _reaches(row, middle, row.must):
        verdict = "must"
    yardstick = median(figure.yardstick) if figure.yardstick else None
    return Line(row, verdict, median(figure.ours), yardstick, (middle, min(values), max(values)))


def _reaches(row: Row, value: float, limit: float) -> bool:
    return value >= limit if row.more else value <= limit


def missed(table: Iterable[Line]) -> list[Row]:
    """The rows whose must was missed."""
    return [line.row for line in table if line.verdict == "missed"]


WORDS: Mapping[Verdict, str] = {
    "aim": "aim met",
    "must": "aim missed",
    "missed": "MUST MISSED",
    "unjudged": "not judged",
    "unmeasured": "not measured",
}
COLUMNS = ("measured", "klinesync", "yardstick", "judged (lowest to highest)", "must", "aim", "result")


def cells(line: Line) -> tuple[str, ...]:
    """The line in words, a cell for each of `COLUMNS`."""
    row = line.row
    unit = "×" if row.relative else row.unit
    judged = "–"
    if line.judged is not None:
        middle, lowest, highest = map(number, line.judged)
        judged = f"{middle} {unit} ({lowest} to {highest})"
    beside = f" ({row.beside})" if row.beside else ""
    sign = "≥" if row.more else "≤"
    return (
        row.name,
        "–" if line.ours is None else f"{number(line.ours)} {row.unit}",
        "–" if line.yardstick is None else f"{number(line.yardstick)} {row.unit}{beside}",
        judged,
        f"{sign} {number(row.must)} {unit}",
        f"{sign} {number(row.aim)} {unit}",
        WORDS[line.verdict],
    )


def number(value: float) -> str:
    """Three digits are more than the machine's drift leaves."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def text(table: Iterable[Line]) -> str:
    """The table for a terminal."""
    shown = [COLUMNS, *map(cells, table)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in shown
    )
