"""What a venue without frames of its own tells of its time and of its rows: how late rows change, and whether a `Date`
header is right. Pure.
"""

from __future__ import annotations

from collections import deque

# The largest margin that a venue gets for rows that change late, in ms; and how much later than seen a row may change.
MAX_MARGIN_MS = 10_000
MARGIN_STEP_MS = 1_000
# A `Date` that moves this much further than our monotonic clock (or less far) has been set, in ms: a header has whole
# seconds, and answers take a while.
DATE_JUMP_MS = 3_000
# A `Date` has whole seconds: the clock behind it may be ahead by this much more.
DATE_STEP_MS = 1_000
# Answers that bear out a `Date`, and how long (ours) each counts, in seconds.
MAX_ANSWERS = 64
ANSWER_COUNTS_S = 600.0


class VenueMargin:
    """How long after its end a venue may change a row. `ms` is the margin now, `changes` how often a row changed that
    was final by the margin of then."""

    def __init__(self, ms: int) -> None:
        self.ms = ms
        self.changes = 0

    def changed(self, unchanged_ms: int) -> None:
        """A row had other values after it was final. `unchanged_ms`: how long after its end it still had the first."""
        self.changes += 1
        self.ms = max(self.ms, min(MAX_MARGIN_MS, max(self.ms, unchanged_ms) + MARGIN_STEP_MS))


class DateClock:
    """What time it is at least on a venue that tells it by `Date` headers alone.

    A row that has opened shows that it is that late at least. So a header is ahead of the truth by no more than by what
    it is ahead of the newest row, in any answer; the smallest such lead is taken off.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[float, int]] = deque(maxlen=MAX_ANSWERS)  # when, and the lead; leads ascend
        self._last: tuple[float, int] | None = None

    def answered(self, date_ms: int, newest_ms: int | None, now_s: float) -> int | None:
        """An answer has come: its `Date`, and the open time of its newest row (None without rows). The time that it is
        at least; None where nothing bears the header out yet."""
        if self._last is not None:
            elapsed_ms = (now_s - self._last[0]) * 1000
            if abs(date_ms - self._last[1] - elapsed_ms) > DATE_JUMP_MS + elapsed_ms * 0.02:
                self._answers.clear()
        self._last = (now_s, date_ms)
        answers = self._answers
        while answers and now_s - answers[0][0] > ANSWER_COUNTS_S:
            answers.popleft()
        if newest_ms is not None:
            lead_ms = max(0, date_ms + DATE_STEP_MS - newest_ms)
            while answers and answers[-1][1] >= lead_ms:
                answers.pop()
            answers.append((now_s, lead_ms))
        return date_ms - answers[0][1] if answers else None
