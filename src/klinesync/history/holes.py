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
from klinesync.history import pending as policy
from klinesync.history import pieces
from klinesync.history.pending import Pending, fruitless, no_source, not_answered
from klinesync.history.pieces import Answer, Fetch, Outcome, Piece, Remaining
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import HistoryQueue
from klinesync.history.reading import REST, Progress, Shelf, came, on_board, read_pages
from klinesync.history.requested import RequestedBackfills
from klinesync.pipelines.submissions import Empty

# Why a hole is lost that lies before what the exchange's answers reach back to.
NOT_REACHED = "each answer of an hour showed that the exchange's history does not reach so far back"
# Why a hole is left that no file fills.
NOT_ASKED = "no file has the rest, and the exchange is not asked for history"
# What is said of needs that the store filled meanwhile.
NOT_MISSING = "nothing of it is missing any more"
SHOWN_EMPTY = "the exchange has shown that it has no candle there"
TOO_EARLY = "it lies behind the stored head: no hole yet"


@dataclass(frozen=True, slots=True)
class HoleReader:
    """Reads gaps, older history and explicit backfills.

    ports: the sources, the store, and who is told.
    queue: its memory is told where the exchange has nothing; whether something urgent waits.
    requested: explicit backfills; they have a watch of their own.
    """

    ports: HistoryPorts
    queue: HistoryQueue
    requested: RequestedBackfills

    async def read(self, fetch: Fetch, errand: Errand) -> Outcome:
        """Read what is still missing of a fetch. Raises `StoreError`."""
        series = fetch.series
        stored, ledger = await self.ports.stored(series)
        now = pieces.remaining(fetch, stored, ledger)
        if not now.needs:
            early = self._too_early(fetch, stored)
            return Outcome(early, TOO_EARLY if early else NOT_MISSING)
        watch = self.requested.watch_of(fetch) or self.ports.watch
        span = pieces.piece_of(series.timeframe, now).span
        with on_board(watch, series, span, fetch.needs[-1].need.asked_by) as progress:
            remaining = await self._read(fetch, now, errand, progress)
        answer = came(progress.candles) if progress.candles or remaining else SHOWN_EMPTY
        return Outcome(remaining, progress.trouble or answer, progress.candles)

    async def _read(self, fetch: Fetch, now: Remaining, errand: Errand, progress: Progress) -> list[Pending]:
        """The files, then the exchange; the needs that wait again. Raises `StoreError`."""
        series = fetch.series
        later: list[Pending] = []  # what is not asked for now
        if self.ports.shelves and not all(pending.files_checked for pending in now.needs):
            if not await self._read_files(fetch, now, errand, progress):
                due = [replace(pending, due_s=self.ports.monotonic()) for pending in now.needs]
                return [*due, *self._too_early(fetch, now.stored)]
            stored, ledger = await self.ports.stored(series)
            early = self._too_early(fetch, stored)
            fetch, others = pieces.after_files(fetch, now, stored, ledger)
            later = [*early, *others]
            if fetch.needs:
                now = pieces.remaining(fetch, stored, ledger)
            if not fetch.needs or not now.needs:
                return later
        if not self.ports.asks(series):
            progress.trouble = NOT_ASKED
            stored, _ = await self.ports.stored(series)
            left = [no_source(pending, self.ports.monotonic(), self.ports.rng) for pending in now.needs]
            return [*left, *self._too_early(fetch, stored), *later]
        reachable = await self._give_up(series, fetch.needs)
        if reachable != list(fetch.needs):
            stored, ledger = await self.ports.stored(series)
            later += self._too_early(fetch, stored)
            fetch = Fetch(series, tuple(reachable))
            now = pieces.remaining(fetch, stored, ledger) if reachable else replace(now, needs=())
            if not now.needs:
                return later
        return [*await self._ask(fetch, now, errand, progress), *later]

    async def _ask(self, fetch: Fetch, now: Remaining, errand: Errand, progress: Progress) -> list[Pending]:
        """Ask the exchange for a piece; the needs that wait again. Raises `StoreError`."""
        series = fetch.series
        piece = pieces.piece_of(series.timeframe, now)
        asked = progress.part(piece.span.start)
        try:
            await self._read_piece(series, piece, now, errand, asked)
        except NotListed as error:
            progress.trouble = str(error)
            self.ports.warn("history.not_listed", series, "its gaps are left as they are", error=error)
            # Nobody has anything of it, unless it is listed again, or the list was wrong.
            waiting = [pending for pending in now.needs if not pending.requested]
            return [fruitless(pending, self.ports.monotonic(), self.ports.rng) for pending in waiting]
        except UpstreamError as error:
            progress.trouble = str(error)
            self.ports.warn("history.gap_failed", series, "its gaps cannot be read", error=error)
            left = self._after_error(now.needs, error, fruitful=asked.candles > 0)
            left = await self._give_up(series, left)
            return left + self._too_early(fetch, now.stored)
        stored, ledger = await self.ports.stored(series)
        answer = Answer(asked.reached, None if asked.came is None else asked.came.start, stored, ledger)
        if (nothing := pieces.nothing_before_first(piece, answer)) is not None:
            self.queue.memory.remember_nothing(series, nothing, self.ports.monotonic())
        left = pieces.left_over(fetch, now, piece, answer, self.ports.monotonic(), self.ports.rng)
        left = await self._give_up(series, left)
        progress.trouble = self._unproven(series, left)
        return left

    def _after_error(self, asked: Sequence[Pending], error: UpstreamError, *, fruitful: bool) -> list[Pending]:
        """The needs after a request that failed. `fruitful`: candles came before that."""
        again_s, now_s = error.retry_after_s or 0.0, self.ports.monotonic()
        needs = [replace(pending, fruitless=0) if fruitful else pending for pending in asked]
        if error.status == WRONG_REQUEST:
            # An exchange may call a question about candles that it keeps no more a wrong one.
            return [fruitless(pending, now_s, self.ports.rng, again_s, out_of_reach=not fruitful) for pending in needs]
        return [not_answered(pending, now_s, self.ports.rng, again_s) for pending in needs]

    async def _read_files(self, fetch: Fetch, now: Remaining, errand: Errand, progress: Progress) -> bool:
        """Read what the files have of the missing needs. False when something urgent waits for the series: then the
        rest comes later. Raises `StoreError`."""
        series = fetch.series
        for shelf in self.ports.shelves:
            stored, ledger = await self.ports.stored(series)
            for pending in now.needs:
                for span in gaps.unsettled(ledger, stored, pending.span):
                    part = part_for(shelf, pending, span, stored, self.ports.now_s(series))
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
        self, series: SeriesId, piece: Piece, now: Remaining, errand: Errand, progress: Progress
    ) -> None:
        """Read a piece from the exchange. Raises `UpstreamError`, `StoreError`."""
        older = now.stored is not None and piece.span.end == now.stored.start
        newest_first = older and piece.most is None

        def enough() -> bool:
            full = piece.most is not None and progress.reached > piece.span.start and progress.candles >= piece.most
            deep = now.needs[0].urgency is Urgency.DEEP
            return full or (deep and not newest_first and self.queue.waits_urgently(series))

        whole = await read_pages(
            self.ports.history(series, piece.around.start, errand, piece.around.end),
            partial(self._write, series, REST, now.needs[0]),
            progress,
            newest_first=newest_first,
            enough=enough,
        )
        if whole:
            progress.reached = piece.span.end

    def _too_early(self, fetch: Fetch, stored: Span | None) -> list[Pending]:
        """The needs of the fetch that lie behind the stored head: they wait."""
        return pieces.too_early(fetch, stored, self.ports.monotonic(), self.ports.rng)

    async def _write(self, series: SeriesId, source: str, pending: Pending, page: HistoryPage) -> None:
        await self.ports.pipeline.submit(series, page.candles, source, Empty(page.empty, page.proof))
        await self.requested.mark_rest(pending)

    async def _give_up(self, series: SeriesId, needs: Sequence[Pending]) -> list[Pending]:
        """The needs that may still be had. The part of the others between stored candles is declared lost. Raises
        `StoreError`."""
        now_s, reach = self.ports.monotonic(), self.ports.reach(series)
        kept = [pending for pending in needs if not policy.is_lost(pending, now_s)]
        lost = [(pending.span, NOT_REACHED) for pending in needs if pending not in kept]
        if reach is not None:
            lost += [(pending.span, reach.sentence) for pending in kept if pending.span.start < reach.oldest]
            lost = [(Span(span.start, max(span.start, min(span.end, reach.oldest))), why) for span, why in lost]
            kept = policy.within_reach(kept, reach.oldest)
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

    def _unproven(self, series: SeriesId, left: Sequence[Pending]) -> str | None:
        """A sentence about what the answer neither filled nor showed empty; None when there is nothing of the kind."""
        unproven = [pending for pending in left if pending.fruitless]
        if not unproven:
            return None
        missing = candle_count(series.timeframe, [pending.span for pending in unproven])
        first = date_text(unproven[0].span.start)
        sentence = f"the exchange neither brings {missing} candles from {first} on nor shows that it has none"
        self.ports.warn("history.unproven", series, sentence, span=unproven[0].span)
        return sentence


def part_for(shelf: Shelf, pending: Pending, span: Span, stored: Span | None, now_s: float) -> Span | None:
    """The part of the missing `span` that is looked for in these files."""
    frame = pending.series.timeframe
    span = Span(span.start, max(span.start, min(span.end, frame.floor(int(now_s)))))
    most = count = frame.count(*span)
    if not pending.requested:
        if shelf.gap_most is not None:
            most = min(most, shelf.gap_most)
        if stored is not None and span.end == stored.start:
            most = min(most, pieces.PIECE_CANDLES)  # it is held until all of it is there
    if count < shelf.least_candles or most <= 0:
        return None
    return span if most == count else Span(frame.shift(span.end, -most), span.end)


def _is_more_urgent(errand: Errand, pending: Pending) -> bool:
    """Whether the series is wanted more urgently than when the need was taken."""
    return errand.urgency < pending.urgency
