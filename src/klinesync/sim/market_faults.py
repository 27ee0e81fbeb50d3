"""Faults of the market itself: minutes that never happen, candles that change, symbols that come and go.

They edit the tapes, so that REST, streams, longer intervals and the tests' truth agree.
"""

from __future__ import annotations

from klinesync.sim.dice import dice_key, unit
from klinesync.sim.edits import TRADING, Halt, revised
from klinesync.sim.exchange import Listing, SimExchange
from klinesync.sim.faults import Delist, Outage, Revise, Unlisted
from klinesync.sim.feed import Event
from klinesync.sim.streams import Streams
from klinesync.sim.tape import MINUTE_S, Market

_DAY_S = 86_400
_GONE: dict[Market, str] = {"spot": "BREAK", "futures": "SETTLING"}


class MarketFaults:
    """Carries them out on the listings of both markets. What it returns is how many symbols are concerned."""

    def __init__(self, exchange: SimExchange, streams: Streams) -> None:
        self._exchange = exchange
        self._streams = streams
        self._dice = dice_key(exchange.seed, "revise")
        self._revisions = 0
        self._halts: dict[int, list[tuple[Listing, Halt]]] = {}

    def halt(self, fault_id: int, fault: Outage | Delist | Unlisted, now_ms: int) -> int:
        """Stop trading as the fault says."""
        next_s = _next_minute_s(now_ms)
        halts: list[tuple[Listing, Halt]] = []
        for listing in self._concerned(fault):
            match fault:
                case Outage():
                    halt = Halt(next_s, next_s + fault.minutes * MINUTE_S)
                case Delist():
                    halt = Halt(next_s, None, fault.status or _GONE[listing.symbol.market], listed=not fault.gone)
                case Unlisted():
                    halt = Halt(0, None, TRADING, listed=False)
            listing.edit().halts.append(halt)
            halts.append((listing, halt))
        if not isinstance(fault, Outage):
            self._halts[fault_id] = halts
        self._refresh(halts, now_ms)
        return len(halts)

    def lift(self, fault_id: int, fault: Delist | Unlisted, now_ms: int) -> None:
        """Trade again from the next minute on."""
        next_s = _next_minute_s(now_ms)
        halts = self._halts.pop(fault_id)
        for listing, halt in halts:
            tape = listing.edit()
            if halt.start_s >= next_s:
                tape.halts.remove(halt)  # it was to begin with the next minute: nothing has happened
                continue
            halt.end_s = next_s
            is_futures = listing.symbol.market == "futures"
            forgets = fault.forget if isinstance(fault, Delist) else True
            if is_futures or isinstance(fault, Unlisted):
                listing.onboard_s = next_s
            if is_futures if forgets is None else forgets:
                tape.first_s = next_s
        self._refresh(halts, now_ms)

    def revise(self, fault: Revise, now_ms: int) -> int:
        """Change the newest closed candle of each symbol; the number of candles that were changed."""
        end_s = now_ms // 60_000 * MINUTE_S
        again: list[Event] = []
        count = 0
        for listing in self._concerned(fault):
            rows = listing.tape.minutes(end_s - _DAY_S, end_s)
            if not len(rows):
                continue
            self._revisions += 1
            count += 1
            row = revised(rows.row(len(rows) - 1), listing.symbol, unit(self._dice, self._revisions))
            listing.edit().revise(row)
            self._streams.feed.refresh((listing,), now_ms)
            if fault.push:
                again += self._streams.feed.closed_again(listing, row.time, now_ms)
        self._streams.send(again)
        return count

    def _concerned(self, fault: Outage | Delist | Unlisted | Revise) -> list[Listing]:
        return [
            listing
            for listings in (self._exchange.spot, self._exchange.futures)
            for listing in listings.values()
            if fault.covers(listing.symbol.market, listing.symbol.name)
        ]

    def _refresh(self, halts: list[tuple[Listing, Halt]], now_ms: int) -> None:
        self._streams.feed.refresh({listing for listing, _ in halts}, now_ms)


def _next_minute_s(now_ms: int) -> int:
    return (now_ms // 60_000 + 1) * MINUTE_S
