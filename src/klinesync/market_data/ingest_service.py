"""MarketIngestService: checked writes from outside, into the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from klinesync.core.candle import Applied, Candle, check_candle, check_not_future
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.exchange_clock import ExchangeClock


class MarketIngestService:
    """Closed candles by the caller's word. Whether they lie in the future is judged by the exchange's time where it
    is known, else by the system clock."""

    def __init__(
        self, pipeline: IngestPipeline, clocks: Mapping[tuple[str, str], ExchangeClock], wall_s: Callable[[], float]
    ) -> None:
        self._pipeline = pipeline
        self._clocks = clocks
        self._wall_s = wall_s

    async def ingest_candles_closed(self, series: SeriesId, candles: Sequence[Candle], monotonic_s: float) -> Applied:
        """Store candles of one series, all or nothing; returns after the commit.

        Raises `BadCandle` for the first bad one and for two that disagree about one time, `StoreError` when nothing
        was stored.
        """
        now = self._now(series, monotonic_s)
        seen: dict[int, Candle] = {}
        for candle in candles:
            check_candle(candle, series.timeframe)
            check_not_future(candle, series.timeframe, now)
            if seen.setdefault(candle.time, candle) != candle:
                raise BadCandle(candle.time, "it is given twice, with different values")
        return await self._pipeline.submit(series, candles, "http")

    def _now(self, series: SeriesId, monotonic_s: float) -> int:
        clock = self._clocks.get((series.exchange, series.market))
        estimate_ms = None if clock is None else clock.estimate_ms(monotonic_s)
        return int(self._wall_s()) if estimate_ms is None else estimate_ms // 1000
