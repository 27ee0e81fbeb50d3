"""HistoryLimits: the limits of reading history that no flag sets. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """The limits of the queue, of one request, and of what is remembered.

    needs_of_series, needs: most queued needs of a series, and of all series. A gap beyond stays declared in the store,
        and is looked up later.
    looks: most series with a queued lookup in the store. The next read of a further series queues its lookup again.
    piece_candles: candles of one piece of a long need (a few pages); then another series has its turn.
    page_candles: candles from the first to the last of the short needs that share a request.
    fold_parts: most parts of native candles that a reading folds in memory. The older part of a longer need is a
        further reading.
    remembered: most remembered entries of each kind; the oldest are evicted first.
    nothing_before_ttl_s: seconds for which a proof counts that a source has nothing before the first candle of a
        series. Exchanges do change their history: old candles are restored, a symbol is listed again.
    store_retry_s: pause after a failed write of the store, and before a failed lookup in the store is repeated, in
        seconds, before jitter.
    look_retry_most_s: longest pause before a failed lookup of a series is repeated, in seconds: each failure in a row
        doubles the pause. Shorter than the five minutes for which the status shows a defect.
    """

    needs_of_series: int = 1000
    needs: int = 100_000
    looks: int = 10_000
    piece_candles: int = 5000
    page_candles: int = 500
    fold_parts: int = 20_000
    remembered: int = 10_000
    nothing_before_ttl_s: float = 6 * 3600.0
    store_retry_s: float = 10.0
    look_retry_most_s: float = 240.0


USUAL_LIMITS = HistoryLimits()
