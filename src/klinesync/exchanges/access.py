"""Access: for how long no request goes to one market that refuses this service, or that is in trouble. Pure.

All requests of a market share it: each kind of REST request (`time`, `klines` …) and the WebSocket handshakes.

- A market that refuses (401, 403, 451) is asked once in `REFUSED.most_s` seconds in the end, by all kinds together. A
  kind that alone is refused, while others are served, is held alone.
- REST that fails (no answer, a server error, an answer that cannot be understood) is asked once in `TROUBLE.most_s`
  seconds in the end, from the second failure in a row on. Handshakes are not held for it: `Comeback` paces them.

Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from klinesync.core.backoff import Backoff

# HTTP statuses by which an exchange refuses this service: no key, forbidden, legal reasons.
REFUSALS = frozenset({401, 403, 451})
# HTTP statuses of answers that call the request wrong, or one too many: the market itself is well.
WELL = frozenset({400, 418, 429})
# HTTP statuses of answers that call the request wrong: that kind of request is served.
CALLED_WRONG = frozenset({400, 404})
REFUSED = Backoff(initial_s=2.0, most_s=30.0)
# No more than `comeback.PROBE_MOST_S`: an exchange that returns is noticed as soon by REST as by handshakes.
TROUBLE = Backoff(initial_s=0.5, most_s=5.0)
# Failures in a row that are taken as bad luck of one request.
HARMLESS = 1
# The kind that was refused last leaves the next request to another kind that waits, for this long, in seconds.
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
        """For how long no request of that kind goes, in seconds; 0 when it may."""
        until_s = self._refused_all.until_s
        if (own := self._refused.get(kind)) is not None:
            until_s = max(until_s, own.until_s)
        if kind != HANDSHAKE:
            until_s = max(until_s, self._troubled_all.until_s)
            if (own := self._troubled.get(kind)) is not None:
                until_s = max(until_s, own.until_s)
        return max(0.0, until_s - now_s)

    def sent(self, kind: str, now_s: float) -> None:
        """A request goes. While trouble lasts the next one waits for a whole interval behind it."""
        self._refused_all.sent(now_s)
        if (own := self._refused.get(kind)) is not None:
            own.sent(now_s, self._yield_s)
        if kind != HANDSHAKE:
            self._troubled_all.sent(now_s)
            if (own := self._troubled.get(kind)) is not None:
                own.sent(now_s)

    def served(self, kind: str) -> None:
        """A request was answered well, or called wrong: the market serves that kind."""
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
