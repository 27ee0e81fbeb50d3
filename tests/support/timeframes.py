"""The timeframes that property tests draw: the fifteen of exchanges, and all other admitted ones."""

from __future__ import annotations

from hypothesis import strategies as st

from klinesync.core.timeframe import DAY_S, Timeframe

KNOWN = tuple(Timeframe.known.values())
ADMITTED = tuple(Timeframe.admitted.values())
# As many parts of a day as exchanges have timeframes, because most admitted timeframes are multiples of days.
PARTS_OF_A_DAY = tuple(frame for frame in ADMITTED if 0 < frame.step_s < DAY_S)
TIMEFRAMES = st.one_of(st.sampled_from(KNOWN), st.sampled_from(PARTS_OF_A_DAY), st.sampled_from(ADMITTED))
DERIVED_OF_MINUTES = TIMEFRAMES.filter(lambda frame: frame.code != "1m")
