"""A whole service that follows local doubles of venues through unmodified ccxt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle
from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges import reach, whole_lists
from klinesync.exchanges.ccxt import pace, turn_queue
from klinesync.exchanges.ccxt import rest as ccxt_rest
from klinesync.exchanges.ccxt import streams as ccxt_streams
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.ingest import followed, listing_watch, market_watch, supervisor
from support.running_service import Service, running_service
from venues.market import Row
from venues.pointed import maker
from venues.venue import Venue

MARGIN_S = 2.0
PATIENCE_S = 60.0
# The service's timers, in seconds of our clock. They are shortened for venues whose time passes faster.
DURATIONS = {
    supervisor: ("TICK_S",),
    market_watch: ("CLOCK_AGE_S",),
    followed: ("ATTACH_WAIT_S", "SUSPECT_LISTINGS_AGE_S"),
    listing_watch: ("LISTINGS_AGE_S", "LISTINGS_PAUSE_S"),
    ccxt_rest: (
        "ASK_TIME_EVERY_S", "ASK_DATE_EVERY_S", "CONFIRM_S", "LISTINGS_TTL_S", "UNLISTED_TTL_S", "POLL_LEAST_S",
        "POLL_MOST_S",
    ),
    ccxt_streams: ("CONFIRM_S", "POLL_AGAIN_S", "LOOK_MOST_S", "SILENT_PAUSE_S"),
    pace: ("BURST_S",),
    whole_lists: ("BELIEVED_AFTER_S",),
    turn_queue: ("HELD_MOST_S",),
}  # fmt: skip
BACKOFFS = {
    ccxt_streams: ("BEGIN_AGAIN",),
    whole_lists: ("FIRST_LIST", "NEXT_LIST"),
    turn_queue: ("REFUSED", "TROUBLE"),
}
# Shortened less than the others: the response time of a busy machine must not count as silence.
SILENCES = ("ASK_AFTER_S", "ASK_EVERY_S", "UNREACHABLE_AFTER_S")
SILENCES_SPEED = 2.5


def hurry(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """Speed up all timers by our clock to the pace of the venues' time."""
    for module, names in DURATIONS.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) / speed)
    for module, names in BACKOFFS.items():
        for name in names:
            backoff: Backoff = getattr(module, name)
            quicker = replace(backoff, initial_s=backoff.initial_s / speed, most_s=backoff.most_s / speed)
            monkeypatch.setattr(module, name, quicker)
    for name in SILENCES:
        monkeypatch.setattr(reach, name, getattr(reach, name) / SILENCES_SPEED)
    monkeypatch.setattr(market_watch, "UNREACHABLE_AFTER_S", reach.UNREACHABLE_AFTER_S)
    monkeypatch.setattr(ccxt_rest, "POLLS_PER_CANDLE", ccxt_rest.POLLS_PER_CANDLE * speed)


@dataclass(frozen=True, slots=True)
class Close:
    """A closed candle that a client was shown, and the venue's time of that moment in ms. `revised`: it was shown
    with other values before."""

    series: SeriesId
    candle: Candle
    at_ms: int
    revised: bool


@asynccontextmanager
async def watching(service: Service, venues: Sequence[Venue], series: Iterable[SeriesId]) -> AsyncIterator[list[Close]]:
    """Clients that watch these series during the block; yields the growing list of the closed candles shown to them."""
    closes: list[Close] = []
    by_name = {venue.name: venue for venue in venues}

    async def watch(one: SeriesId) -> None:
        async with aclosing(follow(service.url, one, wait_out_refusals=True)) as updates:
            async for update in updates:
                at_ms = by_name[one.exchange].now_ms()
                if isinstance(update, ClosedCandle):
                    closes.append(Close(one, update.candle, at_ms, update.revised))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch(one), name=f"watch {one}") for one in series]
        yield closes
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def serving(tmp_path: Path, *venues: Venue, timeout_s: float = 10.0, **flags: str) -> AsyncIterator[Service]:
    """A service that follows no series of Binance, beside the running doubles."""
    given = {"startup_kline_sync_target_candles": "10", "audit_interval_s": "0", "rest_final_margin_s": str(MARGIN_S)}
    others = CcxtEntry(
        makers={venue.name: maker(venue, timeout_s=timeout_s) for venue in venues},
        poll_least_s=ccxt_rest.POLL_LEAST_S,
    )
    async with running_service(tmp_path / "store.sqlite", None, others, **(given | flags)) as service:
        yield service


def whitelist(*series: SeriesId) -> dict[str, str]:
    """Flags of a service that follows these series from the start."""
    return {"whitelist": ",".join(map(str, series)), "enable_whitelist_ingest": "on"}


async def until(holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(patience_s):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {patience_s:g} s: {what}") from None


def candle(row: Row | None) -> Candle | None:
    """A venue's row as the service stores it."""
    return None if row is None else Candle(*row)


def series_of(venue: Venue, base: str = "BTC") -> SeriesId:
    return SeriesId.parse(f"{venue.name}:spot:{base}/USDT:1m")


def first_closes(closes: list[Close], venue: Venue, since_ms: int) -> list[Close]:
    """The first published close of each minute that ended after `since_ms`, in the order of publication."""
    found: dict[tuple[SeriesId, int], Close] = {}
    for close in closes:
        if close.series.exchange == venue.name and (close.candle.time + 60) * 1000 > since_ms:
            found.setdefault((close.series, close.candle.time), close)
    return list(found.values())


def is_final(venue: Venue, close: Close) -> bool:
    return close.candle == candle(venue.final(close.series.symbol, close.candle.time))
