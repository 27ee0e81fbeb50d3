"""Names and sentences of the events of gaps, corrections and readings of history. Pure."""

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
from klinesync.storage.records import Corrected, TakenOut

# Most events of one kind for the gaps of a transaction; further gaps are counted. A file may close thousands.
MAX_GAP_EVENTS = 20
# Fewest candles of a routine reading that make an event: a tail is read after each lost connection.
ROUTINE_CANDLES = 100
# Reasons of routine readings.
ROUTINE = frozenset({"tail", "read"})

_COOLDOWN = re.compile(r"is (?:in trouble and is )?asked again in \d+ s")
_OPEN = (GapState.UNKNOWN, GapState.HEALING)


class Named(NamedTuple):
    """The name and the sentence of an event."""

    event: EventName
    detail: str


def span_text(timeframe: Timeframe, span: Span) -> str:
    """The number of candles in `span`, and the first and the last: `10 candles, 2026-11-30 08:00 UTC to 2026-11-30
    08:09 UTC`."""
    candles = timeframe.count(*span)
    if candles <= 1:
        return f"the candle of {date_text(span.start)}"
    return f"{candles} candles, {date_text(span.start)} to {date_text(timeframe.shift(span.end, -1))}"


def gap_events(timeframe: Timeframe, changes: Sequence[GapChange]) -> list[Named]:
    """The events of one transaction: gaps that were declared, filled, confirmed empty or lost. A gap that was declared
    and settled in the transaction makes one event. The state `healing` makes no event."""
    before, after = _net(changes)
    spans_before, spans_after = [gap.span for gap in before], [gap.span for gap in after]
    filled = [
        Named("gap.filled", f"{span_text(timeframe, span)}: filled") for span in without(spans_before, spans_after)
    ]
    declared = [
        Named("gap.declared", f"{span_text(timeframe, span)}: missing")
        for span in without((gap.span for gap in after if gap.state in _OPEN), spans_before)
    ]
    settled = [
        _settled(timeframe, gap, span)
        for gap in after
        if gap.state not in _OPEN
        for span in without([gap.span], [old.span for old in before if old.state is gap.state])
    ]
    return _limited(filled) + _limited(declared) + _limited(settled)


def _settled(timeframe: Timeframe, gap: Gap, span: Span) -> Named:
    if gap.state is GapState.LOST:
        return Named("gap.lost", f"{span_text(timeframe, span)}: lost: {gap.proof}")
    if timeframe.count(*span) <= 1:
        # Without a date, so that the minutes without trades of a quiet market are repetitions of one event.
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


def _limited(events: list[Named]) -> list[Named]:
    if len(events) <= MAX_GAP_EVENTS:
        return events
    more = len(events) - MAX_GAP_EVENTS
    return [*events[:MAX_GAP_EVENTS], Named(events[0].event, f"and {counted(more, 'more hole')} at once")]


def corrected_event(corrected: Corrected) -> Named:
    """The event of stored candles whose values were corrected."""
    if corrected.candles == 1:
        return Named(
            "candles.corrected", f"the candle of {date_text(corrected.first)}: {corrected.source} has corrected it"
        )
    candles = f"{corrected.candles} candles between {date_text(corrected.first)} and {date_text(corrected.last)}"
    return Named("candles.corrected", f"{candles}: {corrected.source} has corrected them")


def taken_out_event(timeframe: Timeframe, taken: TakenOut) -> Named:
    """The event of damaged candles that were taken out of a series."""
    return Named(
        "store.quarantined",
        f"{span_text(timeframe, taken.span)}: damaged in the store ({taken.why}); they are kept in quarantine, "
        "and fetched or computed again",
    )


def reading_event(timeframe: Timeframe, span: Span, reason: str, candles: int, error: str | None) -> Named | None:
    """The event of a reading of history; None for a routine reading.

    timeframe: of the series.
    span: open times that were read.
    reason: of the reading.
    candles: number of candles that came.
    error: why the reading failed, a sentence; None when it did not.
    """
    if error is not None:
        # Without the seconds, so that further failures during the same cooldown are repetitions of one event.
        error = _COOLDOWN.sub("is not asked for a while", error)
        return Named("history.failed", f"asked for ({reason}), and not answered: {error}")
    if not candles:
        # Without the end, so that the next request for the same tail is a repetition of one event.
        return Named("history.empty", f"asked for from {date_text(span.start)} on ({reason}): no candle came")
    if reason in ROUTINE and candles < ROUTINE_CANDLES:
        return None
    start, end = date_text(span.start), date_text(timeframe.shift(span.end, -1))
    return Named("history.read", f"asked for from {start} to {end} ({reason}): {counted(candles, 'candle')} came")
