"""MarketIngestService: checked writes from outside, into the pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.candle import Applied, Candle, check_candle, check_not_future
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.pipelines.ingest_pipeline import IngestPipeline


class MarketIngestService:
    """Closed candles by the caller's word. Whether they lie in the future is judged by the exchange's time where it
    is known, else by the system clock."""

    def __init__(self, pipeline: IngestPipeline, time: ExchangeTime) -> None:
        self._pipeline = pipeline
        self._time = time

    async def ingest_candles_closed(self, series: SeriesId, candles: Sequence[Candle]) -> Applied:
        """Store candles of one series, all or nothing; returns after the commit.

        Raises `BadCandle` for the first bad one and for two that disagree about one time, `StoreError` when nothing
        was stored.
        """
        now = int(self._time.now_s(series))
        seen: dict[int, Candle] = {}
        for candle in candles:
            check_candle(candle, series.timeframe)
            check_not_future(candle, series.timeframe, now)
            if seen.setdefault(candle.time, candle) != candle:
                raise BadCandle(candle.time, "it is given twice, with different values")
        return await self._pipeline.submit(series, candles, "http")
