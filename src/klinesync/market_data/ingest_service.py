"""MarketIngestService: validates closed candles of callers, and writes them through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from klinesync.core.candle import Applied, Candle, agree, check_candle, check_not_future, replacing
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.pipelines.ingest_pipeline import IngestPipeline


class Checked(NamedTuple):
    """Valid closed candles of one series, each open time once."""

    series: SeriesId
    candles: Sequence[Candle]


class MarketIngestService:
    """Takes closed candles of callers. `time`: no candle may close later than the exchange's time, or the system clock
    when that is unknown."""

    def __init__(self, pipeline: IngestPipeline, time: ExchangeTime) -> None:
        self._pipeline = pipeline
        self._time = time

    def now(self, series: SeriesId) -> int:
        """The latest close of a candle of the series, in UTC seconds."""
        return int(self._time.now_s(series))

    @staticmethod
    def check(series: SeriesId, candles: Sequence[Candle], now: int) -> Checked:
        """Validate candles, on any thread. `now`: the latest close. Raises `BadCandle` for the first bad candle, and
        for two candles with the same time that contradict each other."""
        by_time: dict[int, Candle] = {}
        for candle in candles:
            check_candle(candle, series.timeframe)
            check_not_future(candle, series.timeframe, now)
            given = by_time.setdefault(candle.time, candle)
            if given is not candle and given != candle:
                if not agree(given, candle):
                    raise BadCandle(candle.time, "it is given twice, with different values")
                by_time[candle.time] = replacing(given, candle)
        return Checked(series, list(by_time.values()))

    async def store(self, checked: Checked) -> Applied:
        """Store candles, all or none; returns after the commit. Raises `StoreError` when nothing was stored."""
        return await self._pipeline.submit(checked.series, checked.candles, "http", checked=True)
