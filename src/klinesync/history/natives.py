"""NativeReader: reads native candles of derived series from the exchange, for times before the base begins."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.errors import UpstreamError
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand
from klinesync.history.memory import SourceMemory
from klinesync.history.missing import Reason
from klinesync.history.native_folds import NativeFold
from klinesync.history.pending import Pending
from klinesync.history.pieces import Outcome
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import Progress, candles_came, into, on_board, read_pages
from klinesync.pipelines.derived_step import NATIVE

# The reason of the reading in health.
NATIVE_REASON = "native candles"
# Consecutive answers without the newest candles of a need, after which the exchange has none there. The retry delays
# add up to some minutes, and exchanges show their newest candle within a minute.
MAX_FRUITLESS = 6
# The answer of the reading then.
NOTHING_SHOWN = "no candle came, again and again: the exchange has none there"


@dataclass(frozen=True, slots=True)
class NativeReader:
    """Reads one need of native candles at a time.

    ports: sources, store, progress and limits.
    memory: learns where the exchange's native candles begin.
    """

    ports: HistoryPorts
    memory: SourceMemory

    async def read(self, pending: Pending, errand: Errand) -> Outcome:
        """Read a need, newest page first, so that each page joins the stored candles. Missing candles at the end of the
        need are retried: the exchange may not show them yet, or not as final. Candles of a timeframe that the exchange
        lacks are folded, the newest `fold_parts` parts at a time. Raises `StoreError`."""
        series, wanted = pending.series, pending.span
        stored = await self.ports.database.read(lambda store: store.span(series))
        progress: Progress | None = None
        try:
            source = await self.ports.native_source(series)
            if source is None:
                retry = self.ports.after_fruitless(pending)
                return Outcome((retry,), f"{series.exchange} has no candles that give those of {series}")
            fold = NativeFold.newest(series.timeframe, source.timeframe, wanted, self.ports.limits.fold_parts)
            with on_board(self.ports.watch, series, fold.span, NATIVE_REASON) as progress:
                pages = fold.pages(self.ports.history(source, fold.asked.start, errand, fold.asked.end))
                await read_pages(pages, into(self.ports.pipeline, series, NATIVE), progress, newest_first=True)
        except UpstreamError as error:
            self.ports.warn("history.native_failed", series, "its native candles cannot be read", error=error)
            retry = self.ports.after_no_answer(pending, error.retry_after_s or 0.0)
            return Outcome((retry,), str(error), 0 if progress is None else progress.candles)
        brought, now_s, read = progress.came, self.ports.monotonic(), fold.span
        begins, oldest = fold.begins(brought), stored is None or wanted.start < stored.start
        if begins is not None and oldest:
            self.memory.remember_nothing(series, Span(wanted.start, begins), now_s)
        older = []
        if begins is None and wanted.start < read.start:
            older = [pending.due_now(Span(wanted.start, read.start), now_s)]
        end = read.start if brought is None else brought.end
        if end >= read.end:
            return Outcome(older, candles_came(progress.candles), progress.candles)
        retry = self.ports.after_fruitless(pending.with_span(Span(end, read.end)))
        if retry.fruitless_attempts < MAX_FRUITLESS:
            return Outcome((retry, *older), candles_came(progress.candles), progress.candles)
        if brought is None and oldest and not older:
            self.memory.remember_nothing(series, wanted, now_s)
        self.memory.remember_answer(
            series, Reason.NATIVE, retry.span, now_s + self.ports.limits.nothing_before_ttl_s, now_s
        )
        return Outcome(older, NOTHING_SHOWN, progress.candles)
