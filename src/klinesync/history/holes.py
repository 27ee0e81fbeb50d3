"""HoleReader: reads gaps, older history and explicit backfills: files first, then the exchange, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from klinesync.core import gaps
from klinesync.core.dates import date_text
from klinesync.core.errors import WRONG_REQUEST, NotListed, Rejected, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, clipped
from klinesync.exchanges.exchange import Errand, HistoryPage, Urgency
from klinesync.history import pieces
from klinesync.history.limits import HistoryLimits
from klinesync.history.pending import Pending, within_reach
from klinesync.history.pieces import Answer, Fetch, Outcome, Piece, Remaining
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import HistoryQueue
from klinesync.history.reading import REST, Progress, Shelf, candles_came, on_board, read_pages
from klinesync.history.requested import RequestedBackfills
from klinesync.pipelines.submissions import Empty

# Why a gap is declared lost that is older than every answer of the exchange.
NOT_REACHED = "each answer of an hour showed that the exchange's history does not reach so far back"
# Answers of readings, as `explain` shows them.
NOT_ASKED = "no file has the rest, and the exchange is not asked for history"
NOT_MISSING = "nothing of it is missing any more"
SHOWN_EMPTY = "the exchange has shown that it has no candle there"
BEHIND_HEAD = "it lies behind the stored head: no hole yet"


@dataclass(frozen=True, slots=True)
class HoleReader:
    """Reads gaps, older history and explicit backfills.

    ports: sources, store, progress and limits.
    queue: asked for urgent work; its memory learns where the exchange has nothing.
    requested: the explicit backfills, which report progress of their own.
    """

    ports: HistoryPorts
    queue: HistoryQueue
    requested: RequestedBackfills

    async def read(self, fetch: Fetch, errand: Errand) -> Outcome:
        """Read the missing part of a fetch. Raises `StoreError`."""
        series = fetch.series
        stored, ledger = await self.ports.stored(series)
        missing = pieces.remaining(fetch, stored, ledger)
        if not missing.needs:
            waiting = self._behind_head(fetch, stored)
            return Outcome(waiting, BEHIND_HEAD if waiting else NOT_MISSING)
        watch = self.requested.watch_of(fetch) or self.ports.watch
        span = pieces.piece_of(series.timeframe, missing, self.ports.limits).span
        with on_board(watch, series, span, fetch.needs[-1].need.asked_by) as progress:
            waiting = await self._read(fetch, missing, errand, progress)
        answer = candles_came(progress.candles) if progress.candles or waiting else SHOWN_EMPTY
        return Outcome(waiting, progress.trouble or answer, progress.candles)

    async def _read(self, fetch: Fetch, missing: Remaining, errand: Errand, progress: Progress) -> list[Pending]:
        """Read the files, then the exchange. Returns the needs that wait again. Raises `StoreError`."""
        series = fetch.series
        waiting: list[Pending] = []
        if self.ports.shelves and not all(pending.files_checked for pending in missing.needs):
            if not await self._read_files(fetch, missing, errand, progress):
                due = [replace(pending, due_s=self.ports.monotonic()) for pending in missing.needs]
                return [*due, *self._behind_head(fetch, missing.stored)]
            stored, ledger = await self.ports.stored(series)
            waiting = self._behind_head(fetch, stored)
            fetch, later = pieces.after_files(fetch, missing, stored, ledger, self.ports.limits)
            waiting += later
            if fetch.needs:
                missing = pieces.remaining(fetch, stored, ledger)
            if not fetch.needs or not missing.needs:
                return waiting
        if not self.ports.asks(series):
            progress.trouble = NOT_ASKED
            stored, _ = await self.ports.stored(series)
            stalled = [self.ports.after_no_source(pending) for pending in missing.needs]
            return [*stalled, *self._behind_head(fetch, stored), *waiting]
        reachable = await self._without_lost(series, fetch.needs)
        if reachable != list(fetch.needs):
            stored, ledger = await self.ports.stored(series)
            waiting += self._behind_head(fetch, stored)
            fetch = Fetch(series, tuple(reachable))
            missing = pieces.remaining(fetch, stored, ledger) if reachable else replace(missing, needs=())
            if not missing.needs:
                return waiting
        return [*await self._ask(fetch, missing, errand, progress), *waiting]

    async def _ask(self, fetch: Fetch, missing: Remaining, errand: Errand, progress: Progress) -> list[Pending]:
        """Ask the exchange for a piece. Returns the needs that wait again. Raises `StoreError`."""
        series = fetch.series
        piece = pieces.piece_of(series.timeframe, missing, self.ports.limits)
        asked = progress.part(piece.span.start)
        try:
            await self._read_piece(series, piece, missing, errand, asked)
        except NotListed as error:
            progress.trouble = str(error)
            self.ports.warn("history.not_listed", series, "its gaps are left as they are", error=error)
            # Retried, because the symbol may be listed again, or the list may have been wrong.
            unrequested = [pending for pending in missing.needs if not pending.requested]
            return [self.ports.after_fruitless(pending) for pending in unrequested]
        except UpstreamError as error:
            progress.trouble = str(error)
            self.ports.warn("history.gap_failed", series, "its gaps cannot be read", error=error)
            waiting = self._after_error(missing.needs, error, fruitful=asked.candles > 0)
            waiting = await self._without_lost(series, waiting)
            return waiting + self._behind_head(fetch, missing.stored)
        stored, ledger = await self.ports.stored(series)
        answer = Answer(asked.reached, None if asked.came is None else asked.came.start, stored, ledger)
        if (nothing := pieces.nothing_before_first(piece, answer)) is not None:
            self.queue.memory.remember_nothing(series, nothing, self.ports.monotonic())
        waiting = pieces.still_missing(
            fetch, missing, piece, answer, self.ports.monotonic(), self.ports.rng, self.ports.retries
        )
        waiting = await self._without_lost(series, waiting)
        progress.trouble = self._unproven(series, waiting)
        return waiting

    def _after_error(self, asked: Sequence[Pending], error: UpstreamError, *, fruitful: bool) -> list[Pending]:
        """The needs after a failed request. `fruitful`: candles came before the failure."""
        delay_s = error.retry_after_s or 0.0
        needs = [replace(pending, fruitless_attempts=0) if fruitful else pending for pending in asked]
        if error.status == WRONG_REQUEST:
            # Exchanges may answer 400 to a request for candles that are older than their history.
            return [self.ports.after_fruitless(pending, delay_s, out_of_reach=not fruitful) for pending in needs]
        return [self.ports.after_no_answer(pending, delay_s) for pending in needs]

    async def _read_files(self, fetch: Fetch, missing: Remaining, errand: Errand, progress: Progress) -> bool:
        """Read the missing needs from the files. Returns False when the reading ended early because urgent work of the
        series waits. Raises `StoreError`."""
        series = fetch.series
        for shelf in self.ports.shelves:
            stored, ledger = await self.ports.stored(series)
            for pending in missing.needs:
                for span in gaps.unsettled(ledger, stored, pending.span):
                    part = span_in_files(shelf, pending, span, stored, self.ports.now_s(series), self.ports.limits)
                    if part is None:
                        continue
                    older = stored is not None and part.end == stored.start and not pending.requested
                    try:
                        whole = await read_pages(
                            shelf.files.pages(series, part),
                            partial(self._write, series, shelf.name, pending),
                            progress.part(part.start),
                            newest_first=older,
                            enough=partial(_is_more_urgent, errand, pending),
                        )
                    except (UpstreamError, Rejected) as error:
                        self.ports.warn(
                            "history.files_failed", series, "files are left out", source=shelf.name, error=error
                        )
                        continue
                    if not whole:
                        return False
        return True

    async def _read_piece(
        self, series: SeriesId, piece: Piece, missing: Remaining, errand: Errand, progress: Progress
    ) -> None:
        """Read a piece from the exchange. Raises `UpstreamError`, `StoreError`."""
        older = missing.stored is not None and piece.span.end == missing.stored.start
        newest_first = older and piece.most is None

        def enough() -> bool:
            full = piece.most is not None and progress.reached > piece.span.start and progress.candles >= piece.most
            deep = missing.needs[0].urgency is Urgency.DEEP
            return full or (deep and not newest_first and self.queue.waits_urgently(series))

        whole = await read_pages(
            self.ports.history(series, piece.around.start, errand, piece.around.end),
            partial(self._write, series, REST, missing.needs[0]),
            progress,
            newest_first=newest_first,
            enough=enough,
        )
        if whole:
            progress.reached = piece.span.end

    def _behind_head(self, fetch: Fetch, stored: Span | None) -> list[Pending]:
        """The part of the fetch behind the stored head, to wait for live candles."""
        return pieces.behind_head(fetch, stored, self.ports.monotonic(), self.ports.rng, self.ports.retries)

    async def _write(self, series: SeriesId, source: str, pending: Pending, page: HistoryPage) -> None:
        await self.ports.pipeline.submit(series, page.candles, source, Empty(page.empty, page.proof))
        await self.requested.mark_rest(pending)

    async def _without_lost(self, series: SeriesId, needs: Sequence[Pending]) -> list[Pending]:
        """The needs within reach of the exchange's history. The other needs end; their part between stored candles is
        declared lost. Raises `StoreError`."""
        now_s, reach = self.ports.monotonic(), self.ports.reach(series)
        kept = [pending for pending in needs if not self.ports.retries.is_lost(pending, now_s)]
        lost = [(pending.span, NOT_REACHED) for pending in needs if pending not in kept]
        if reach is not None:
            lost += [(pending.span, reach.sentence) for pending in kept if pending.span.start < reach.oldest]
            lost = [(Span(span.start, max(span.start, min(span.end, reach.oldest))), why) for span, why in lost]
            kept = within_reach(kept, reach.oldest)
        if not lost:
            return kept
        stored, ledger = await self.ports.stored(series)
        for span, why in lost:
            holes = [] if stored is None else clipped(gaps.unsettled(ledger, stored, span), stored)
            if holes:
                missing, first = candle_count(series.timeframe, holes), date_text(span.start)
                self.ports.warn(
                    "history.lost", series, "%d candles from %s on are lost: %s", missing, first, why, span=span
                )
                await self.ports.pipeline.submit(series, [], REST, Empty(holes, why, lost=True))
            if stored is not None and span.start < stored.start and reach is not None and reach.oldest >= stored.start:
                self.queue.memory.remember_nothing(series, Span(span.start, stored.start), now_s)
        return kept

    def _unproven(self, series: SeriesId, waiting: Sequence[Pending]) -> str | None:
        """A sentence about the needs that the answer neither filled nor proved empty; None when there are none."""
        unproven = [pending for pending in waiting if pending.fruitless_attempts]
        if not unproven:
            return None
        missing = candle_count(series.timeframe, [pending.span for pending in unproven])
        first = date_text(unproven[0].span.start)
        sentence = f"the exchange neither brings {missing} candles from {first} on nor shows that it has none"
        self.ports.warn("history.unproven", series, sentence, span=unproven[0].span)
        return sentence


def span_in_files(
    shelf: Shelf, pending: Pending, span: Span, stored: Span | None, now_s: float, limits: HistoryLimits
) -> Span | None:
    """The part of a missing span to read from files; None when the files are not searched for it.

    shelf: the files.
    pending: the need that the span belongs to.
    span: open times that are missing.
    stored: the stored span; None when nothing is stored.
    now_s: the exchange's time, UTC seconds; no later candle is read.
    limits: of one piece.
    """
    frame = pending.series.timeframe
    span = Span(span.start, max(span.start, min(span.end, frame.floor(int(now_s)))))
    most = count = frame.count(*span)
    if not pending.requested:
        if shelf.gap_most is not None:
            most = min(most, shelf.gap_most)
        if stored is not None and span.end == stored.start:
            most = min(most, limits.piece_candles)  # older history is held in memory until it is complete
    if count < shelf.least_candles or most <= 0:
        return None
    return span if most == count else Span(frame.shift(span.end, -most), span.end)


def _is_more_urgent(errand: Errand, pending: Pending) -> bool:
    """Whether the errand has become more urgent than the need was when it was taken."""
    return errand.urgency < pending.urgency
