"""Tails: reads the missing tail of a series that is not followed, from files and the exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from klinesync.core.errors import Rejected, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.history.missing import missing_tail
from klinesync.history.pending import Pending
from klinesync.history.pieces import Outcome
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import FILES, REST, TailFiles, candles_came, into, on_board, read_pages

# Shortest retry delay of a series whose symbol the exchange does not list, in seconds.
UNLISTED_S = 300.0
# Answers of tails that are not read.
NOT_LISTED = "the exchange does not list the symbol"
NOT_MISSING = "nothing of it is missing any more, or the series is followed"


@dataclass(frozen=True, slots=True)
class TailLimits:
    """How much of a tail is read.

    most_candles: most candles, the newest.
    final_margin_s: seconds of the exchange from the close of a candle until it is final.
    kept_from: the open time before which retention trims a series with that head; 0: retention is off.
    """

    most_candles: int
    final_margin_s: float
    kept_from: Callable[[SeriesId, int], int]

    def missing(self, series: SeriesId, stored: Span | None, final_s: float) -> Span | None:
        """The missing tail; None when nothing is missing.

        series: whose tail.
        stored: the stored span; None when nothing is stored.
        final_s: latest close of a candle, UTC seconds.
        """
        newest = series.timeframe.latest_closed(int(final_s))
        return missing_tail(series.timeframe, stored, final_s, self.most_candles, self.kept_from(series, newest))


@dataclass(frozen=True, slots=True)
class Tails:
    """Reads one tail at a time, up to `limits.most_candles`; a gap before them is left to the gap ledger.

    ports: sources, store, progress and limits.
    source: the exchanges.
    limits: how much is read.
    followed: whether the series is followed, so that its tail comes live.
    exchange_s: the exchange's time, UTC seconds; None: the exchange has to be asked.
    files: read before the exchange is asked, and alone while it cannot be asked; None: there are no files.
    """

    ports: HistoryPorts
    source: ExchangeRegistry
    limits: TailLimits
    followed: Callable[[SeriesId], bool]
    exchange_s: Callable[[SeriesId], float | None]
    files: TailFiles | None = None

    async def read(self, pending: Pending, errand: Errand) -> Outcome:
        """Read a tail up to the newest final candle. Raises `StoreError`."""
        attempt = _Attempt(pending, errand)
        try:
            return await self._read(attempt)
        except UpstreamError as error:
            self.ports.warn("history.tail_failed", pending.series, "its tail cannot be read", error=error)
            again = self.ports.after_no_answer(pending, error.retry_after_s or 0.0)
            return Outcome((again,), str(error), attempt.candles)

    async def _read(self, attempt: _Attempt) -> Outcome:
        """Raises `UpstreamError`, `StoreError`."""
        series = attempt.pending.series
        trouble: UpstreamError | None = None  # why the exchange cannot be asked
        exchange_s: float | None = None
        if self.ports.asks(series):
            try:
                if not await self.source.knows(series):
                    again = self.ports.after_fruitless(attempt.pending, UNLISTED_S)
                    return Outcome((again,), NOT_LISTED)
                exchange_s = self.exchange_s(series)
                if exchange_s is None:
                    exchange_s = await self.source.now_ms(series) / 1000
            except UpstreamError as error:
                if self.files is None:
                    raise
                trouble = error
        final_s = (self.ports.now_s(series) if exchange_s is None else exchange_s) - self.limits.final_margin_s
        stored, _ = before, _ = await self.ports.stored(series)
        span = self.limits.missing(series, stored, final_s)
        if span is None or self.followed(series):
            return Outcome((), NOT_MISSING)
        if self.files is not None:
            end = await self.files.end(series, int(final_s))
            if end is not None and exchange_s is None:  # the files alone: their newest candles, of any age
                span = self.limits.missing(series, stored, end)
            if end is not None and span is not None and end > span.start:
                await self._read_files(self.files, series, span, attempt)
                stored, _ = await self.ports.stored(series)
        if exchange_s is not None and (span := self.limits.missing(series, stored, final_s)) is not None:
            await self._ask(series, stored, span, attempt)
            stored, _ = await self.ports.stored(series)
        if stored != before:
            return Outcome((), candles_came(attempt.candles), attempt.candles)
        if trouble is not None:
            raise trouble
        return Outcome((self.ports.after_fruitless(attempt.pending),), candles_came(0))

    async def _ask(self, series: SeriesId, stored: Span | None, span: Span, attempt: _Attempt) -> None:
        """Read a tail from the exchange, page by page. Raises `UpstreamError`, `StoreError`."""
        start = span.start
        if stored is not None and stored.end == start:
            start = series.timeframe.shift(start, -1)  # with the head, so that the answer proves a gap behind it
        with on_board(self.ports.watch, series, span, attempt.pending.need.asked_by) as progress:
            try:
                pages = self.source.history(series, start, attempt.errand)
                await read_pages(pages, into(self.ports.pipeline, series, REST), progress)
            finally:
                attempt.candles += progress.candles

    async def _read_files(self, files: TailFiles, series: SeriesId, span: Span, attempt: _Attempt) -> None:
        """Read a tail from files. Raises `StoreError`."""
        with on_board(self.ports.watch, series, span, FILES) as progress:
            try:
                await read_pages(files.pages(series, span), into(self.ports.pipeline, series, files.name), progress)
            except (UpstreamError, Rejected) as error:
                progress.trouble = str(error)
                self.ports.warn("history.files_failed", series, "files are left out", source=files.name, error=error)
            attempt.candles += progress.candles


@dataclass(slots=True)
class _Attempt:
    """An attempt to read a tail.

    pending: the need.
    errand: how urgent the requests are.
    candles: candles that came so far.
    """

    pending: Pending
    errand: Errand
    candles: int = 0
