"""The draw delta: what a reader must learn to show a window, given what it has. Pure.

A reader keeps a catalogue of instructions by id and a list of points by indicator. It asks with the cursor of the last
answer and the epoch that came with it, and gets what is newer. Applying an answer: when its epoch is another than the
one before, forget everything; put every instruction of the patch into the catalogue (the same id replaces); append the
points whose time is greater than the last one held; show the instructions that `active_ids` names. Applying an answer
twice changes nothing.

Why that is enough: numbers and points are in candle order and a window only moves on, so what an older cursor's window
held and this one still shows is held already, and what is no longer shown may be forgotten. Who wants a larger window,
or an earlier one, asks without a cursor.
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
    """Up to where a reader knows: the newest number of a stored drawing, and the newest candle (UTC seconds).

    Without values, that of a reader who knows nothing: before the first candle that there can be.
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
    """Ids of what is to be shown in the window: the stored drawings that touch it, in order, then the rendered ones.

    An id of which the newest version does not touch the window is not shown, whatever an older version did.
    """
    ids = [one.instruction_id for one in _newest(stored) if within(one.definition, start_time, at_time)]
    shown = (one.instruction_id for one in rendered if within(one.definition, start_time, at_time))
    return list(dict.fromkeys(chain(ids, shown)))


def _newest(stored: Iterable[Instruction]) -> list[Instruction]:
    """The newest version of each id, by number."""
    versions = {one.instruction_id: one for one in stored}
    return sorted(versions.values(), key=lambda one: one.version_id)


def resumed(cursor: Cursor, epoch: int | None, newest: Cursor, epoch_now: int) -> Cursor:
    """From where to tell on: the reader's cursor, or the beginning when it does not belong to what is stored now.

    It does not when its epoch is another one, or when it lies ahead of what there is. A reader that names no epoch is
    taken at its word.
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

    `stored` are the series' stored drawings with a `visible_time` in the window, by number (an older one touches no
    candle of it); `version_id` is the newest number with a `visible_time` up to `at_time`, 0 without any; `points` are
    the window's, ascending.
    """
    newest = Cursor(version_id, at_time)
    since = resumed(cursor or Cursor(), cursor_epoch, newest, epoch)
    ids = active(stored, rendered, start_time, at_time)
    shown = set(ids)
    patch = [one for one in _newest(stored) if one.version_id > since.version_id and one.instruction_id in shown]
    if at_time > since.point_time:
        patch += [Instruction.numbered(version_id, one) for one in rendered if one.instruction_id in shown]
    return DrawDelta(
        schema_version=SCHEMA_VERSION,
        series_id=str(series),
        epoch=epoch,
        to_candle_id=series.candle_id(at_time),
        to_candle_time=at_time,
        active_ids=ids,
        instruction_catalog_patch=patch,
        series_points={
            name: [point for point in held if point.time > since.point_time] for name, held in points.items()
        },
        next_cursor=newest,
    )


def nothing(series: SeriesId, epoch: int) -> DrawDelta:
    """The delta of a series without candles."""
    return DrawDelta(SCHEMA_VERSION, str(series), epoch, None, None, [], [], {}, Cursor(0, 0))


def points_of(times: Sequence[int], outputs: Mapping[str, Sequence[float]], after: int = -1) -> dict[str, list[Point]]:
    """The indicators' values at these candle times as points; warm-up (NaN) has none, nor has what is not `after`."""
    return {
        name: [
            Point(time, value) for time, value in zip(times, values, strict=True) if time > after and isfinite(value)
        ]
        for name, values in outputs.items()
    }
