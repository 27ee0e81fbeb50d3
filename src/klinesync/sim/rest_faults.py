"""Faults of REST: which requests are refused, and which klines are shown as they were."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from klinesync.sim.faults import RateLimit, RestError, RestSlow, RestStale, Rule
from klinesync.sim.limits import Refusal, banned, rest_of_minute_s, too_much
from klinesync.sim.tape import Market


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in place of what was asked for."""

    status: int


@dataclass(frozen=True, slots=True)
class Shown:
    """Which moment klines are shown of, and whether the candle that was in progress then is among them."""

    at_ms: int
    open_row: bool


@dataclass(slots=True)
class _Script:
    """How far a rate limit has come on one market."""

    answered: int = 0
    refused: int = 0
    banned_until_ms: int | None = None


@dataclass(slots=True)
class RestFaults:
    """The faults that requests meet; `active` is False without any; no request need be checked then."""

    active: bool = False
    _errors: list[Rule[RestError]] = field(default_factory=list)
    _slow: list[Rule[RestSlow]] = field(default_factory=list)
    _limits: list[Rule[RateLimit]] = field(default_factory=list)
    _stale: list[Rule[RestStale]] = field(default_factory=list)
    _scripts: dict[tuple[int, Market], _Script] = field(default_factory=dict)

    def fail(self, rule: Rule[RestError]) -> None:
        self._errors.append(rule)
        self.active = True

    def slow(self, rule: Rule[RestSlow]) -> None:
        self._slow.append(rule)
        self.active = True

    def limit(self, rule: Rule[RateLimit]) -> None:
        self._limits.append(rule)
        self.active = True

    def lag(self, rule: Rule[RestStale]) -> None:
        self._stale.append(rule)
        self.active = True

    def remove(self, fault_id: int) -> None:
        """Act no longer."""
        self._errors = [rule for rule in self._errors if rule.id != fault_id]
        self._slow = [rule for rule in self._slow if rule.id != fault_id]
        self._limits = [rule for rule in self._limits if rule.id != fault_id]
        self._stale = [rule for rule in self._stale if rule.id != fault_id]
        self._scripts = {key: script for key, script in self._scripts.items() if key[0] != fault_id}
        self.active = bool(self._errors or self._slow or self._limits or self._stale)

    def refuse(self, market: Market, path: str, params: Mapping[str, str], now_ms: int) -> Refusal | Failure | None:
        """What the request gets in place of its answer; None when it is to be answered. Counts it."""
        symbols = _symbols(market, params)
        for limit in self._limits:
            if limit.fault.concerns(market, symbols):
                refusal = self._limited(limit, market, now_ms)
                if refusal is not None:
                    limit.seen += 1
                    return refusal
        for error in self._errors:
            if _meets(error, market, path, symbols):
                error.seen += 1
                return Failure(error.fault.status)
        return None

    def delay(self, market: Market, path: str, params: Mapping[str, str]) -> Rule[RestSlow] | None:
        """The fault that makes the answer to the request late; None when it is in time. Counts it."""
        symbols = _symbols(market, params)
        for rule in self._slow:
            if _meets(rule, market, path, symbols):
                rule.seen += 1
                return rule
        return None

    def is_slow(self, rule: Rule[RestSlow]) -> bool:
        """Whether the fault is still in force."""
        return rule in self._slow

    def shown(self, market: Market, params: Mapping[str, str], now_ms: int) -> Shown | None:
        """Which moment a request for klines is shown; None for the present. Counts it."""
        for rule in self._stale:
            if rule.fault.concerns(market, _symbols(market, params)):
                rule.seen += 1
                return Shown(now_ms - int(rule.fault.delay_s * 1000), rule.fault.open_row)
        return None

    def _limited(self, rule: Rule[RateLimit], market: Market, now_ms: int) -> Refusal | None:
        fault = rule.fault
        script = self._scripts.setdefault((rule.id, market), _Script())
        if script.answered < fault.after:
            script.answered += 1
            return None
        if script.refused < fault.count:
            script.refused += 1
            wait_s = rest_of_minute_s(now_ms) if fault.retry_after_s is None else fault.retry_after_s
            return Refusal(429, wait_s, too_much(market))
        if fault.ban_s is None:
            return None
        if script.banned_until_ms is None:
            script.banned_until_ms = now_ms + int(fault.ban_s * 1000)
        return banned(script.banned_until_ms, now_ms) if now_ms < script.banned_until_ms else None


def _meets(rule: Rule[RestError] | Rule[RestSlow], market: Market, path: str, symbols: list[str]) -> bool:
    fault = rule.fault
    if fault.count is not None and rule.seen >= fault.count:
        return False
    return fault.concerns(market, symbols) and (fault.paths is None or path in fault.paths)


def _symbols(market: Market, params: Mapping[str, str]) -> list[str]:
    """The symbols that a request is about, as far as it says so."""
    names = [params[name] for name in ("symbol", "pair") if name in params]
    with suppress(msgspec.DecodeError):  # a bad request is about nothing
        names += msgspec.json.decode(params.get("symbols", "[]"), type=list[str])
    return [name.upper() for name in names] if market == "futures" else names
