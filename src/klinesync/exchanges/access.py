"""Access: the backoff of all requests to one market that refuses this service, or that fails. Pure.

All requests of a market share the backoff: each kind of REST request (`time`, `klines` …) and the WebSocket handshakes.

- While a market refuses (401, 403, 451), all kinds together make one request per `REFUSED.most_s` in the end. A kind
  that is refused alone, while others are served, is held alone.
- While REST fails (no answer, a server error, an answer that cannot be understood), one request per `TROUBLE.most_s` is
  made in the end, from the second consecutive failure on. Handshakes are not held for it: `Comeback` paces them.

Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from klinesync.core.backoff import Backoff

# HTTP statuses by which an exchange refuses this service: no key, forbidden, legal reasons.
REFUSALS = frozenset({401, 403, 451})
# HTTP statuses for a wrong request, or for too many requests: the market itself is well.
WELL = frozenset({400, 418, 429})
# HTTP statuses for a wrong request: requests of that kind are served.
CALLED_WRONG = frozenset({400, 404})
REFUSED = Backoff(initial_s=2.0, most_s=30.0)
# No more than `comeback.PROBE_MOST_S`: an exchange that returns is noticed as soon by REST as by handshakes.
TROUBLE = Backoff(initial_s=0.5, most_s=5.0)
# Consecutive failures that cause no backoff.
HARMLESS = 1
# Seconds in which the kind that was refused last leaves the next request to another waiting kind.
YIELD_S = 1.0
# The kind of WebSocket handshakes.
HANDSHAKE = "handshake"


@dataclass(slots=True)
class _Hold:
    """Failures in a row beyond the `harmless` ones, and until when the next request waits. A request that was sent
    before the last failure was counted says nothing new when it fails too."""

    backoff: Backoff
    harmless: int
    failures: int = 0
    counted_s: float = float("-inf")
    until_s: float = float("-inf")

    @property
    def lasts(self) -> bool:
        return self.failures > self.harmless

    def sent(self, now_s: float, yield_s: float = 0.0) -> None:
        if self.lasts:
            self.until_s = now_s + self.backoff.delay_s(self.failures - self.harmless - 1) + yield_s

    def failed(self, sent_s: float, now_s: float, yield_s: float = 0.0) -> None:
        if sent_s >= self.counted_s:
            self.failures += 1
            self.counted_s = now_s
            self.sent(now_s, yield_s)

    def served(self) -> None:
        self.failures = 0
        self.until_s = float("-inf")


def _refused(harmless: int) -> _Hold:
    return _Hold(REFUSED, harmless)


def _in_trouble() -> _Hold:
    return _Hold(TROUBLE, HARMLESS)


@dataclass(slots=True)
class Access:
    """The access to one market.

    why: a sentence about the newest failure.
    status: HTTP status of the newest failure, 0 without an answer.
    """

    why: str = ""
    status: int = 0
    _refused_all: _Hold = field(default_factory=lambda: _refused(HARMLESS))
    _refused: dict[str, _Hold] = field(default_factory=dict)  # by kind
    _troubled_all: _Hold = field(default_factory=_in_trouble)
    _troubled: dict[str, _Hold] = field(default_factory=dict)

    def held_s(self, kind: str, now_s: float) -> float:
        """Remaining backoff of requests of a kind, in seconds; 0 without one."""
        until_s = self._refused_all.until_s
        if (own := self._refused.get(kind)) is not None:
            until_s = max(until_s, own.until_s)
        if kind != HANDSHAKE:
            until_s = max(until_s, self._troubled_all.until_s)
            if (own := self._troubled.get(kind)) is not None:
                until_s = max(until_s, own.until_s)
        return max(0.0, until_s - now_s)

    def sent(self, kind: str, now_s: float) -> None:
        """A request is sent. During a backoff the next one waits for a whole interval."""
        self._refused_all.sent(now_s)
        if (own := self._refused.get(kind)) is not None:
            own.sent(now_s, self._yield_s)
        if kind != HANDSHAKE:
            self._troubled_all.sent(now_s)
            if (own := self._troubled.get(kind)) is not None:
                own.sent(now_s)

    def served(self, kind: str) -> None:
        """A request was answered, if only as a wrong one: the market serves that kind."""
        self._refused_all.served()
        self._refused.pop(kind, None)
        if kind != HANDSHAKE:
            self._troubled_all.served()
            self._troubled.pop(kind, None)

    def failed(self, kind: str, status: int, why: str, sent_s: float, now_s: float) -> None:
        """A request was refused, or failed.

        kind: of the request.
        status: HTTP status, 0 without an answer, 200 for an answer that cannot be understood.
        why: a sentence.
        sent_s: when the request went.
        now_s: the present moment.
        """
        if status in WELL:
            return
        self.why, self.status = why, status
        if status in REFUSALS:
            self._refused_all.failed(sent_s, now_s)
            self._refused.setdefault(kind, _refused(0)).failed(sent_s, now_s, self._yield_s)
        elif kind != HANDSHAKE:
            self._troubled_all.failed(sent_s, now_s)
            self._troubled.setdefault(kind, _in_trouble()).failed(sent_s, now_s)

    @property
    def _yield_s(self) -> float:
        return YIELD_S if self._refused_all.lasts else 0.0
