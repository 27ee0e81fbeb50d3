"""The faults in force: what they are, and where each of them acts."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import msgspec

from klinesync.sim.exchange import SimExchange
from klinesync.sim.faults import (
    BadFault,
    ClockSkew,
    Delist,
    Disconnect,
    DropClosed,
    Duplicate,
    Fault,
    LateClosed,
    Malformed,
    Outage,
    RateLimit,
    RefuseConnect,
    Reorder,
    RestError,
    RestSlow,
    RestStale,
    Revise,
    Rule,
    ServerShutdown,
    Silent,
    UnknownFault,
    Unlisted,
    checked,
    kind_of,
)
from klinesync.sim.feed import symbol_of
from klinesync.sim.market_faults import MarketFaults
from klinesync.sim.rest_faults import RestFaults
from klinesync.sim.session import Route
from klinesync.sim.streams import Listener, Streams
from klinesync.sim.tape import Market

MAX_FAULTS = 1000  # in force or spent; spent ones are forgotten, the oldest first, when there is no room
_MARKETS: tuple[Market, ...] = ("spot", "futures")
_GOING_AWAY = 1001


class FaultBoard:
    """Adds and lifts faults, and counts how often each kind has acted. Time is an argument."""

    def __init__(self, exchange: SimExchange, streams: Streams, rest: RestFaults) -> None:
        self._exchange = exchange
        self._streams = streams
        self._rest = rest
        self._market = MarketFaults(exchange, streams)
        self._rules: dict[int, Rule[Fault]] = {}
        self._spent: set[int] = set()
        self._seen_before: Counter[str] = Counter()
        self._refusing: list[Rule[RefuseConnect]] = []
        self._last_id = 0

    def add(self, fault: Fault, now_ms: int, *, at_start: bool = False) -> int:
        """Put the fault in force; its id. Raises `BadFault`."""
        fault = checked(fault)
        self._check_symbols(fault)
        if isinstance(fault, ClockSkew) and not at_start:
            raise BadFault("the fault is refused: clock_skew can be in force from the start only")
        self._make_room()
        self._last_id += 1
        fault_id = self._last_id
        match fault:
            case Silent():
                silent = Rule(fault_id, fault)
                self._streams.faults.silence(silent, self._streams.next_serial)
                rule: Rule[Fault] = silent
            case DropClosed() | LateClosed() | Duplicate() | Reorder() | Malformed():
                acting = Rule(fault_id, fault)
                self._streams.faults.add(acting)
                rule = acting
            case RestError():
                failing = Rule(fault_id, fault)
                self._rest.fail(failing)
                rule = failing
            case RestSlow():
                slow = Rule(fault_id, fault)
                self._rest.slow(slow)
                rule = slow
            case RateLimit():
                limiting = Rule(fault_id, fault)
                self._rest.limit(limiting)
                rule = limiting
            case RestStale():
                lagging = Rule(fault_id, fault)
                self._rest.lag(lagging)
                rule = lagging
            case RefuseConnect():
                refusing = Rule(fault_id, fault)
                self._refusing.append(refusing)
                rule = refusing
            case Outage() | Delist() | Unlisted():
                rule = Rule(fault_id, fault, self._market.halt(fault_id, fault, now_ms))
            case ClockSkew():
                rule = Rule(fault_id, fault, 1)  # its effect is in the clock already
            case Revise():
                rule = Rule(fault_id, fault, self._market.revise(fault, now_ms))
                self._spent.add(fault_id)
            case Disconnect() | ServerShutdown():
                rule = Rule(fault_id, fault, self._end_connections(fault, now_ms))
                self._spent.add(fault_id)
        self._rules[fault_id] = rule
        return fault_id

    def remove(self, fault_id: int, now_ms: int) -> None:
        """Lift the fault. Raises `UnknownFault`, and `BadFault` for one that cannot be lifted."""
        rule = self._rules.get(fault_id)
        if rule is None:
            raise UnknownFault(fault_id)
        if isinstance(rule.fault, ClockSkew):
            raise BadFault("clock_skew cannot be lifted: a clock does not go back")
        del self._rules[fault_id]
        if isinstance(rule.fault, Delist | Unlisted):
            self._market.lift(fault_id, rule.fault, now_ms)
        self._forget(rule)

    def let_go(self) -> None:
        """Hold nothing back any more: the exchange ends."""
        for rule in self._rules.values():
            self._rest.remove(rule.id)

    def refuse_connect(self, route: Route) -> RefuseConnect | None:
        """The fault that keeps that connection from being opened; None when it may be. Counts it."""
        for rule in self._refusing:
            if rule.fault.concerns(route.market, [symbol_of(name) for name in route.streams]):
                rule.seen += 1
                return rule.fault
        return None

    def seen(self) -> dict[str, int]:
        """How often the faults of each kind have acted, also those that are lifted."""
        seen = self._seen_before.copy()
        for rule in self._rules.values():
            seen[kind_of(rule.fault)] += rule.seen
        return dict(seen)

    def in_force(self) -> list[dict[str, object]]:
        """The faults with their ids and how often each has acted; what acts once stays until it is lifted."""
        return [{"id": rule.id, "seen": rule.seen, **msgspec.to_builtins(rule.fault)} for rule in self._rules.values()]

    def _check_symbols(self, fault: Fault) -> None:
        markets = _MARKETS if fault.market is None else (fault.market,)
        for name in fault.symbols or ():
            if not any(name in self._exchange.listings(market) for market in markets):
                where = "on neither market" if fault.market is None else f"not on {fault.market}"
                raise BadFault(f"the fault is refused: symbol {name[:50]!r} exists {where}; names are like BTCUSDT")

    def _make_room(self) -> None:
        if len(self._rules) < MAX_FAULTS:
            return
        oldest = next((fault_id for fault_id in self._rules if fault_id in self._spent), None)
        if oldest is None:
            raise BadFault(f"the fault is refused: {MAX_FAULTS} are in force; lift some of them first")
        self._forget(self._rules.pop(oldest))

    def _forget(self, rule: Rule[Fault]) -> None:
        self._seen_before[kind_of(rule.fault)] += rule.seen
        self._spent.discard(rule.id)
        self._streams.faults.remove(rule.id)
        self._rest.remove(rule.id)
        self._refusing = [other for other in self._refusing if other.id != rule.id]

    def _end_connections(self, fault: Disconnect | ServerShutdown, now_ms: int) -> int:
        """How many connections are concerned."""
        concerned = [listener for listener in self._streams.listeners if _carries(listener, fault)]
        if isinstance(fault, Disconnect):
            concerned = list(islice(concerned, fault.count))
            for listener in concerned:
                self._streams.cut(listener, now_ms, fault.code)
            return len(concerned)
        for listener in concerned:
            self._streams.announce_shutdown(listener, now_ms)
            self._streams.cut(listener, now_ms + int(fault.delay_s * 1000), _GOING_AWAY)
        return len(concerned)


def _carries(listener: Listener, fault: Disconnect | ServerShutdown) -> bool:
    """Whether the fault concerns the connection or one of its streams."""
    session = listener.session
    return fault.concerns(session.route.market, [symbol_of(name) for name in session.names])
