"""MarketIngestService: validates closed candles of callers, and writes them through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.candle import Applied, Candle, agree, check_candle, check_not_future, replacing
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.pipelines.ingest_pipeline import IngestPipeline


class MarketIngestService:
    """Takes closed candles of callers. `time`: no candle may close later than the exchange's time, or the system clock
    when that is unknown."""

    def __init__(self, pipeline: IngestPipeline, time: ExchangeTime) -> None:
        self._pipeline = pipeline
        self._time = time

    async def ingest_candles_closed(self, series: SeriesId, candles: Sequence[Candle]) -> Applied:
        """Store candles of one series, all or none; returns after the commit. Raises `BadCandle` for the first bad
        candle, and for two candles with the same time that contradict each other, `StoreError` when nothing was
        stored."""
        now = int(self._time.now_s(series))
        by_time: dict[int, Candle] = {}
        for candle in candles:
            check_candle(candle, series.timeframe)
            check_not_future(candle, series.timeframe, now)
            given = by_time.setdefault(candle.time, candle)
            if given != candle:
                if not agree(given, candle):
                    raise BadCandle(candle.time, "it is given twice, with different values")
                by_time[candle.time] = replacing(given, candle)
        return await self._pipeline.submit(series, list(by_time.values()), "http")
