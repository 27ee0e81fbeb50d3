"""VenueMargin, DateClock: what REST alone shows of a venue: how late its rows change, and whether its `Date` headers
are right. Pure.
"""

from __future__ import annotations

from collections import deque

# Largest margin of a venue whose rows change late, and what is added to the latest observed change; in ms.
MAX_MARGIN_MS = 10_000
MARGIN_STEP_MS = 1_000
# Smallest difference between the advance of `Date` and that of our monotonic clock, in ms, that means that the venue's
# clock was set: a header has whole seconds, and answers have latency.
DATE_JUMP_MS = 3_000
# Resolution of a `Date`, in ms: the clock behind it may be ahead of the header by this much.
DATE_STEP_MS = 1_000
# Most answers that confirm a `Date`, and how long each counts, in our seconds.
MAX_ANSWERS = 64
ANSWER_COUNTS_S = 600.0


class VenueMargin:
    """How long after its end a venue may change a row.

    ms: the present margin, in ms.
    changes: number of rows that changed after they were final by the margin at that time.
    """

    def __init__(self, ms: int) -> None:
        self.ms = ms
        self.changes = 0

    def changed(self, unchanged_ms: int) -> None:
        """A row changed after it was final; raises the margin. `unchanged_ms`: the latest time after its end, in ms, at
        which it was seen with its first values."""
        self.changes += 1
        self.ms = max(self.ms, min(MAX_MARGIN_MS, max(self.ms, unchanged_ms) + MARGIN_STEP_MS))


class DateClock:
    """A lower bound of the time of a venue that shows it only in `Date` headers.

    The time is at least the open time of the newest row. So a header cannot be ahead of the true time by more than it
    is ahead of the newest row, in any answer; the smallest such lead is subtracted.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[float, int]] = deque(maxlen=MAX_ANSWERS)  # when, and the lead; leads ascend
        self._last: tuple[float, int] | None = None

    def answered(self, date_ms: int, newest_ms: int | None, now_s: float) -> int | None:
        """An answer has arrived.

        date_ms: its `Date`, in UTC ms.
        newest_ms: open time of its newest row, in UTC ms; None without rows.
        now_s: monotonic seconds.

        Returns the lower bound of the venue's time, in UTC ms; None while no answer with rows confirms the header.
        """
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
