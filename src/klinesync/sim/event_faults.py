"""Faults of streams: events in, events out, with what is lost, late, doubled or out of order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from klinesync.sim.dice import dice_key, unit
from klinesync.sim.exchange import SimExchange
from klinesync.sim.faults import VARIANTS, DropClosed, Duplicate, LateClosed, Malformed, Reorder, Rule, Silent
from klinesync.sim.feed import Event, StreamKey
from klinesync.sim.spoil import Spoilt
from klinesync.sim.symbol import Symbol

MAX_LATE = 1_000_000  # events that wait; beyond it they come in time, so that memory is bounded

EventFault = DropClosed | LateClosed | Reorder | Duplicate | Malformed
# An event passes the kinds in this order; one that waited goes on behind the kind that made it wait.
_ORDER: tuple[type[EventFault], ...] = (DropClosed, LateClosed, Reorder, Duplicate, Malformed)


@dataclass(eq=False, slots=True)
class _Acting:
    """A rule at work: how many events of each stream it has looked at, and those that wait for their next one."""

    rule: Rule[EventFault]
    stage: int
    looked_at: dict[StreamKey, int] = field(default_factory=dict)
    waiting: dict[StreamKey, Event] = field(default_factory=dict)

    def considers(self, event: Event) -> bool:
        fault = self.rule.fault
        symbol = event.stream.listing.symbol
        if not fault.covers(symbol.market, symbol.name):
            return False
        if isinstance(fault, DropClosed | LateClosed):
            return event.closed
        return event.closed or fault.events == "all"

    def acts(self, event: Event) -> bool:
        """Whether it is this event's turn; counted when it is."""
        fault, key = self.rule.fault, event.stream.key
        if fault.count is not None and self.rule.seen >= fault.count:
            return False
        looked_at = self.looked_at.get(key, 0) + 1
        self.looked_at[key] = looked_at
        if looked_at % fault.every:
            return False
        self.rule.seen += 1
        return True


class EventFaults:
    """What is done to the events on their way from the feed to those who listen.

    `active` is False without rules; no event need be checked then. `silent` are the rules that withhold events from
    connections.
    """

    def __init__(self, exchange: SimExchange) -> None:
        self._exchange = exchange
        self._dice = dice_key(exchange.seed, "faults")
        self.active = False
        self.silent: list[Rule[Silent]] = []
        self._hears_from: dict[int, int] = {}
        self._acting: list[_Acting] = []
        self._late: list[tuple[int, int, int, Event]] = []
        self._turns = 0

    def add(self, rule: Rule[EventFault]) -> None:
        """Act on events from now on."""
        self._acting.append(_Acting(rule, _ORDER.index(type(rule.fault))))
        self._acting.sort(key=lambda acting: acting.stage)
        self.active = True

    def silence(self, rule: Rule[Silent], next_serial: int) -> None:
        """Withhold events from now on; `next_serial` is what the next connection will get."""
        self.silent.append(rule)
        if rule.fault.connections == "present":
            self._hears_from[rule.id] = next_serial

    def remove(self, fault_id: int) -> None:
        """Act no longer. What waits for the next event of its stream is due at once; what is late comes at its time."""
        self.silent = [rule for rule in self.silent if rule.id != fault_id]
        self._hears_from.pop(fault_id, None)
        for acting in self._acting:
            if acting.rule.id == fault_id:
                for event in acting.waiting.values():
                    self._wait(0, acting.stage, event)
        self._acting = [acting for acting in self._acting if acting.rule.id != fault_id]
        self.active = bool(self._acting or self._late)

    def next_due_ms(self) -> int | None:
        """When the next late event is due."""
        return self._late[0][0] if self._late else None

    def pass_on(self, events: Iterable[Event], now_ms: int) -> list[Event]:
        """What becomes of the events, and the late ones that are due now. A late event is sent, and says so, now."""
        out: list[Event] = []
        while self._late and self._late[0][0] <= now_ms:
            _, _, stage, event = heappop(self._late)
            self._pass(event._replace(sent_ms=now_ms), stage, out)
        for event in events:
            self._pass(event, -1, out)
        self.active = bool(self._acting or self._late)
        return out

    def silences(self, event: Event, serial: int) -> bool:
        """Whether the connection with that serial does not get the event; counted when it does not."""
        symbol = event.stream.listing.symbol
        for rule in self.silent:
            hears_from = self._hears_from.get(rule.id)
            if hears_from is not None and serial >= hears_from:
                continue
            if rule.fault.covers(symbol.market, symbol.name):
                rule.seen += 1
                return True
        return False

    def _pass(self, event: Event, behind: int, out: list[Event]) -> None:
        """Let the event through the stages that come after `behind`."""
        for acting in self._acting:
            if acting.stage <= behind or not acting.considers(event):
                continue
            fault, stage = acting.rule.fault, acting.stage
            if isinstance(fault, Reorder):
                earlier = acting.waiting.pop(event.stream.key, None)
                if earlier is not None:
                    self._pass(event, stage, out)
                    self._pass(earlier, stage, out)
                    return
                if acting.acts(event):
                    acting.waiting[event.stream.key] = event
                    return
            elif isinstance(fault, LateClosed) and len(self._late) >= MAX_LATE:
                continue
            elif isinstance(fault, Malformed):
                if event.spoilt is None and acting.acts(event):
                    out.append(event._replace(spoilt=self._spoilt(event, acting.rule.seen, fault)))
                    if fault.mode == "instead":
                        return
            elif acting.acts(event):
                if isinstance(fault, LateClosed):
                    self._wait(event.sent_ms + int(fault.delay_s * 1000), stage, event)
                elif isinstance(fault, Duplicate):
                    self._pass(event, stage, out)
                    self._pass(event, stage, out)
                return
        out.append(event)

    def _spoilt(self, event: Event, turn: int, fault: Malformed) -> Spoilt:
        variant = VARIANTS[(turn - 1) % len(VARIANTS)] if fault.variant is None else fault.variant
        return Spoilt(variant, self._another(event.stream.listing.symbol, turn))

    def _another(self, symbol: Symbol, turn: int) -> str:
        """The name of another symbol of that market, or of none when it is the only one."""
        names = [name for name in self._exchange.listings(symbol.market) if name != symbol.name]
        return names[int(unit(self._dice, turn) * len(names))] if names else "NOSUCHUSDT"

    def _wait(self, due_ms: int, stage: int, event: Event) -> None:
        self._turns += 1
        heappush(self._late, (due_ms, self._turns, stage, event))
