"""Invariants, checked while the world runs and after it has settled. A checker returns sentences, none when the
invariants hold."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import apsw

from klinesync.core.candle import MAX_TIME, ROUNDING, Candle, agree
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import widened
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.streams import BinanceConnection
from klinesync.exchanges.stamp_check import ASK_EVERY_S, ASK_TIMEOUT_S
from klinesync.factor.graph import Said
from klinesync.ingest.feed import MAX_HOLD_S
from klinesync.ingest.liveness import STALE
from klinesync.ingest.timings import USUAL_TIMINGS
from klinesync.overlay.instruction import Instruction
from klinesync.storage.candles import CandleStore
from klinesync.storage.memory import Memory
from klinesync.storage.records import Ledger
from klinesync.storage.sqlite_tables import SqliteTables
from sim.clients import SimulatedClient, View
from sim.exchange import BASE, MINUTE_S, SimulatedExchange
from sim.network import Network
from sim.service import Service

# The first sentences explain why a seed failed; later ones usually follow from them.
MOST_SENTENCES = 5


# The longest time for which the service may hold back a closed candle: it waits for candles missing before it, and for
# the exchange's time; then it wakes up, and writes. Delays of a slow or failing store are added.
WAIT_MOST_S = MAX_HOLD_S + ASK_EVERY_S + ASK_TIMEOUT_S + 2 * USUAL_TIMINGS.tick_s + 2.0
# States that only a frame ends.
ENDED = (*STALE, StreamState.SUBSCRIBED)
# Tasks of an idle service: its own, and those of each connection to it.
TASKS_MOST = 60
TASKS_PER_CLIENT = 6


class Witness:
    """Reads the store's file with a connection of its own, so that it sees only committed rows."""

    def __init__(self, path: Path) -> None:
        self._reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._memory = Memory(writes=False)
        self._seen: set[tuple[SeriesId, int]] = set()
        self._remembered: dict[SeriesId, dict[int, Candle]] = {}

    @property
    def _store(self) -> CandleStore:
        """The store as it is now: each is of one state."""
        return CandleStore(SqliteTables(self._reader), self._memory)

    def first(self, series: SeriesId) -> int | None:
        return self._store.first(series)

    def head(self, series: SeriesId) -> int | None:
        return self._store.head(series)

    def has(self, series: SeriesId, time: int) -> bool:
        """Whether the candle is stored; once stored, always stored."""
        if (series, time) not in self._seen:
            found = self._store.newest(series, 1, before=time + 1, after=time - 1, strict=False)
            self._seen.update((series, candle.time) for candle in found)
        return (series, time) in self._seen

    def candles(self, series: SeriesId) -> list[Candle]:
        """The stored candles, as far as they can be read."""
        return self._store.newest(series, MAX_TIME, strict=False)

    def remember(self) -> None:
        """See all candles that are stored now: some of them may not be there for long."""
        for series in self.series():
            candles = self.candles(series)
            self._seen.update((series, candle.time) for candle in candles)
            self._remembered.setdefault(series, {}).update((candle.time, candle) for candle in candles)

    def remembered(self, series: SeriesId) -> Mapping[int, Candle]:
        """The candles at the last `remember` that had them, by open time."""
        return self._remembered.get(series, {})

    def once_stored(self, series: SeriesId) -> list[Candle]:
        """The candles that are stored now, or were when `remember` was called, in the latest of these values."""
        known = {**self.remembered(series), **{candle.time: candle for candle in self.candles(series)}}
        return [known[time] for time in sorted(known)]

    @property
    def store(self) -> CandleStore:
        """The committed candles."""
        return self._store

    def series(self) -> list[SeriesId]:
        return self._store.series()

    def ledger(self, series: SeriesId) -> Ledger | None:
        return self._store.ledger.get(series)

    def ledgers(self) -> dict[SeriesId, Ledger]:
        return self._store.ledger.all()

    def events(self, series: SeriesId) -> list[Said]:
        return self._store.ledger.events(series, 0, MAX_TIME)

    def drawings(self, series: SeriesId) -> list[Instruction]:
        return self._store.ledger.drawings(series, 0, MAX_TIME)

    def gaps(self, series: SeriesId) -> list[Gap]:
        return self._store.gaps(series)

    def close(self) -> None:
        self._reader.close()


def check_stored_is_final(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """At any moment: every stored candle is one that the exchange called final, so no forming candle is stored."""
    wrong = []
    for series in exchange.listings:
        wrong += [
            f"{series}: {candle} is stored, and the exchange never called it final"
            for candle in witness.candles(series)
            if not exchange.known(series, candle)
        ]
    return wrong[:MOST_SENTENCES]


def check_store_is_truth(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """Settled: from the first stored candle to the exchange's newest, the store equals the exchange."""
    wrong = []
    for series in exchange.listings:
        stored = {candle.time: candle for candle in witness.candles(series)}
        if not stored:
            wrong.append(f"{series}: nothing is stored")
            continue
        truth = exchange.truth(series, min(stored), exchange.end_s)
        wrong += [
            f"{series}: {time} is missing" for time in truth if time not in stored and not exchange.forgot(series, time)
        ]
        wrong += [f"{series}: {time} is stored, and does not exist" for time in stored if time not in truth]
        wrong += [
            f"{series}: {stored[time]} is stored, and {candle} is the truth"
            for time, candle in truth.items()
            if time in stored and stored[time] != candle and not _tolerated(exchange, series, stored[time])
        ]
    return wrong[:MOST_SENTENCES]


def _tolerated(exchange: SimulatedExchange, series: SeriesId, candle: Candle) -> bool:
    """Whether a candle other than the valid one may be stored: one that was valid before a revision, as the service may
    have been down, or the frame lost, when the exchange announced the revision. Not when the revision was announced
    during the calm, nor when the audit reads the candle after the last revision."""
    revised = (series, candle.time) in exchange.must_be_revised or exchange.is_audited(series, candle.time)
    return not revised and exchange.known(series, candle)


def check_clients(
    witness: Witness,
    exchange: SimulatedExchange,
    clients: Iterable[SimulatedClient],
    most: int,
    rotten: Container[SeriesId] = (),
) -> list[str]:
    """Settled: every client's candles equal the store after its `since`. A catch-up sends at most `most` candles;
    fewer, and says so, while candles of a `rotten` series cannot be read. A client keeps candles that rotted after they
    were shown, and that the exchange has forgotten since."""
    wrong = []
    for client in clients:
        for view in client.views.values():
            rots = view.series in rotten
            lost = _lost(witness, exchange, view.series) if rots else []
            wrong += [f"{client.name}: {sentence}" for sentence in _picture(witness, view, 0 if rots else most, lost)]
    return wrong[:MOST_SENTENCES]


def _lost(witness: Witness, exchange: SimulatedExchange, series: SeriesId) -> list[Gap]:
    """The declared gaps of a series that no source has the candles of any more."""
    base = series.with_timeframe(BASE)
    gaps = [gap for gap in witness.gaps(series) if gap.state in _FORGOTTEN]
    return [gap for gap in gaps if exchange.forgot(base, series.timeframe.shift(gap.end, -1))]


def _picture(witness: Witness, view: View, most: int, lost: Sequence[Gap]) -> list[str]:
    if not view.acknowledged:
        return [f"{view.series}: the subscription was never answered"]
    if view.gaps:
        return [f"{view.series}: gaps {view.gaps} that nothing followed"]
    if view.passed and len(view.shown) < most:
        return [f"{view.series}: truncated, though only {len(view.shown)} candles came of the {most} that fit"]
    from_time = view.since + 1 if view.since is not None else view.first if view.first is not None else MAX_TIME
    # Candles before those stored at the time of subscribing are announced, not sent.
    oldest = view.first if view.first_at_subscribe is None else view.first_at_subscribe
    from_time = from_time if oldest is None else max(from_time, oldest)
    stored = {candle.time: candle for candle in witness.candles(view.series)}
    owed = {time for time in stored if time >= from_time and not any(first <= time < end for first, end in view.passed)}
    wrong = [f"{view.series}: {time} was never shown (since {view.since})" for time in sorted(owed - view.shown.keys())]
    wrong += [
        f"{view.series}: {candle} is what it saw last, and {stored.get(time)} is stored"
        for time, candle in view.shown.items()
        if (kept := stored.get(time)) != candle
        and not (kept is not None and _added_otherwise(kept, candle))
        and not (kept is None and any(gap.start <= time < gap.end for gap in lost))
    ]
    return wrong


def _added_otherwise(candle: Candle, other: Candle) -> bool:
    """Whether two candles differ at most in the rounding of their volumes: one was the exchange's own."""
    return agree(candle, other, ROUNDING)


def check_heads(witness: Witness, exchange: SimulatedExchange, clients: Iterable[SimulatedClient]) -> list[str]:
    """Settled: the store's head is the exchange's newest candle, and every client's head is the store's."""
    wrong = [
        f"{series}: the head is {head}, and {newest} is the newest"
        for series, listing in exchange.listings.items()
        if (head := witness.head(series)) != (newest := max(listing.final))
    ]
    wrong += [
        f"{client.name}: {series}: it is at {last}, and the head is {head}"
        for client in clients
        for series in client.series
        if (head := witness.head(series)) is not None
        and (last := client.last(series)) != head
        # A live-only subscription, and no longer candle has closed since.
        and not (last is None and series not in exchange.listings)
    ]
    assert all(max(listing.final) == exchange.end_s - MINUTE_S for listing in exchange.listings.values())
    return wrong[:MOST_SENTENCES]


def check_gap_ledger(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """Settled: each hole is confirmed empty, with a proof, and is a hole of the exchange."""
    wrong = []
    for series in exchange.listings:
        first, head = witness.first(series), witness.head(series)
        assert first is not None
        assert head is not None
        stored = {candle.time for candle in witness.candles(series)}
        holes = {time for time in range(first, head, MINUTE_S) if time not in stored}
        gaps = witness.gaps(series)
        wrong += [
            f"{series}: {gap} has a state or a proof that it should not"
            for gap in gaps
            # Candles that the exchange has forgotten are neither shown nor shown to be empty.
            if not (_confirmed(gap) or (gap.state in _FORGOTTEN and exchange.forgot(series, gap.end - 1)))
        ]
        noted = {time for gap in gaps for time in range(gap.start, gap.end, MINUTE_S)}
        wrong += [f"{series}: the hole at {time} is not in the ledger" for time in sorted(holes - noted)]
        wrong += [f"{series}: {time} is a hole in the ledger, and no hole" for time in sorted(noted - holes)]
    return wrong[:MOST_SENTENCES]


# The possible states of a hole that the exchange has forgotten: unknown, or lost.
_FORGOTTEN = (GapState.UNKNOWN, GapState.LOST)


def _confirmed(gap: Gap) -> bool:
    return gap.state is GapState.CONFIRMED_EMPTY and bool(gap.proof)


def check_derived(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """Settled: each derived candle is the roll-up of the stored base candles, bit for bit, and none is missing. Where
    the base is incomplete there is no candle, one that the exchange sent, or one from before base candles rotted; the
    newest requested native candles are stored."""
    wrong = []
    native = exchange.scenario.native_candles
    for series in exchange.listings:
        base = witness.candles(series)
        first, end = base[0].time, base[-1].time + MINUTE_S
        begins = witness.first(series)
        assert begins is not None
        unknown = [gap for gap in witness.gaps(series) if not _confirmed(gap)]
        rots = exchange.scenario.faults.rot and unknown
        rolled, told = {"1m": base}, {"1m": witness.once_stored(series) if rots else []}
        for code, parent in exchange.scenario.chain:
            frame = Timeframe.parse(code)
            assert frame.step_s % Timeframe.parse(parent).step_s == 0
            parts = rolled[code] = _rolled(rolled[parent], frame.step_s)
            told[code] = _rolled(told[parent], frame.step_s)
            derived = series.with_timeframe(frame)
            stored = {candle.time: candle for candle in witness.candles(derived)}
            open_times = range(frame.floor(first), frame.floor(end), frame.step_s)
            whole = [
                time
                for time in open_times
                if first <= time
                if not any(gap.start < time + frame.step_s and time < gap.end for gap in unknown)
            ]
            expected = {part.time: part for part in parts if part.time in set(whole)}
            own = {
                time: candle
                for time, candle in stored.items()
                if native and time not in set(whole) and time < frame.floor(end) and exchange.has_told(derived, candle)
            }
            # Computed before base candles rotted that the exchange has forgotten since: from the stored ones of then.
            own |= {part.time: part for part in told[code] if stored.get(part.time) == part}
            # These stay as they are also when another of their minutes is corrected, or arrives late.
            lost = widened(frame, (gap.span for gap in unknown)) if rots else []
            own |= {
                time: candle
                for time, candle in stored.items()
                if any(span.holds(time) for span in lost) and candle == witness.remembered(derived).get(time)
            }
            wrong += [
                f"{derived}: {stored.get(time)} is stored, and {expected.get(time)} is the roll-up"
                for time in sorted(expected.keys() | stored.keys())
                if stored.get(time) != expected.get(time) and time not in own
            ]
            if native and derived in exchange.scenario.watched:
                wrong += [
                    f"{derived}: the exchange's own candle {time} is missing"
                    for time in _lacking_own(exchange, derived, native, stored, begins, end)
                ]
    return wrong[:MOST_SENTENCES]


def _lacking_own(
    exchange: SimulatedExchange, derived: SeriesId, native: int, stored: Mapping[int, Candle], begins: int, end: int
) -> list[Candle]:
    """The missing ones of the `native` candles before the bucket in which the base begins, with what it has lost; where
    the newest `native` candles are stored, of those after the first stored one."""
    frame = derived.timeframe
    before = -(-begins // frame.step_s) * frame.step_s
    newest = frame.floor(end)
    if before >= newest:
        return []
    begin, oldest = before - native * frame.step_s, min(stored, default=newest)
    if oldest <= newest - native * frame.step_s:
        begin = max(begin, oldest)
    own = exchange.native(derived, begin, before)
    return [candle for candle in own if candle.time not in stored]


def check_streams(service: Service, exchange: SimulatedExchange, network: Network) -> list[str]:
    """Settled: the stream of every symbol brings the candles that it owes, and the service reports it as live."""
    if service.runtime is None:
        return ["the service does not run"]
    wrong = []
    for series, listing in exchange.listings.items():
        status = service.runtime.supervisors.status(series)
        if not network.delivers(service.process, listing):
            wrong.append(f"{series}: its stream brings nothing, and the service says {status}")
        elif status.state in ENDED and status.since is not None and status.since >= exchange.end_s:
            continue  # its state changed after the last candle of all; no further candle can make it live
        elif status.state != "live":
            wrong.append(f"{series}: its stream is {status}")
    return wrong[:MOST_SENTENCES]


def check_idle(service: Service, exchange: SimulatedExchange, clients: int) -> list[str]:
    """Settled: no queue holds anything, and no state of past work remains."""
    runtime = service.runtime
    assert runtime is not None
    assert runtime.backfill is not None
    queue, derived = runtime._pipeline._waiting, runtime.market_data.derived
    supervisor, rest = runtime.supervisors.by_name()["binance"], runtime.registry.exchange("binance").rest()
    tasks = [task.get_name() for task in service.process.tasks if not task.done()]
    # Where connections are short-lived one may be about to be replaced. No further frame can prove the new connection,
    # so that both stay open.
    most = 2 if exchange.scenario.faults.lifetime else 1
    connections = [connection for several in supervisor._connections._tasks.values() for connection in several]
    # Where little weight is allowed, an audit takes many minutes: one request of it waits at any time.
    audits = 1 if exchange.scenario.faults.weight else 0
    held = [len(connection._links) for connection in connections if isinstance(connection, BinanceConnection)]
    waiting = {
        "live candles": queue.live_candles + sum(map(len, queue._live.values())),
        "candles of history": queue.bulk_candles + len(queue._bulk),
        "series with a failed write": len(queue._broken),
        "doubted events": sum(len(market.check._waiting) for market in supervisor._markets.values()),
        "requests": sum(max(0, sum(budget.waiting.values()) + budget.under_way - audits) for budget in rest.values()),
        "series with missing candles": sum(
            not exchange.is_listed_anew(derived.base_of(line)) for line in runtime.backfill._queue._lines
        ),
        "needs of candles that are queued already": sum(
            before.overlaps(after)
            for series in runtime.backfill._queue._lines
            for before, after in pairwise(status.need.span for status in runtime.backfill.needs_of(series))
        ),
        "messages to clients": sum(len(client.outbox._messages) for client in runtime.hub._clients),
        "clients more than there are": max(0, runtime.hub.clients - clients),
        "connections more than one a market": sum(max(0, count - most) for count in held),
        "tasks more than there should be": max(0, len(tasks) - TASKS_MOST - TASKS_PER_CLIENT * clients),
    }
    for series, job in supervisor._jobs.items():
        waiting[f"candles of {series}"] = len(job.followed.feed._splice.held()) + len(job.followed.feed._late)
    return [f"{count} {what} wait or are left" for what, count in waiting.items() if count][:MOST_SENTENCES]


def _rolled(parts: list[Candle], step_s: int) -> list[Candle]:
    """An independent, simple roll-up: volumes and trades are added from left to right."""
    buckets: dict[int, list[Candle]] = {}
    for part in parts:
        buckets.setdefault(part.time - part.time % step_s, []).append(part)
    rolled = []
    for time, group in buckets.items():
        volume = group[0].volume
        for part in group[1:]:
            volume += part.volume
        quote, trades, taker, taker_quote = group[0].flow
        for part in group[1:]:
            quote = _plus(quote, part.quote_volume)
            trades = None if trades is None or part.trades is None else trades + part.trades
            taker = _plus(taker, part.taker_buy_volume)
            taker_quote = _plus(taker_quote, part.taker_buy_quote_volume)
        high, low = max(part.high for part in group), min(part.low for part in group)
        rolled.append(
            Candle(time, group[0].open, high, low, group[-1].close, volume, quote, trades, taker, taker_quote)
        )
    return rolled


def _plus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
