"""NativeReader: reads the exchange's own candles of derived series, where the base cannot give them."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.errors import UpstreamError
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand
from klinesync.history.memory import NOTHING_BEFORE_TTL_S, SourceMemory
from klinesync.history.missing import Reason
from klinesync.history.pending import Pending, fruitless, not_answered
from klinesync.history.pieces import Outcome
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import came, into, on_board, read_pages
from klinesync.pipelines.derived_step import NATIVE

# What health calls the reading.
NATIVE_REASON = "native candles"
# So many answers in a row without the candles at the end of a need, and the exchange has none there: the delays between
# them add up to some minutes, and it shows its newest candle within one.
MOST_FRUITLESS = 6
# The answer that is told then.
NOTHING_SHOWN = "no candle came, again and again: the exchange has none there"


@dataclass(frozen=True, slots=True)
class NativeReader:
    """Reads one need of native candles at a time.

    ports: the sources, the store, and who is told.
    memory: is told where the exchange's own candles begin.
    """

    ports: HistoryPorts
    memory: SourceMemory

    async def read(self, pending: Pending, errand: Errand) -> Outcome:
        """Read the newest page first, so that each joins what is stored. Candles at the end that did not come are not
        shown yet, or not proven final yet: they are asked for again. Raises `StoreError`."""
        series, wanted = pending.series, pending.span
        stored = await self.ports.database.read(lambda store: store.span(series))
        try:
            with on_board(self.ports.watch, series, wanted, NATIVE_REASON) as progress:
                pages = self.ports.history(series, wanted.start, errand, wanted.end)
                await read_pages(pages, into(self.ports.pipeline, series, NATIVE), progress, newest_first=True)
        except UpstreamError as error:
            self.ports.warn("history.native_failed", series, "its native candles cannot be read", error=error)
            again = not_answered(pending, self.ports.monotonic(), self.ports.rng, error.retry_after_s or 0.0)
            return Outcome((again,), str(error), progress.candles)
        brought = progress.came
        if brought is not None and wanted.start < brought.start and (stored is None or wanted.start < stored.start):
            self.memory.remember_nothing(series, Span(wanted.start, brought.start), self.ports.monotonic())
        end = wanted.start if brought is None else brought.end
        if end >= wanted.end:
            return Outcome((), came(progress.candles), progress.candles)
        again = fruitless(pending.over(Span(end, wanted.end)), self.ports.monotonic(), self.ports.rng)
        if again.fruitless < MOST_FRUITLESS:
            return Outcome((again,), came(progress.candles), progress.candles)
        now_s = self.ports.monotonic()
        if brought is None and (stored is None or wanted.start < stored.start):
            self.memory.remember_nothing(series, wanted, now_s)
        self.memory.remember_answer(series, Reason.NATIVE, again.span, now_s + NOTHING_BEFORE_TTL_S, now_s)
        return Outcome((), NOTHING_SHOWN, progress.candles)
