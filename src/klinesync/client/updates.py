"""Updates: what a follower of a series is told. Each names its series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klinesync.client.tables import Slices
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId


@dataclass(frozen=True, slots=True)
class Connected:
    """The subscription is made; what was missed comes next. `head`: the newest closed open time that the service has;
    `stream`: the state of the series' upstream (`live`, `reconnecting` …)."""

    head: int | None
    stream: str
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that was stored when the subscription was made has come; what follows is live. Once a connection. `head`: the
    newest closed open time at that moment; None when nothing is stored."""

    head: int | None
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ClosedCandle:
    """A closed candle; `revised`: in place of, or behind, an earlier one. `slices`: what factors knew when the candle
    closed, for followers that asked for factors."""

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
    """Candles from `expected` on are missing before `actual`. `state`: unknown, healing, confirmed_empty or lost."""

    expected: int
    actual: int
    state: str = "unknown"
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class System:
    """Something that happened to the series (`event`: `stream.stale`, `backfill.progress`, `history.extended`, `slow`
    …). `message` is a sentence, which may be empty; `data` are the facts."""

    event: str
    message: str
    data: Mapping[str, object]
    series: SeriesId = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; it is made again by itself. `reason` is a sentence."""

    reason: str
    series: SeriesId = field(kw_only=True)


Update = Connected | CaughtUp | ClosedCandle | FormingCandle | Gap | System | Disconnected
