"""Pending: a need that waits in the queue, and the one retry policy. Pure: times are monotonic seconds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Urgency
from klinesync.history.missing import Need, Reason

# Before a need is asked for again whose answer brought nothing, or failed.
RETRY = Backoff(initial_s=15.0, most_s=6 * 3600.0, jitter=0.25)
# After so many fruitless attempts nobody is said to be at work on a need, though it is still asked for now and then.
PATIENCE = 3
# Tails and native candles are asked for again for as long as somebody reads the series, and so many seconds longer.
WANTED_S = 900.0
# For so long, in seconds, each answer must have shown that the exchange's history does not reach back to a hole, before
# the hole is lost: an exchange in trouble may give the newest rows alone for some minutes.
LOST_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A need that waits, or is being read.

    need: what is missing. Its urgency is `DEEP`, or more urgent until it was asked for once.
    between_stored: it was found to lie between stored candles; should retention reach it, it is forgotten.
    oldest_page_first: its oldest page is asked for first; None: if it lies between stored candles.
    attempts: how often it was asked for.
    fruitless: how often in a row without an answer that fills it or shows that it is empty.
    due_s: it is not asked for before.
    wanted_until_s: it is not asked for again after that time, unless somebody wants it anew before.
    files_checked: the files were looked into.
    out_of_reach_since_s: since when each answer has shown that the exchange's history does not reach so far back; None
        when the last answer did not.
    last_answer: what came of the newest attempt, a sentence; None before the first.
    """

    need: Need
    between_stored: bool = False
    oldest_page_first: bool | None = None
    attempts: int = 0
    fruitless: int = 0
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
        """Whether it belongs to an explicit backfill: read oldest part first, and behind the stored head too."""
        return self.need.reason is Reason.REQUESTED

    @property
    def urgent(self) -> bool:
        return self.need.urgency < Urgency.DEEP

    def over(self, span: Span) -> Pending:
        """The same about another span."""
        return replace(self, need=replace(self.need, span=span))

    def at_once(self, span: Span, now_s: float, *, oldest_page_first: bool | None = None) -> Pending:
        """A part of it that the newest request did not ask for, or that its answer brings nearer: due now."""
        return replace(
            self.over(span), oldest_page_first=oldest_page_first, fruitless=0, out_of_reach_since_s=None, due_s=now_s
        )


def fruitless(
    pending: Pending, now_s: float, rng: random.Random, at_least_s: float = 0.0, *, out_of_reach: bool = False
) -> Pending:
    """The need, to be asked for again after the next delay of the policy.

    at_least_s: seconds for which the exchange wants to be left alone.
    out_of_reach: the answer shows that the exchange's history does not reach back to the need.
    """
    since_s = None
    if out_of_reach:
        since_s = now_s if pending.out_of_reach_since_s is None else pending.out_of_reach_since_s
    due_s = now_s + max(at_least_s, RETRY.delay_s(pending.fruitless, rng))
    count = pending.fruitless + 1
    if pending.reason is Reason.TAIL:  # the next candle may come at any time
        count = min(count, PATIENCE)
    return replace(pending, fruitless=count, due_s=due_s, out_of_reach_since_s=since_s)


def not_answered(pending: Pending, now_s: float, rng: random.Random, at_least_s: float) -> Pending:
    """The need, while the exchange gives no answer at all: its delay grows no further than while somebody is said to be
    at work on it, so that it is asked for soon after the exchange's return. `at_least_s`: as for `fruitless`."""
    again = fruitless(pending, now_s, rng, at_least_s)
    return replace(again, fruitless=min(again.fruitless, PATIENCE), files_checked=False)


def no_source(pending: Pending, now_s: float, rng: random.Random) -> Pending:
    """The need, of which files have nothing and the exchange is not asked: nobody is at work on it, and the files are
    looked into again after the next delay."""
    again = fruitless(pending, now_s, rng)
    return replace(again, fruitless=max(again.fruitless, PATIENCE), files_checked=False)


def is_lost(pending: Pending, now_s: float) -> bool:
    """Whether the exchange has shown for long enough that its history does not reach back to the need."""
    since_s = pending.out_of_reach_since_s
    return since_s is not None and pending.fruitless >= PATIENCE and now_s - since_s >= LOST_AFTER_S


def within_reach(pending: Iterable[Pending], oldest: int) -> list[Pending]:
    """The parts at or behind the `oldest` open time that the exchange still gives."""
    return [part.over(Span(max(part.span.start, oldest), part.span.end)) for part in pending if part.span.end > oldest]
