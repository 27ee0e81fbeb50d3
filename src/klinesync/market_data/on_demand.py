"""OnDemand: what a subscription starts, and gives back when it ends."""

from __future__ import annotations

from typing import Protocol

from klinesync.core.series_id import SeriesId
from klinesync.market_data.coverage import Coverage
from klinesync.market_data.derived_services import DerivedHistory
from klinesync.market_data.series_scope import SeriesScope
from klinesync.pipelines.derived_step import DerivedStep


class Follows(Protocol):
    """The exchanges, as far as they follow series."""

    def covers(self, series: SeriesId) -> bool:
        """Whether the series' exchange can be asked."""
        ...

    def acquire(self, series: SeriesId) -> None:
        """Follow a base series at least until `release`. Raises `NoCapacity`."""
        ...

    def release(self, series: SeriesId) -> None:
        """Give back the reference of `acquire`."""
        ...


class OnDemand:
    """Ingest on demand: each subscription holds a reference to its series. A series that is not covered (candles of it
    only come from outside) is served from the store.

    exchanges: follow series.
    scope: the sources of series.
    derived: names the base of a derived series.
    derived_history: reads the first history of a derived series.
    coverage: reads the files of a series whose exchange cannot be asked; None: reads fetch nothing.
    """

    def __init__(
        self,
        exchanges: Follows,
        scope: SeriesScope,
        derived: DerivedStep,
        derived_history: DerivedHistory,
        coverage: Coverage | None,
    ) -> None:
        self._exchanges = exchanges
        self._scope = scope
        self._derived = derived
        self._derived_history = derived_history
        self._coverage = coverage

    def covers(self, series: SeriesId) -> bool:
        """Whether a subscription of the series starts anything."""
        return self._scope.covers(self._derived.base_of(series))

    def acquire(self, series: SeriesId) -> None:
        """Follow the series until `release`. Raises `Rejected` when there is no capacity."""
        base = self._derived.base_of(series)
        if self._exchanges.covers(base):
            self._exchanges.acquire(base)
            self._derived_history.ensure(series)
        elif self._coverage is not None:  # its files are read
            self._coverage.ensure(series, base, None, None, newest=True)

    def release(self, series: SeriesId) -> None:
        """Give back the reference of `acquire`."""
        base = self._derived.base_of(series)
        if self._exchanges.covers(base):
            self._exchanges.release(base)
