"""Answers about factors and overlays as models for the OpenAPI document; the answers themselves are sent as bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class FeatureAnswer(BaseModel):
    """A feature that can be shown or hidden; `style`: of an output of an indicator or a factor."""

    key: str
    label: str
    default_visible: bool
    style: Literal["line", "dashed", "histogram"] | None = None


class FactorAnswer(BaseModel):
    """A factor or an indicator; `pane`, of one with outputs: whether these share the scale of prices."""

    key: str
    label: str
    default_visible: bool
    pane: Literal["price", "own"] | None = None
    sub_features: list[FeatureAnswer]


class FactorCatalogAnswer(BaseModel):
    """The factors and indicators of the service."""

    schema_version: Literal[1]
    factors: list[FactorAnswer]


class SnapshotMeta(BaseModel):
    """Factor, series and candle of a snapshot; `epoch` rises with every rewind."""

    series_id: str
    epoch: int
    at_time: int
    candle_id: str
    factor_name: str


class Snapshot(BaseModel):
    """A factor's events within the window, which are final, and its head, which may still change."""

    schema_version: Literal[1]
    history: dict[str, JsonValue]
    head: dict[str, JsonValue]
    meta: SnapshotMeta


class FactorSlicesAnswer(BaseModel):
    """Snapshots by factor, all of one candle; none for a series without candles."""

    schema_version: Literal[1]
    series_id: str
    at_time: int | None
    candle_id: str | None
    factors: list[str]
    snapshots: dict[str, Snapshot]


class SlicesAfterAnswer(BaseModel):
    """The slices of consecutive candles."""

    schema_version: Literal[1]
    series_id: str
    slices: list[FactorSlicesAnswer]


class PointAnswer(BaseModel):
    """A value at a candle."""

    time: int
    value: float


class MarkerAnswer(BaseModel):
    """A sign above or below a candle."""

    type: Literal["marker"]
    feature: str
    time: int
    position: Literal["aboveBar", "belowBar"]
    color: str
    shape: Literal["circle", "arrowUp", "arrowDown"]
    text: str
    size: float


class PolylineAnswer(BaseModel):
    """Straight lines from point to point."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["polyline"]
    feature: str
    points: list[PointAnswer]
    color: str
    line_width: int = Field(alias="lineWidth")
    line_style: Literal["solid", "dashed", "dotted"] | None = Field(None, alias="lineStyle")
    entry_direction: Literal[1, -1] | None = Field(None, alias="entryDirection")


class InstructionAnswer(BaseModel):
    """A drawing; a newer version of an `instruction_id` replaces the older."""

    version_id: int
    instruction_id: str
    kind: Literal["marker", "polyline"]
    visible_time: int
    definition: MarkerAnswer | PolylineAnswer = Field(discriminator="type")


class CursorAnswer(BaseModel):
    """The cursor for the next request."""

    version_id: int
    point_time: int


class DrawDeltaAnswer(BaseModel):
    """The drawings of a window, as changes since the reader's cursor."""

    schema_version: Literal[1]
    series_id: str
    epoch: int
    to_candle_id: str | None
    to_candle_time: int | None
    active_ids: list[str]
    instruction_catalog_patch: list[InstructionAnswer]
    series_points: dict[str, list[PointAnswer]]
    next_cursor: CursorAnswer


class FrameTime(BaseModel):
    """The requested time, and the candle that it floors to."""

    at_time: int | None
    aligned_time: int | None
    candle_id: str | None


class FrameAnswer(BaseModel):
    """Slices and drawings of one candle."""

    schema_version: Literal[1]
    series_id: str
    time: FrameTime
    factor_slices: FactorSlicesAnswer
    draw_state: DrawDeltaAnswer


class PollRecord(BaseModel):
    """The newest state; `id` never goes back, also over a rewind."""

    id: int
    series_id: str
    to_candle_id: str
    to_candle_time: int
    epoch: int
    draw_delta: DrawDeltaAnswer
    factor_slices: None


class PollCursor(BaseModel):
    """The `after_id` of the next request."""

    id: int


class PollAnswer(BaseModel):
    """At most one record, none when nothing is new."""

    schema_version: Literal[1]
    series_id: str
    records: list[PollRecord]
    next_cursor: PollCursor
