"""What makes a row of an exchange's REST a closed candle. One rule, wherever such rows are read.

The exchange may change a row for a while after its end. A later row proves that the end is past, not that the values
are final.
"""

from __future__ import annotations

from collections.abc import Iterable

from klinesync.core.timeframe import Timeframe

# A row that so many later rows of the same answer follow is final.
LATER_ROWS = 2


def is_final(frame: Timeframe, open_time: int, later: int, final_ms: int | None, margin_ms: int) -> bool:
    """Whether a row of an answer is final.

    `open_time`: of the row, in UTC seconds. `later`: how many later rows the same answer has. `final_ms`: the earlier
    of the exchange's clocks, by stamps from before the answer was asked for, in ms; None where no clock proves
    anything. `margin_ms`: how long after its end the venue may change a row.
    """
    if later >= LATER_ROWS:
        return True
    return final_ms is not None and frame.next(open_time) * 1000 + margin_ms <= final_ms


def final_end(frame: Timeframe, open_times: Iterable[int], final_ms: int | None, margin_ms: int) -> int:
    """Before what open time the rows of one answer are final, given the open times of all of them (UTC seconds, on the
    grid or off it); 0 when none is. The other arguments are as for `is_final`."""
    slots = sorted({frame.floor(time) for time in open_times})
    for later, slot in enumerate(reversed(slots)):
        if is_final(frame, slot, later, final_ms, margin_ms):
            return frame.next(slot)
    return 0
