"""The events of gaps, corrections and readings of history: their names, and sentences that people can use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.events import EventName
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.spans import Span, without
from klinesync.core.timeframe import Timeframe
from klinesync.storage.records import Corrected

# Holes of one transaction that are told one by one; the rest is counted. A file may bring thousands.
MAX_HOLES_TOLD = 20
# Readings that go on all the time are told from so many candles on: a tail is read after each lost connection.
ROUTINE_CANDLES = 100
# Reasons of such readings, as the board names them.
ROUTINE = frozenset({"tail", "read"})

_LEFT_ALONE = re.compile(r"is (?:in trouble and is )?asked again in \d+ s")
_OPEN = (GapState.UNKNOWN, GapState.HEALING)


class Named(NamedTuple):
    """An event's name, and its sentence."""

    event: EventName
    detail: str


def span_text(timeframe: Timeframe, span: Span) -> str:
    """The candles that open in `span`: `10 candles, 2026-11-30 08:00 UTC to 2026-11-30 08:09 UTC`, first and last."""
    candles = timeframe.count(*span)
    if candles <= 1:
        return f"the candle of {date_text(span.start)}"
    return f"{candles} candles, {date_text(span.start)} to {date_text(timeframe.shift(span.end, -1))}"


def gap_events(timeframe: Timeframe, changes: Sequence[GapChange]) -> list[Named]:
    """What the changes of one transaction come to: holes that were declared, filled, confirmed empty or lost. A hole
    that was declared and settled at once was settled. That somebody reads a hole is no event here."""
    before, after = _net(changes)
    was, is_ = [gap.span for gap in before], [gap.span for gap in after]
    came = [Named("gap.filled", f"{span_text(timeframe, span)}: filled") for span in without(was, is_)]
    declared = [
        Named("gap.declared", f"{span_text(timeframe, span)}: missing")
        for span in without((gap.span for gap in after if gap.state in _OPEN), was)
    ]
    settled = [
        _settled(timeframe, gap, span)
        for gap in after
        if gap.state not in _OPEN
        for span in without([gap.span], [one.span for one in before if one.state is gap.state])
    ]
    return _told(came) + _told(declared) + _told(settled)


def _settled(timeframe: Timeframe, gap: Gap, span: Span) -> Named:
    if gap.state is GapState.LOST:
        return Named("gap.lost", f"{span_text(timeframe, span)}: lost: {gap.proof}")
    if timeframe.count(*span) <= 1:
        # Without a date: the minutes without trades of a quiet market are one event that is counted.
        return Named("gap.confirmed_empty", f"a single candle is confirmed empty: {gap.proof}")
    return Named("gap.confirmed_empty", f"{span_text(timeframe, span)}: confirmed empty: {gap.proof}")


def _net(changes: Iterable[GapChange]) -> tuple[list[Gap], list[Gap]]:
    """The rows that all changes together delete and insert, each ascending."""
    before: set[Gap] = set()
    after: set[Gap] = set()
    for change in changes:
        for gap in change.delete:
            if gap in after:
                after.remove(gap)
            else:
                before.add(gap)
        after.update(change.insert)
    both = before & after
    return sorted(before - both), sorted(after - both)


def _told(events: list[Named]) -> list[Named]:
    if len(events) <= MAX_HOLES_TOLD:
        return events
    more = len(events) - MAX_HOLES_TOLD
    return [*events[:MAX_HOLES_TOLD], Named(events[0].event, f"and {counted(more, 'more hole')} at once")]


def corrected_event(corrected: Corrected) -> Named:
    """Stored candles got other values."""
    if corrected.candles == 1:
        return Named(
            "candles.corrected", f"the candle of {date_text(corrected.first)}: {corrected.source} has corrected it"
        )
    candles = f"{corrected.candles} candles between {date_text(corrected.first)} and {date_text(corrected.last)}"
    return Named("candles.corrected", f"{candles}: {corrected.source} has corrected them")


def reading_event(timeframe: Timeframe, span: Span, reason: str, candles: int, error: str | None) -> Named | None:
    """History of `span` was read for that reason; None where that is routine.

    candles: how many came.
    error: what was in the way; None when nothing was.
    """
    if error is not None:
        # Without the seconds: each further failure while the exchange is left alone is the same event.
        error = _LEFT_ALONE.sub("is not asked for a while", error)
        return Named("history.failed", f"asked for ({reason}), and not answered: {error}")
    if not candles:
        # Without its end: the next question about the same tail is the same event.
        return Named("history.empty", f"asked for from {date_text(span.start)} on ({reason}): no candle came")
    if reason in ROUTINE and candles < ROUTINE_CANDLES:
        return None
    start, end = date_text(span.start), date_text(timeframe.shift(span.end, -1))
    return Named("history.read", f"asked for from {start} to {end} ({reason}): {counted(candles, 'candle')} came")
