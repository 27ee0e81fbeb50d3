"""When a row of an exchange's REST is a closed candle: one rule for every reader of rows.

The exchange may change a row for a while after its end. A later row proves that the end is past, not that the values
are final.
"""

from __future__ import annotations

from collections.abc import Iterable

from klinesync.core.timeframe import Timeframe

# Later rows of the same answer that prove a row final.
LATER_ROWS = 2


def is_final(frame: Timeframe, open_time: int, later: int, final_ms: int | None, margin_ms: int) -> bool:
    """Whether a row of an answer is final.

    frame: timeframe of the row.
    open_time: of the row, in UTC seconds.
    later: number of later rows in the same answer.
    final_ms: the earlier of the exchange's clocks, by stamps from before the request, in ms; None where no clock is
        trusted.
    margin_ms: how long after its end the venue may change a row.
    """
    if later >= LATER_ROWS:
        return True
    return final_ms is not None and frame.next(open_time) * 1000 + margin_ms <= final_ms


def final_end(frame: Timeframe, open_times: Iterable[int], final_ms: int | None, margin_ms: int) -> int:
    """The end of the final rows of one answer: rows that open before are final; 0 when no row is.

    open_times: of all rows, in UTC seconds, on the grid or off it. The other arguments are as for `is_final`.
    """
    slots = sorted({frame.floor(time) for time in open_times})
    for later, slot in enumerate(reversed(slots)):
        if is_final(frame, slot, later, final_ms, margin_ms):
            return frame.next(slot)
    return 0
