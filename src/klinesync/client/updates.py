"""Updates: the items that a follower of a series receives. Each names its series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klinesync.client.tables import Slices
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId


@dataclass(frozen=True, slots=True)
class Connected:
    """The subscription is made; the missed candles come next. `head`: the newest closed open time of the service;
    `stream`: the state of the series' stream (`live`, `reconnecting` …)."""

    head: int | None
    stream: str
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The catch-up is complete; live updates follow. Once a connection. `head`: the newest closed open time when the
    subscription was made; None when nothing was stored."""

    head: int | None
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ClosedCandle:
    """A closed candle.

    candle: the candle
    revised: whether it corrects a delivered candle, or fills a hole before one
    slices: the values of all factors when the candle closed; None without `factors`
    series: of the candle
    """

    candle: Candle
    revised: bool = False
    slices: Slices | None = None
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class FormingCandle:
    """The candle in progress."""

    candle: Candle
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Gap:
    """Candles are missing.

    expected: open time of the first missing candle
    actual: open time of the next candle
    state: `unknown`, `healing`, `confirmed_empty` or `lost`
    series: of the candles
    """

    expected: int
    actual: int
    state: str = "unknown"
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class System:
    """An event of the series.

    event: `stream.stale`, `backfill.progress`, `history.extended`, `slow` …
    message: a sentence; may be empty
    data: the facts
    series: of the event
    """

    event: str
    message: str
    data: Mapping[str, object]
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended; the follower reconnects by itself. `reason` is a sentence."""

    reason: str
    series: SeriesId = field(kw_only=True)


Update = Connected | CaughtUp | ClosedCandle | FormingCandle | Gap | System | Disconnected
