"""LogLimit: what would be logged a thousand times is logged once in a while, with how often it was not."""

from __future__ import annotations

from collections.abc import Hashable

# Of so many things at once it is known when each was logged last; what comes on top of them shares one entry.
MAX_KEYS = 1000


class LogLimit:
    """At most one line in `per_s` seconds for each key, and for all keys together at most `MAX_KEYS` and one.

    Pure: `now_s` is monotonic time in seconds and never goes back.
    """

    __slots__ = ("_kept", "_others", "_per_s")

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        # By key, in the order of their last lines: when that was, and how many were suppressed since.
        self._kept: dict[Hashable, tuple[float, int]] = {}
        self._others = (float("-inf"), 0)

    def allow(self, key: Hashable, now_s: float) -> int | None:
        """How many lines of `key` were suppressed since its last one; None when this one is to be suppressed too."""
        kept = self._kept.get(key)
        if kept is None and not self._make_room(now_s):
            at_s, suppressed = self._others
            fresh = now_s - at_s < self._per_s
            self._others = (at_s, suppressed + 1) if fresh else (now_s, 0)
            return None if fresh else suppressed
        at_s, suppressed = kept or (float("-inf"), 0)
        if now_s - at_s < self._per_s:
            self._kept[key] = (at_s, suppressed + 1)
            return None
        self._kept.pop(key, None)  # so that it moves to the end
        self._kept[key] = (now_s, 0)
        return suppressed

    def _make_room(self, now_s: float) -> bool:
        """Forget the key whose last line is the oldest, unless that is younger than `per_s`."""
        if len(self._kept) < MAX_KEYS:
            return True
        oldest = next(iter(self._kept))
        if now_s - self._kept[oldest][0] < self._per_s:
            return False
        del self._kept[oldest]
        return True
