"""Slices as readers get them: what is known of each factor and indicator at a candle, as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from klinesync.core.series_id import SeriesId
from klinesync.factor.plugin import Json
from klinesync.overlay.instruction import Point

SCHEMA_VERSION = 1


def slices_of(series: SeriesId, time: int | None, snapshots: dict[str, Json]) -> dict[str, Json]:
    """The slices of the candle at `time`, made of snapshots by name; None: the series has no candle."""
    return {
        "schema_version": SCHEMA_VERSION,
        "series_id": str(series),
        "at_time": time,
        "candle_id": None if time is None else series.candle_id(time),
        "factors": list(snapshots),
        "snapshots": snapshots,
    }


def lines_of(lines: Mapping[str, Sequence[Point]], time: int) -> tuple[dict[str, Json], dict[str, Json]]:
    """Outputs as a slice at `time` has them: the points of its window, and the values of its head."""
    history: dict[str, Json] = {
        key: [{"time": point.time, "value": point.value} for point in line] for key, line in lines.items()
    }
    head: dict[str, Json] = {
        key: line[-1].value if line and line[-1].time == time else None for key, line in lines.items()
    }
    return history, head


def public(said: Mapping[str, Json]) -> dict[str, Json]:
    """The same without keys that begin with `_`, also in events: these are for overlays alone."""
    return {
        key: [_event(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value
        for key, value in said.items()
        if not key.startswith("_")
    }


def _event(event: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in event.items() if not key.startswith("_")}


def snapshot_of(
    series: SeriesId, name: str, epoch: int, time: int, history: dict[str, Json], head: dict[str, Json]
) -> dict[str, Json]:
    """The part of one factor or indicator.

    series: of the candle.
    name: of the factor or indicator.
    epoch: of the ledger.
    time: the candle's open time.
    history, head: as the factor gives them.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "history": history,
        "head": head,
        "meta": {
            "series_id": str(series),
            "epoch": epoch,
            "at_time": time,
            "candle_id": series.candle_id(time),
            "factor_name": name,
        },
    }
