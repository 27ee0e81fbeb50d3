"""A whole service that follows local doubles of venues through unmodified ccxt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle
from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.timings import CcxtTimings, TurnTimings
from klinesync.exchanges.reach import SilenceTimings
from klinesync.exchanges.whole_lists import ListTimings
from klinesync.ingest.timings import FollowTimings
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from support.running_service import Service, running_service
from venues.market import Row
from venues.pointed import maker
from venues.venue import Venue

MARGIN_S = 2.0
# Silences are shortened less than other timings: the response time of a busy machine must not count as silence.
SILENCES_SPEED = 2.5
Timings = TypeVar("Timings", FollowTimings, SilenceTimings, CcxtTimings, TurnTimings, ListTimings, Backoff)


@dataclass(frozen=True, slots=True)
class Hurry:
    """The timings of a service beside venues whose time is quicker than ours."""

    follow: FollowTimings
    ccxt: CcxtTimings


def quicker(timings: Timings, speed: float) -> Timings:
    """The same timings for a quicker clock: every duration (`_s`) is shorter, those within too."""
    changes: dict[str, object] = {}
    for field in fields(timings):
        value = getattr(timings, field.name)
        if isinstance(value, SilenceTimings):
            changes[field.name] = quicker(value, SILENCES_SPEED)
        elif is_dataclass(value):
            changes[field.name] = quicker(value, speed)
        elif field.name.endswith("_s"):
            changes[field.name] = value / speed
    return replace(timings, **changes)  # type: ignore[arg-type]  # of these names


def hurry(speed: float, unlisted_ttl_s: float | None = None) -> Hurry:
    """Have everything that is timed by our clock pass as quickly as the venues' time."""
    ccxt = quicker(CcxtTimings(), speed)
    ccxt = replace(ccxt, polls_per_candle=ccxt.polls_per_candle * speed)
    if unlisted_ttl_s is not None:
        ccxt = replace(ccxt, unlisted_ttl_s=unlisted_ttl_s)
    usual = FollowTimings()
    follow = replace(
        quicker(usual, speed),
        # What a busy machine takes to answer.
        in_flight_s=usual.in_flight_s,
        fruitless=usual.fruitless,
        resubscribe=usual.resubscribe,
    )
    return Hurry(follow, ccxt)


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
async def serving(
    tmp_path: Path, *venues: Venue, hurry: Hurry, timeout_s: float = 10.0, **flags: str
) -> AsyncIterator[Service]:
    """A service that follows no series of Binance, beside the running doubles."""
    given = {"startup_kline_sync_target_candles": "10", "audit_interval_s": "0", "rest_final_margin_s": str(MARGIN_S)}
    others = CcxtEntry(
        makers={venue.name: maker(venue, timeout_s=timeout_s) for venue in venues},
        timings=hurry.ccxt,
    )
    around = Surroundings(tuning=Tuning(follow=hurry.follow))
    async with running_service(tmp_path / "store.sqlite", None, others, around, **(given | flags)) as service:
        yield service


def whitelist(*series: SeriesId) -> dict[str, str]:
    """Flags of a service that follows these series from the start."""
    return {"whitelist": ",".join(map(str, series)), "enable_whitelist_ingest": "on"}


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
