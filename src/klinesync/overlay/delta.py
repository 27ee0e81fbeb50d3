"""The draw delta: the drawings that a reader needs for a window, beyond those that it has. Pure.

A reader keeps a catalogue of instructions by id and a list of points by indicator. The reader asks with the cursor and
the epoch of the last answer, and gets newer drawings and points. To apply an answer: when its epoch differs from the
previous epoch, drop everything; put every instruction of the patch into the catalogue (the same id replaces); append
points with a time greater than that of the last point; show the instructions in `active_ids`. Applying an answer twice
changes nothing.

This is enough because numbers and points are in candle order and a window only moves forward: instructions of an older
window that are still shown are in the catalogue already, and the others may be dropped. A reader that wants a larger or
an earlier window asks without a cursor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite

import msgspec

from klinesync.core.series_id import SeriesId
from klinesync.overlay.instruction import Drawing, Instruction, Point, within

SCHEMA_VERSION = 1


class Cursor(msgspec.Struct, frozen=True, gc=False):
    """The position of a reader: the newest number of a stored drawing, and the newest candle (UTC seconds).

    The default is that of a reader without any drawings: before the first possible candle.
    """

    version_id: int = 0
    point_time: int = -1


class DrawDelta(msgspec.Struct, frozen=True):
    """The answer of `GET /api/draw/delta`. `to_candle_*` are null for a series without candles."""

    schema_version: int
    series_id: str
    epoch: int
    to_candle_id: str | None
    to_candle_time: int | None
    active_ids: list[str]
    instruction_catalog_patch: list[Instruction]
    series_points: dict[str, list[Point]]
    next_cursor: Cursor


def active(stored: Iterable[Instruction], rendered: Iterable[Drawing], start_time: int, at_time: int) -> list[str]:
    """The ids of the drawings to show in the window: the stored drawings that touch it, in order, then the rendered
    ones.

    An id of which the newest version does not touch the window is not shown, whatever an older version did.
    """
    drawings: Iterable[Instruction | Drawing] = chain(_newest(stored), rendered)
    ids = (drawing.instruction_id for drawing in drawings if within(drawing.definition, start_time, at_time))
    return list(dict.fromkeys(ids))


def _newest(stored: Iterable[Instruction]) -> list[Instruction]:
    """The newest version of each id, by number."""
    versions = {instruction.instruction_id: instruction for instruction in stored}
    return sorted(versions.values(), key=lambda instruction: instruction.version_id)


def resumed(cursor: Cursor, epoch: int | None, newest: Cursor, epoch_now: int) -> Cursor:
    """The cursor to answer from: the reader's, or the beginning when the cursor does not belong to the stored drawings.

    A cursor does not belong when its epoch differs, or when it lies ahead of the newest drawing. Without an epoch the
    reader's cursor is accepted.

    cursor: of the reader.
    epoch: of the reader; None when the request has none.
    newest: of the stored drawings.
    epoch_now: of the ledger.
    """
    other_epoch = epoch is not None and epoch != epoch_now
    if other_epoch or cursor.version_id > newest.version_id or cursor.point_time > newest.point_time:
        return Cursor()
    return cursor


def compose(
    series: SeriesId,
    epoch: int,
    *,
    start_time: int,
    at_time: int,
    version_id: int,
    stored: Sequence[Instruction],
    rendered: Sequence[Drawing],
    points: Mapping[str, Sequence[Point]],
    cursor: Cursor | None = None,
    cursor_epoch: int | None = None,
) -> DrawDelta:
    """The delta for the window of candles from `start_time` to `at_time`, both included.

    series: of the window.
    epoch: of the ledger.
    start_time, at_time: open times of the first and last candle of the window, UTC seconds.
    version_id: the newest number of a stored drawing with a `visible_time` up to `at_time`; 0 without any.
    stored: stored drawings with a `visible_time` in the window, by number; older ones touch no candle of the window.
    rendered: drawings that were rendered for this read.
    points: the window's points by indicator, ascending.
    cursor: of the reader; None: from the beginning.
    cursor_epoch: epoch of the cursor; None when the request has none.
    """
    newest = Cursor(version_id, at_time)
    since = resumed(cursor or Cursor(), cursor_epoch, newest, epoch)
    ids = active(stored, rendered, start_time, at_time)
    shown = set(ids)
    patch = [instruction for instruction in _newest(stored) if instruction.version_id > since.version_id]
    if at_time > since.point_time:
        patch += [Instruction.numbered(version_id, drawing) for drawing in rendered]
    return DrawDelta(
        schema_version=SCHEMA_VERSION,
        series_id=str(series),
        epoch=epoch,
        to_candle_id=series.candle_id(at_time),
        to_candle_time=at_time,
        active_ids=ids,
        instruction_catalog_patch=[instruction for instruction in patch if instruction.instruction_id in shown],
        series_points={
            name: [point for point in values if point.time > since.point_time] for name, values in points.items()
        },
        next_cursor=newest,
    )


def nothing(series: SeriesId, epoch: int) -> DrawDelta:
    """The delta of a series without candles."""
    return DrawDelta(SCHEMA_VERSION, str(series), epoch, None, None, [], [], {}, Cursor(0, 0))


def points_of(times: Sequence[int], outputs: Mapping[str, Sequence[float]], after: int = -1) -> dict[str, list[Point]]:
    """The values of indicators as points: of the candles after the time `after`, without those of the warm-up (NaN)."""
    return {
        name: [
            Point(time, value) for time, value in zip(times, values, strict=True) if time > after and isfinite(value)
        ]
        for name, values in outputs.items()
    }
