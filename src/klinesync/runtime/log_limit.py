"""LogLimit: a rate limit for repeated log lines, which counts the suppressed ones."""

from __future__ import annotations

from collections.abc import Hashable

# Most keys that have a limit of their own; further keys share one.
MAX_KEYS = 1000


class LogLimit:
    """At most one line in `per_s` seconds for each key, and for all keys together at most `MAX_KEYS` and one.

    Pure: `now_s` is monotonic time in seconds and never goes back.
    """

    __slots__ = ("_last", "_others", "_per_s")

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        # By key, in the order of the last lines: time of the last line, and the number of suppressed lines since.
        self._last: dict[Hashable, tuple[float, int]] = {}
        self._others = (float("-inf"), 0)

    def allow(self, key: Hashable, now_s: float) -> int | None:
        """The number of suppressed lines of `key` since the last written one; None: suppress this line too."""
        last = self._last.get(key)
        if last is None and not self._make_room(now_s):
            at_s, suppressed = self._others
            fresh = now_s - at_s < self._per_s
            self._others = (at_s, suppressed + 1) if fresh else (now_s, 0)
            return None if fresh else suppressed
        at_s, suppressed = last or (float("-inf"), 0)
        if now_s - at_s < self._per_s:
            self._last[key] = (at_s, suppressed + 1)
            return None
        self._last.pop(key, None)  # so that it moves to the end
        self._last[key] = (now_s, 0)
        return suppressed

    def _make_room(self, now_s: float) -> bool:
        """Remove the key with the oldest last line, unless that line is younger than `per_s`."""
        if len(self._last) < MAX_KEYS:
            return True
        oldest = next(iter(self._last))
        if now_s - self._last[oldest][0] < self._per_s:
            return False
        del self._last[oldest]
        return True
