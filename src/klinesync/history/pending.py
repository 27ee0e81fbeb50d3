"""Pending needs, and the retry policy of history. Pure: times are monotonic seconds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Urgency
from klinesync.history.missing import Need, Reason


@dataclass(frozen=True, slots=True)
class Pending:
    """A need that waits, or is in flight.

    need: what is missing. Its urgency falls to `DEEP` after the first attempt.
    between_stored: the need lies between stored candles; dropped once retention trims that part of the series.
    oldest_page_first: whether the first request asks for the oldest page; None: as `between_stored`.
    attempts: requests so far.
    fruitless_attempts: consecutive attempts that neither filled the need nor proved that the exchange has nothing.
    due_s: earliest time of the next attempt.
    wanted_until_s: no retry after that time, unless the series is read again before, or a client follows it.
    files_checked: the history files have been searched.
    out_of_reach_since_s: since when every answer has shown that the exchange's history does not reach back to the
        need; None when the newest answer did not show this.
    last_answer: the result of the newest attempt, a sentence; None before the first.
    """

    need: Need
    between_stored: bool = False
    oldest_page_first: bool | None = None
    attempts: int = 0
    fruitless_attempts: int = 0
    due_s: float = float("-inf")
    wanted_until_s: float = float("inf")
    files_checked: bool = False
    out_of_reach_since_s: float | None = None
    last_answer: str | None = None

    @property
    def series(self) -> SeriesId:
        return self.need.series

    @property
    def span(self) -> Span:
        return self.need.span

    @property
    def reason(self) -> Reason:
        return self.need.reason

    @property
    def urgency(self) -> Urgency:
        return self.need.urgency

    @property
    def requested(self) -> bool:
        """Whether the need belongs to an explicit backfill: read oldest part first, also behind the stored head."""
        return self.need.reason is Reason.REQUESTED

    @property
    def urgent(self) -> bool:
        return self.need.urgency < Urgency.DEEP

    def with_span(self, span: Span) -> Pending:
        """The same need with another span."""
        return replace(self, need=replace(self.need, span=span))

    def due_now(self, span: Span, now_s: float, *, oldest_page_first: bool | None = None) -> Pending:
        """The part `span` of the need, due at once and without failed attempts.

        span: a part that the newest request did not cover, or that its answer brings within reach.
        now_s: monotonic seconds.
        oldest_page_first: see `Pending`; None by default.
        """
        return replace(
            self.with_span(span),
            oldest_page_first=oldest_page_first,
            fruitless_attempts=0,
            out_of_reach_since_s=None,
            due_s=now_s,
        )


# Retry delays of history.
HISTORY_BACKOFF = Backoff(initial_s=15.0, most_s=6 * 3600.0, jitter=0.25)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When history that could not be read is requested again.

    backoff: retry delays of a need whose request failed or brought nothing.
    stalled_after: consecutive fruitless attempts after which a need counts as stalled: still retried, but no longer
        reported as healing.
    wanted_s: seconds after the last read of a series for which its tail and native candles are still retried; while a
        client follows the series, they are retried on.
    lost_after_s: seconds for which every answer must have shown that the exchange's history does not reach back to a
        gap, before the gap is declared lost: an exchange in trouble may answer with its newest rows alone for some
        minutes.
    """

    backoff: Backoff = HISTORY_BACKOFF
    stalled_after: int = 3
    wanted_s: float = 900.0
    lost_after_s: float = 3600.0

    def after_fruitless(
        self, pending: Pending, now_s: float, rng: random.Random, at_least_s: float = 0.0, *, out_of_reach: bool = False
    ) -> Pending:
        """The need after a fruitless attempt, due after the next delay of `backoff`.

        pending: the need that was asked for.
        now_s: monotonic seconds.
        rng: jitter of the delay.
        at_least_s: shortest delay in seconds, as the exchange asked for; 0 by default.
        out_of_reach: the answer shows that the exchange's history does not reach back to the need.
        """
        since_s = None
        if out_of_reach:
            since_s = now_s if pending.out_of_reach_since_s is None else pending.out_of_reach_since_s
        due_s = now_s + max(at_least_s, self.backoff.delay_s(pending.fruitless_attempts, rng))
        count = pending.fruitless_attempts + 1
        if pending.reason is Reason.TAIL:  # the next candle may come at any time
            count = min(count, self.stalled_after)
        return replace(pending, fruitless_attempts=count, due_s=due_s, out_of_reach_since_s=since_s)

    def after_no_answer(self, pending: Pending, now_s: float, rng: random.Random, at_least_s: float) -> Pending:
        """The need while the exchange does not answer: its delay stays below that of a stalled need, so that the need
        is retried soon after the exchange's return. Parameters as for `after_fruitless`."""
        retry = self.after_fruitless(pending, now_s, rng, at_least_s)
        return replace(retry, fruitless_attempts=min(retry.fruitless_attempts, self.stalled_after), files_checked=False)

    def after_no_source(self, pending: Pending, now_s: float, rng: random.Random) -> Pending:
        """The need when the files have nothing and the exchange may not be asked: stalled, and the files are searched
        again after the next delay. Parameters as for `after_fruitless`."""
        retry = self.after_fruitless(pending, now_s, rng)
        return replace(retry, fruitless_attempts=max(retry.fruitless_attempts, self.stalled_after), files_checked=False)

    def is_lost(self, pending: Pending, now_s: float) -> bool:
        """Whether the exchange has shown for `lost_after_s` that its history does not reach back to the need."""
        since_s = pending.out_of_reach_since_s
        if since_s is None or pending.fruitless_attempts < self.stalled_after:
            return False
        return now_s - since_s >= self.lost_after_s


USUAL_RETRIES = RetryPolicy()


def within_reach(pending: Iterable[Pending], oldest: int) -> list[Pending]:
    """The parts of the needs from open time `oldest` on, the oldest that the exchange still gives."""
    return [
        need.with_span(Span(max(need.span.start, oldest), need.span.end)) for need in pending if need.span.end > oldest
    ]
