"""WholeLists: whether an answer is a whole list of a market's symbols, or a part that must replace nothing. Pure.

An exchange in trouble answers with an empty list, or with a part of one: a page is missing, or one of several requests
brought `{}`. Time is an argument, in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from klinesync.core.backoff import Backoff

# A list that lacks more than this share of the symbols of the last whole one is shrunken, and so many may always be
# gone. Exchanges delist a few symbols a day, seldom two in a hundred at once; a page or market that is missing is a
# fifth and more.
MOST_GONE_SHARE = 0.1
MOST_GONE = 5
# Backoff of the request for a list after an answer that is no whole list: while no list is known, and while an older
# one is.
FIRST_LIST = Backoff(initial_s=5.0, most_s=30.0)
NEXT_LIST = Backoff(initial_s=5.0, most_s=300.0)


@dataclass(frozen=True, slots=True)
class ListTimings:
    """When lists of symbols are believed, and requested again.

    first, next: backoff of the request for a list after an answer that is no whole list: while no list is known, and
        while an older one is.
    believed_after_s: time after which a shrunken list that was told all along is whole, in monotonic seconds: the
        exchange has really closed so many symbols.
    """

    first: Backoff = FIRST_LIST
    next: Backoff = NEXT_LIST
    believed_after_s: float = 3600.0


USUAL_LISTS = ListTimings()


@dataclass(slots=True)
class WholeLists:
    """The lists of one market. `known`: the symbols of the last whole list; `timings`: when lists are believed."""

    known: frozenset[str] = frozenset()
    timings: ListTimings = USUAL_LISTS
    _failures: int = 0
    _ask_at_s: float = float("-inf")
    _shrunken: frozenset[str] | None = None
    _shrunken_since_s: float = 0.0

    def kept(self, symbols: AbstractSet[str]) -> None:
        """A whole list from before the start of the process, which counts until there is a newer one."""
        self.known = self.known or frozenset(symbols)

    def refusal(self, symbols: AbstractSet[str], now_s: float, *, expected: bool = True) -> str | None:
        """Why the answer is no whole list, as the end of a sentence; None when it is whole, and `known` from now on.

        symbols: what it lists.
        now_s: the present moment.
        expected: whether the market should have symbols, so that none at all is trouble.
        """
        gone = len(self.known - symbols)
        if gone <= max(MOST_GONE, int(MOST_GONE_SHARE * len(self.known))) and (symbols or not (self.known or expected)):
            self._believe(symbols)
            return None
        if self._shrunken is None or not _alike(self._shrunken, symbols):
            self._shrunken_since_s = now_s
        self._shrunken = frozenset(symbols)
        if symbols and now_s - self._shrunken_since_s >= self.timings.believed_after_s:
            self._believe(symbols)
            return None
        self.failed(now_s)
        if not symbols:
            return "lists nothing" + (f", where {len(self.known)} symbols were listed" if self.known else "")
        return f"lists {len(symbols)} symbols, and {gone} of the {len(self.known)} that it listed before are missing"

    def failed(self, now_s: float) -> None:
        """The list was asked for, and no whole one came."""
        backoff = self.timings.next if self.known else self.timings.first
        self._ask_at_s = now_s + backoff.delay_s(self._failures)
        self._failures += 1

    def pause_s(self, now_s: float) -> float:
        """For how long the list is not asked for."""
        return max(0.0, self._ask_at_s - now_s)

    def _believe(self, symbols: AbstractSet[str]) -> None:
        self.known = frozenset(symbols)
        self._failures, self._ask_at_s, self._shrunken = 0, float("-inf"), None


def _alike(one: AbstractSet[str], other: AbstractSet[str]) -> bool:
    """Whether two answers tell the same story: a few symbols apart."""
    return len(one ^ other) <= max(MOST_GONE, int(MOST_GONE_SHARE * max(len(one), len(other))))
