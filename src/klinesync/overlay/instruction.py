"""Instruction: a drawing in the form of the wire. Pure.

An overlay makes a `Drawing`: a marker at a candle, or a polyline over candles, with the time at which it became
knowable. An `Instruction` is a drawing with its number in the ledger of a series, as clients get it. Times are UTC
seconds of a candle's open; values are prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from klinesync.core.candle import MAX_TIME, MAX_VALUE
from klinesync.core.dates import date_text
from klinesync.core.decoding import reason_of

# Longest id, in characters: a feature and a few times.
MAX_ID_CHARS = 200
# Longest text of a marker, in characters; it is drawn beside a candle.
MAX_TEXT_CHARS = 60
# Longest CSS colour, in characters: hex, a name, or a function with numbers.
MAX_COLOR_CHARS = 60
# Most points of a polyline; a line over the largest window has fewer.
MAX_POINTS = 20_000
MAX_LINE_WIDTH = 8
MAX_MARKER_SIZE = 8

Time = Annotated[int, Meta(ge=0, le=MAX_TIME)]
Value = Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
Color = Annotated[str, Meta(pattern=r"^[#a-zA-Z0-9(),.%/ -]+\Z", max_length=MAX_COLOR_CHARS)]
Feature = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*\Z", max_length=MAX_ID_CHARS)]
InstructionId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]


class Point(msgspec.Struct, frozen=True, gc=False):
    """A value at a candle."""

    time: Time
    value: Value


class Marker(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="marker"):
    """A sign above or below the candle at `time`. `size`: relative to the chart's usual size; 1 by default."""

    feature: Feature
    time: Time
    position: Literal["aboveBar", "belowBar"]
    color: Color
    shape: Literal["circle", "arrowUp", "arrowDown"]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)] = ""
    size: Annotated[float, Meta(gt=0, le=MAX_MARKER_SIZE)] = 1.0


class Polyline(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="polyline", rename="camel"):
    """Straight lines from point to point, in ascending time, as line series of charts require. `line_width`: in pixels;
    `entry_direction`, of an edge of a zone: 1 when the zone was entered from below, -1 from above."""

    feature: Feature
    points: Annotated[tuple[Point, ...], Meta(min_length=2, max_length=MAX_POINTS)]
    color: Color
    line_width: Annotated[int, Meta(ge=1, le=MAX_LINE_WIDTH)] = 1
    line_style: Literal["solid", "dashed", "dotted"] | UnsetType = UNSET
    entry_direction: Literal[1, -1] | UnsetType = UNSET


Definition = Marker | Polyline
Kind = Literal["marker", "polyline"]


class Drawing(msgspec.Struct, frozen=True, gc=False):
    """A drawing of an overlay. The same drawing always has the same id.

    `visible_time`: the candle at which the drawing became knowable; the drawing shows nothing of later candles.
    """

    instruction_id: InstructionId
    visible_time: Time
    definition: Definition

    @property
    def kind(self) -> Kind:
        """The wire's `kind`: the definition's type."""
        return kind_of(self.definition)


class Instruction(msgspec.Struct, frozen=True, gc=False):
    """An entry of the wire's `instruction_catalog_patch`: a drawing with its number in the ledger of its series."""

    version_id: int
    instruction_id: str
    kind: Kind
    visible_time: int
    definition: Definition

    @classmethod
    def numbered(cls, version_id: int, drawing: Drawing) -> Instruction:
        """The drawing as number `version_id` of its series."""
        return cls(version_id, drawing.instruction_id, drawing.kind, drawing.visible_time, drawing.definition)


class BadDrawing(ValueError):
    """A drawing that does not have the wire's shape. The message names the drawing and the reason."""


def kind_of(definition: Definition) -> Kind:
    """`marker` or `polyline`."""
    return "marker" if isinstance(definition, Marker) else "polyline"


def extent(definition: Definition) -> tuple[int, int]:
    """The first and the last candle time that a drawing touches."""
    if isinstance(definition, Marker):
        return definition.time, definition.time
    times = [point.time for point in definition.points]
    return min(times), max(times)


def within(definition: Definition, start_time: int, at_time: int) -> bool:
    """Whether a drawing touches the window of candles from `start_time` to `at_time`, both included."""
    first, last = extent(definition)
    return first <= at_time and last >= start_time


def checked(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Copies of the drawings. Raises `BadDrawing` for values that the wire does not have.

    The drawings are encoded as on the wire and decoded again, so that every drawing that passes can be stored, sent and
    read back. JSON has no NaN and no infinity (they become null), and no plugin has references to the copies.
    """
    try:
        decoded = _drawings.decode(_encoder.encode(drawings))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadDrawing(f"{reason_of(error)} (NaN and infinities count as null)") from error
    for drawing in decoded:
        _, last = extent(drawing.definition)
        if last > drawing.visible_time:
            raise BadDrawing(
                f"{drawing.instruction_id} touches the candle at {date_text(last)}, after its visible_time "
                f"{date_text(drawing.visible_time)}"
            )
        points = drawing.definition.points if isinstance(drawing.definition, Polyline) else ()
        if any(point.time > next_point.time for point, next_point in pairwise(points)):
            raise BadDrawing(
                f"{drawing.instruction_id} has points that go back in time; draw the edges of a shape one by one"
            )
    return decoded


_encoder = msgspec.json.Encoder()
_drawings = msgspec.json.Decoder(list[Drawing])
