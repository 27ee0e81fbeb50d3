"""Answers of a service as arrays: candles, factor slices, frames and drawings. Times are open times in UTC seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import MAX_TIME, OHLCV, Candle, check_values
from klinesync.core.errors import BadCandle, KlinesyncError
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

    Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
else:
    Json = object  # msgspec does not accept a recursive alias

# Candles and points as structured arrays: `candles["close"]`, `points["value"]`.
CANDLE = np.dtype(
    [("candle_time", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"), ("volume", "f8")]
)
# With the order flow: NaN where the source does not tell. `trades` is a float too, because integers have no NaN; counts
# are exact up to 2**53.
FULL_CANDLE = np.dtype(
    [
        *CANDLE.descr,
        ("quote_volume", "f8"),
        ("trades", "f8"),
        ("taker_buy_volume", "f8"),
        ("taker_buy_quote_volume", "f8"),
    ]
)
POINT = np.dtype([("time", "i8"), ("value", "f8")])
Table: TypeAlias = NDArray[np.void]
Column: TypeAlias = NDArray[np.int64] | NDArray[np.float64]


# A time within the calendar's years; arrays cannot hold larger ones.
WireTime: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]
# Most names that an error lists.
MAX_LISTED = 60


class NoPandas(KlinesyncError):
    """pandas is not installed."""

    code = "no_pandas"


class UnknownFactor(KlinesyncError, KeyError):
    """The answer has no factor, output or kind of event of this name. `known`: the names that it has."""

    code = "unknown_factor"

    def __init__(self, problem: str, available: Iterable[str]) -> None:
        self.known = sorted(available)
        listed = ", ".join(self.known[:MAX_LISTED]) + (" …" if len(self.known) > MAX_LISTED else "")
        super().__init__(f"{problem}; there are: {listed}" if self.known else problem)

    def __str__(self) -> str:  # a KeyError shows a sentence in quotes
        return printable(str(self.args[0]))


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """The values of one factor or indicator when a candle closed.

    name: of the factor or indicator.
    epoch: rises with each correction that changes earlier values.
    events: a factor's events within the window by kind, ascending in `visible_time`.
    points: values within the window by output, of an indicator or a factor with outputs.
    head: a factor's current state, and the values of outputs at the candle, by name.
    """

    name: str
    epoch: int
    events: Mapping[str, Sequence[Mapping[str, Json]]]
    points: Mapping[str, Table]
    head: Mapping[str, Json]

    def __repr__(self) -> str:
        counts = [f"{name}: {len(items)}" for name, items in [*self.events.items(), *self.points.items()]]
        return f"Snapshot({self.name!r}, epoch={self.epoch}, {', '.join(counts) or 'empty window'})"

    def outputs(self) -> list[str]:
        """The names of the outputs of an indicator, or of a factor that has some."""
        return [key for key in self.head if key == self.name or key.startswith(f"{self.name}.")]


@dataclass(frozen=True, slots=True, repr=False)
class Slices:
    """The values of all factors and indicators when a candle closed.

    series: of the candle.
    at_time: the candle's open time; None when the series has no candle at that time.
    epoch: rises with each correction that changes earlier values.
    snapshots: by factor or indicator.
    """

    series: SeriesId
    at_time: int | None
    epoch: int
    snapshots: Mapping[str, Snapshot]

    def __repr__(self) -> str:
        return f"Slices({str(self.series)!r}, at_time={self.at_time}, epoch={self.epoch}, {_listed(self.snapshots)})"

    def value(self, key: str) -> float:
        """An output of an indicator or factor at the candle: `ema_21`, `macd_12_26_9.macdsignal`. NaN without a value.
        Raises `UnknownFactor` (a `KeyError`), which lists the known outputs."""
        snapshot = self.snapshots.get(key) or self.snapshots.get(key.partition(".")[0])
        if snapshot is None or key not in snapshot.outputs():
            outputs = [name for snapshot in self.snapshots.values() for name in snapshot.outputs()]
            raise UnknownFactor(self._missing("output", key), outputs)
        value = snapshot.head[key]
        return float(value) if isinstance(value, (int, float)) else float("nan")

    def events(self, name: str, kind: str) -> Sequence[Mapping[str, Json]]:
        """A factor's events of one kind within the window: `events("pivot", "major")`. Raises `UnknownFactor` (a
        `KeyError`)."""
        events = self._snapshot(name).events
        if kind not in events:
            raise UnknownFactor(f"{name} has no events {kind!r}", events)
        return events[kind]

    def head(self, name: str) -> Mapping[str, Json]:
        """A factor's current state: `head("pen")["extending"]`. Raises `UnknownFactor` (a `KeyError`)."""
        return self._snapshot(name).head

    def _snapshot(self, name: str) -> Snapshot:
        snapshot = self.snapshots.get(name)
        if snapshot is None:
            raise UnknownFactor(self._missing("factor", name), self.snapshots)
        return snapshot

    def _missing(self, kind: str, name: str) -> str:
        if self.at_time is None:
            return f"there is no {kind} {name!r}, because {self.series} has no candle at that time"
        return f"the service computes no {kind} {name!r}"

    def columns(self) -> dict[str, Column]:
        """The outputs of indicators and factors within the window as arrays of one length: `time`, and each output; NaN
        where an output has no value."""
        tables = {key: points for snapshot in self.snapshots.values() for key, points in snapshot.points.items()}
        empty = [np.empty(0, np.int64)]
        times = np.unique(np.concatenate([*(points["time"] for points in tables.values()), *empty]))
        columns: dict[str, Column] = {"time": times}
        for key, points in tables.items():
            column = np.full(len(times), np.nan)
            column[np.searchsorted(times, points["time"])] = points["value"]
            columns[key] = column
        return columns


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has read the drawings of a series; an argument of the next `drawings` call."""

    version_id: int = 0
    point_time: int = -1
    epoch: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Drawings:
    """The drawings of a window, as changes since the reader's cursor.

    series: of the drawings.
    epoch: of the drawings. When it differs from the cursor's, all earlier drawings are void.
    at_time: open time of the newest candle of the window; None when the series has no candle at that time.
    active: ids of the instructions to show.
    new: instructions, as the HTTP reference describes them; a newer version of an `instruction_id` replaces the older.
    points: the new values of indicators and factors, by output.
    cursor: for the next call.
    """

    series: SeriesId
    epoch: int
    at_time: int | None
    active: Sequence[str]
    new: Sequence[Mapping[str, Json]]
    points: Mapping[str, Table]
    cursor: Cursor

    def __repr__(self) -> str:
        counts = f"{len(self.active)} active, {len(self.new)} new, {_listed(self.points)}"
        return f"Drawings({str(self.series)!r}, at_time={self.at_time}, epoch={self.epoch}, {counts})"


@dataclass(frozen=True, slots=True)
class Frame:
    """Slices and drawings of the newest candle at or before `asked`, which opens at `at_time`."""

    asked: int | None
    at_time: int | None
    slices: Slices
    drawings: Drawings


class WirePoint(msgspec.Struct):
    """A point in the service's JSON."""

    time: WireTime
    value: float


class WireCandle(msgspec.Struct):
    """A candle in the service's JSON. The decoder refuses impossible values, such as a price of 0. Its order flow comes
    only where it was requested; an older service does not send it."""

    candle_time: WireTime
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None = None
    trades: int | None = None
    taker_buy_volume: float | None = None
    taker_buy_quote_volume: float | None = None

    def __post_init__(self) -> None:
        try:
            check_values(self.candle())
        except BadCandle as error:
            raise ValueError(str(error)) from None  # msgspec raises a ValidationError

    def candle(self) -> Candle:
        """As a `Candle`."""
        return Candle(*msgspec.structs.astuple(self))


class WirePage(msgspec.Struct):
    """The answer of `GET /api/market/candles`."""

    candles: list[WireCandle]

    def table(self) -> Table:
        """The candles as a structured array of `CANDLE`."""
        return np.array([msgspec.structs.astuple(candle)[:OHLCV] for candle in self.candles], CANDLE)

    def full_table(self) -> Table:
        """The candles as a structured array of `FULL_CANDLE`: null becomes NaN."""
        return np.array([msgspec.structs.astuple(candle) for candle in self.candles], FULL_CANDLE)


class _Meta(msgspec.Struct):
    epoch: int


class _Snapshot(msgspec.Struct):
    history: dict[str, list[dict[str, Json]]]
    head: dict[str, Json]
    meta: _Meta

    def read(self, name: str) -> Snapshot:
        # Lists with the names of outputs are values; the others are events.
        outputs = {key for key in self.history if key == name or key.startswith(f"{name}.")}
        points = {key: _points(msgspec.convert(self.history[key], list[WirePoint])) for key in outputs}
        events = {key: items for key, items in self.history.items() if key not in outputs}
        return Snapshot(name, self.meta.epoch, events, points, self.head)


class WireSlices(msgspec.Struct):
    """The answer of `GET /api/factor/slices`."""

    series_id: str
    at_time: int | None
    snapshots: dict[str, _Snapshot]

    def read(self) -> Slices:
        """As slices with arrays."""
        snapshots = {name: snapshot.read(name) for name, snapshot in self.snapshots.items()}
        epoch = max((snapshot.epoch for snapshot in snapshots.values()), default=0)
        return Slices(SeriesId.parse(self.series_id), self.at_time, epoch, snapshots)


class WireSlicesAfter(msgspec.Struct):
    """The answer of `GET /api/factor/slices_after`."""

    slices: list[WireSlices]

    def read(self) -> list[Slices]:
        """As slices with arrays, ascending."""
        return [slices.read() for slices in self.slices]


class _WireCursor(msgspec.Struct):
    version_id: int
    point_time: int


class WireDrawings(msgspec.Struct):
    """The answer of `GET /api/draw/delta`."""

    series_id: str
    epoch: int
    to_candle_time: int | None
    active_ids: list[str]
    instruction_catalog_patch: list[dict[str, Json]]
    series_points: dict[str, list[WirePoint]]
    next_cursor: _WireCursor

    def read(self) -> Drawings:
        """As drawings with arrays."""
        return Drawings(
            SeriesId.parse(self.series_id),
            self.epoch,
            self.to_candle_time,
            self.active_ids,
            self.instruction_catalog_patch,
            {key: _points(points) for key, points in self.series_points.items()},
            Cursor(self.next_cursor.version_id, self.next_cursor.point_time, self.epoch),
        )


class _FrameTime(msgspec.Struct):
    at_time: int | None
    aligned_time: int | None


class WireFrame(msgspec.Struct):
    """The answer of `GET /api/frame/live` and `/at_time`."""

    time: _FrameTime
    factor_slices: WireSlices
    draw_state: WireDrawings

    def read(self) -> Frame:
        """As a frame with arrays."""
        time = self.time
        return Frame(time.at_time, time.aligned_time, self.factor_slices.read(), self.draw_state.read())


class WireCatalogue(msgspec.Struct):
    """The answer of `GET /api/factor/catalog`."""

    factors: list[dict[str, Json]]


def to_pandas(table: Table | Mapping[str, Column]) -> pd.DataFrame:
    """Candles, points or columns as a data frame, indexed by time (UTC). The `trades` of candles become nullable whole
    numbers (`Int64`); other missing values are NaN. Raises `NoPandas`."""
    try:
        import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise NoPandas("pandas is not installed: pip install 'klinesync[pandas]'") from None
    columns = table if isinstance(table, Mapping) else {name: table[name] for name in table.dtype.names or ()}
    time_column = next(name for name in ("candle_time", "time") if name in columns)
    index = pd.DatetimeIndex(columns[time_column].astype("datetime64[s]"), name="time").tz_localize("UTC")
    frame = pd.DataFrame({name: column for name, column in columns.items() if name != time_column}, index=index)
    if time_column == "candle_time" and "trades" in columns:
        frame["trades"] = frame["trades"].astype("Int64")
    return frame


def _listed(names: Iterable[str]) -> str:
    """Names in one line of bounded length."""
    listed = list(names)
    return " ".join(listed[:MAX_LISTED]) + (" …" if len(listed) > MAX_LISTED else "") if listed else "nothing"


def _points(points: Sequence[WirePoint]) -> Table:
    return np.array([(point.time, point.value) for point in points], POINT)
