"""SeriesScope: the sources of a series (its exchange, files), and the open time from which its candles are kept."""

from __future__ import annotations

from typing import Protocol

from klinesync.core.errors import UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.history.files.sources import FreqtradeFiles
from klinesync.market_data.retention import cut_of
from klinesync.pipelines.derived_step import DerivedStep


class Listed(Protocol):
    """The exchanges, and the series that they list."""

    def covers(self, series: SeriesId) -> bool:
        """Whether the series' exchange can be asked."""
        ...

    async def known(self, series: SeriesId) -> bool:
        """True for a series that its exchange lists. Raises `UnknownSeries` for any other, `UpstreamError`."""
        ...


class SeriesScope:
    """The sources of series.

    exchanges: list series.
    files: freqtrade's files; None: there are none.
    derived: the base of each derived series.
    reads_exchanges: whether history may be read from exchanges at all.
    retention_days: days of candles that are kept, counted back from the head; 0: all.
    """

    def __init__(
        self,
        exchanges: Listed,
        files: FreqtradeFiles | None,
        derived: DerivedStep,
        *,
        reads_exchanges: bool,
        retention_days: int,
    ) -> None:
        self._exchanges = exchanges
        self._files = files
        self._derived = derived
        self._reads_exchanges = reads_exchanges
        self._retention_days = retention_days

    def covers(self, series: SeriesId) -> bool:
        """Whether any source may have the series: files, or an exchange that can be asked."""
        return self._files is not None or self._exchanges.covers(series)

    def reads_exchange(self, series: SeriesId) -> bool:
        """Whether the history of the series may be read from its exchange."""
        return self._reads_exchanges and self._exchanges.covers(series)

    def kept_from(self, series: SeriesId, head: int) -> int:
        """The open time before which a series with that head is trimmed; 0: retention is off."""
        return kept_from(self._retention_days, self._derived, series, head)

    async def known(self, series: SeriesId) -> bool:
        """True when its exchange lists the series (or its base), or when there is a file and the exchange is not
        available. Raises `UnknownSeries` for another series, `UpstreamError`."""
        base = self._derived.base_of(series)
        try:
            return await self._exchanges.known(base)
        except UnknownSeries as error:
            files = None if self._exchanges.covers(base) else self._files
            if files is not None and await files.has(base):
                return True
            raise UnknownSeries(str(series), error.reason + await self._hint(series)) from None

    async def _hint(self, series: SeriesId) -> str:
        """A hint how to have a series computed that its exchange lacks; empty when that is impossible. Raises
        `UpstreamError`."""
        hint = self._derived.hint(series)
        if hint:
            try:
                await self._exchanges.known(series.with_timeframe(self._derived.base))
            except UnknownSeries:
                return ""
        return hint


def kept_from(days: int, derived: DerivedStep, series: SeriesId, head: int) -> int:
    """The open time before which a series is trimmed; 0: retention is off.

    days: of the retention; 0: off.
    derived: whole buckets of its targets are kept.
    series: the series.
    head: of the series.
    """
    targets = derived.targets if series.timeframe == derived.base else ()
    return cut_of(head, days, targets) if days else 0
