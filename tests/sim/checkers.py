"""What must hold, checked while the world runs and after it has settled. Each checker returns sentences: none is good."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import apsw

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.storage.sqlite import SqliteCandleStore

from sim.clients import SimulatedClient, View
from sim.exchange import MINUTE_S, SimulatedExchange

# A seed that fails says why with the first of what it found, not with all that follows from it.
MOST_SENTENCES = 5


class Witness:
    """Reads the store's file with a connection of its own: it sees what is committed, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._store = SqliteCandleStore(self._reader, {})

    def first(self, series: SeriesId) -> int | None:
        return self._store.first(series)

    def head(self, series: SeriesId) -> int | None:
        return self._store.head(series)

    def has(self, series: SeriesId, time: int) -> bool:
        return bool(self._store.newest(series, 1, before=time + 1, after=time - 1))

    def candles(self, series: SeriesId) -> list[Candle]:
        return self._store.newest(series, MAX_TIME)

    def close(self) -> None:
        self._reader.close()


def check_stored_is_final(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """At any moment: what is stored is what the exchange has called final, so nothing forming is."""
    wrong = []
    for series in exchange.listings:
        wrong += [
            f"{series}: {candle} is stored, and the exchange never called it final"
            for candle in witness.candles(series)
            if not exchange.known(series, candle)
        ]
    return wrong[:MOST_SENTENCES]


def check_store_is_truth(witness: Witness, exchange: SimulatedExchange) -> list[str]:
    """Settled: from the first stored candle to the exchange's newest, the store is what the exchange has, bit for bit."""
    wrong = []
    for series in exchange.listings:
        stored = {candle.time: candle for candle in witness.candles(series)}
        if not stored:
            wrong.append(f"{series}: nothing is stored")
            continue
        truth = exchange.truth(series, min(stored), exchange.end_s)
        wrong += [f"{series}: {time} is missing" for time in truth if time not in stored]
        wrong += [f"{series}: {time} is stored, and does not exist" for time in stored if time not in truth]
        wrong += [
            f"{series}: {stored[time]} is stored, and {candle} is the truth"
            for time, candle in truth.items()
            if time in stored and stored[time] != candle and not _tolerated(exchange, series, stored[time])
        ]
    return wrong[:MOST_SENTENCES]


def _tolerated(exchange: SimulatedExchange, series: SeriesId, candle: Candle) -> bool:
    """Whether another candle than the valid one may stand: one that was valid before a revision, as the service may have
    been away, or the frame lost, when the exchange told of it. Not when the revision was told in the calm."""
    return (series, candle.time) not in exchange.must_be_revised and exchange.known(series, candle)


def check_clients(witness: Witness, clients: Iterable[SimulatedClient]) -> list[str]:
    """Settled: every client's picture equals the store behind its `since`."""
    wrong = []
    for client in clients:
        wrong += [f"{client.name}: {sentence}" for view in client.views.values() for sentence in _picture(witness, view)]
    return wrong[:MOST_SENTENCES]


def _picture(witness: Witness, view: View) -> list[str]:
    if not view.acknowledged:
        return [f"{view.series}: the subscription was never answered"]
    if view.gaps:
        return [f"{view.series}: gaps {view.gaps} that nothing followed"]
    from_time = view.since + 1 if view.since is not None else view.first if view.first is not None else MAX_TIME
    stored = {candle.time: candle for candle in witness.candles(view.series)}
    owed = {
        time
        for time in stored
        if time >= from_time and not any(first <= time < end for first, end in view.passed)
    }
    wrong = [f"{view.series}: {time} was never shown (since {view.since})" for time in sorted(owed - view.shown.keys())]
    wrong += [
        f"{view.series}: {candle} is what it saw last, and {stored.get(time)} is stored"
        for time, candle in view.shown.items()
        if stored.get(time) != candle
    ]
    return wrong


def check_heads(witness: Witness, exchange: SimulatedExchange, clients: Iterable[SimulatedClient]) -> list[str]:
    """Settled: everything has come to the exchange's newest candle."""
    wrong = []
    for series, listing in exchange.listings.items():
        newest = max(listing.final)
        if witness.head(series) != newest:
            wrong.append(f"{series}: the head is {witness.head(series)}, and {newest} is the newest")
        wrong += [
            f"{client.name}: {series}: it is at {last}, and {newest} is the newest"
            for client in clients
            if (last := client.last(series)) != newest
        ]
    assert all(max(listing.final) == exchange.end_s - MINUTE_S for listing in exchange.listings.values())
    return wrong[:MOST_SENTENCES]
