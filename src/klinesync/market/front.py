"""Front: the application's parts beside market data: the guard, limits of requests, and inspection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from klinesync.core.candle import Candle, Forming, check_candle
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle, DerivedSeries
from klinesync.core.series_id import SeriesId
from klinesync.ingest.supervisors import Supervisors
from klinesync.market.bodies import BodyBudget
from klinesync.market.guard import Guard
from klinesync.market.inspection import Inspection
from klinesync.market.limits import ConnectionLimits
from klinesync.market.stopping import Requests
from klinesync.market_data.series_health import SeriesHealthService
from klinesync.pipelines.derived_step import DerivedStep


class FormingIngest:
    """Shows posted forming candles, like those of streams; they are never stored.

    show: broadcasts a forming candle.
    derived: the derived timeframes.
    now_s: the time of a series' exchange, in UTC seconds.
    """

    def __init__(
        self, show: Callable[[Forming], None], derived: DerivedStep, now_s: Callable[[SeriesId], float]
    ) -> None:
        self._show = show
        self._derived = derived
        self._now_s = now_s

    def ingest_candle_forming(self, series: SeriesId, candle: Candle) -> None:
        """Broadcast a candle in progress. Raises `BadCandle`, also for a candle in the future, and `DerivedSeries`."""
        if self._derived.derives(series):
            raise DerivedSeries(series, self._derived.base)
        check_candle(candle, series.timeframe)
        now = int(self._now_s(series))
        if candle.time > now:
            raise BadCandle(candle.time, f"it opens after the exchange's now ({date_text(now)})")
        self._show(Forming(series, candle))


@dataclass(frozen=True, slots=True)
class DebugApi:
    """The parts of the debug API."""

    supervisors: Supervisors
    series_health: SeriesHealthService
    forming: FormingIngest


@dataclass(frozen=True, slots=True)
class Front:
    """The parts of the application beside market data.

    guard: decides about requests.
    inspection: counters and backlogs.
    debug: None when the debug API is off.
    bodies, requests: in flight.
    connections: limits of connections.
    """

    guard: Guard
    inspection: Inspection
    debug: DebugApi | None
    bodies: BodyBudget
    requests: Requests
    connections: ConnectionLimits


def front_of(request: Request) -> Front:
    """The front of the application."""
    front = request.app.state.front
    assert isinstance(front, Front)
    return front
