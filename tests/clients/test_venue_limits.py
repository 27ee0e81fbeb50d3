"""Limits of venues over their local doubles: listed symbols, weights and depth of history, read by unmodified ccxt."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from venue_service import candle, hurry, serving, whitelist

from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.storage.sqlite_reader import SqliteReader
from support.running_service import Service
from support.waiting import until
from venues import faults, hyperliquid
from venues.faults import Ask, Cut, Fault
from venues.gate import Gate
from venues.hyperliquid import Hyperliquid
from venues.kraken import Kraken
from venues.market import Pair
from venues.okx import Okx
from venues.venue import Venue

SPEED = 20.0
# More symbols than may disappear from a list at once.
BASES = ("BTC", "ETH", *(f"S{number}" for number in range(30)))
SPOT = [Pair(base) for base in BASES]
NO_LISTS = [faults.HTML, faults.EMPTY_OBJECT, Cut()]


QUICK = hurry(SPEED, unlisted_ttl_s=0.1)


def series(venue: Venue, base: str = "BTC") -> SeriesId:
    pair = next(pair for pair in venue.pairs if pair.base == base)
    market = "spot" if pair.settle is None else "futures"
    return SeriesId.parse(f"{venue.name}:{market}:{pair.symbol}:1m")


def state(service: Service, followed: SeriesId) -> str:
    return service.runtime.supervisors.status(followed).state


@pytest.mark.parametrize("kind", [Okx, Kraken, Gate])
@pytest.mark.parametrize("fault", NO_LISTS, ids=["html", "empty object", "cut"])
async def test_what_is_no_list_of_markets_is_trouble_and_never_says_that_a_symbol_is_unknown(
    tmp_path: Path, kind: type[Venue], fault: Fault
) -> None:
    async with kind(pairs=SPOT, speed=SPEED) as venue:
        venue.fail(fault, Ask.MARKETS)
        followed = series(venue)
        async with serving(tmp_path, venue, hurry=QUICK, **whitelist(followed)) as service:
            status, answer = await service.get("/api/market/candles", series_id=str(series(venue, "ETH")))
            assert (status, answer.get("code")) != (404, "unknown_series"), answer
            await until(lambda: venue.asked(Ask.MARKETS) >= 3, "the list is asked for again", 20.0)
            assert state(service, followed) == "reconnecting"
            venue.mend()
            await until(lambda: service.runtime.supervisors.keeps_up(followed), "it is followed", 20.0)


async def asked_again(service: Service, venue: Venue) -> None:
    """Request the lists of symbols three times, as when a symbol is suspect."""
    before = venue.asked(Ask.MARKETS)

    def is_asked() -> bool:
        service.runtime.supervisors.by_name()[venue.name]._listings.suspect()
        return venue.asked(Ask.MARKETS) >= before + 3

    await until(is_asked, "the lists are asked for", 20.0)


@pytest.mark.parametrize("kind", [Okx, Kraken, Gate])
async def test_a_list_that_gets_shrunken_empty_or_unreadable_takes_no_series_away(
    tmp_path: Path, kind: type[Venue]
) -> None:
    async with kind(pairs=SPOT, speed=SPEED) as venue:
        followed, other = series(venue, "S29"), series(venue, "S28")
        async with serving(tmp_path, venue, hurry=QUICK, **whitelist(followed)) as service:
            await until(lambda: service.runtime.supervisors.keeps_up(followed), "it is followed", 20.0)
            for share, fault in ((0.5, None), (0.0, None), (1.0, faults.HTML), (1.0, faults.EMPTY_OBJECT)):
                venue.listed_share = share
                if fault is not None:
                    venue.fail(fault, Ask.MARKETS)
                await asked_again(service, venue)
                status, answer = await service.get("/api/market/candles", series_id=str(other))
                assert status == 200, answer
                assert state(service, followed) != "delisted"
            venue.mend()
            venue.listed_share = 1.0
            rows = venue.asked(Ask.ROWS)
            await until(lambda: venue.asked(Ask.ROWS) > rows + 3, "it goes on", 20.0)


async def test_twelve_series_of_hyperliquid_stay_within_its_budget_and_are_up_to_date(tmp_path: Path) -> None:
    pairs = [Pair(base, "USDC", "USDC") for base in BASES[:12]]
    async with Hyperliquid(pairs=pairs, speed=SPEED) as venue:
        venue.enforces_budget = True
        those = [series(venue, pair.base) for pair in pairs]
        worst = 0.0
        async with serving(tmp_path, venue, hurry=QUICK, **whitelist(*those)) as service:
            end_ms = venue.now_ms() + 6 * 60_000
            while venue.now_ms() < end_ms:
                worst = max(worst, venue.used(asyncio.get_running_loop().time()))
                await asyncio.sleep(0.05)
            assert worst <= venue.weight_per_minute
            assert all(service.runtime.supervisors.keeps_up(followed) for followed in those)
            due_s = (venue.now_ms() // 60_000 - 2) * 60
            heads = [
                (await service.get("/api/market/health", series_id=str(followed)))[1]["head_time"] for followed in those
            ]
            assert all(isinstance(head, int) and head >= due_s for head in heads), (due_s, heads)


@pytest.mark.parametrize("kind", [Gate, Kraken, Hyperliquid])
async def test_a_backfill_takes_what_a_venue_keeps_and_says_what_it_does_not(tmp_path: Path, kind: type[Venue]) -> None:
    pairs = hyperliquid.DEFAULT_PAIRS if kind is Hyperliquid else SPOT
    async with kind(pairs=pairs, speed=SPEED) as venue:
        assert venue.depth is not None
        followed = series(venue)
        newest_s = venue.now_ms() // 60_000 * 60
        oldest_s = newest_s - venue.depth * 60
        async with serving(tmp_path, venue, hurry=QUICK, **whitelist(followed)) as service:
            # Candles from long ago are stored: the span up to the venue's oldest candle is a hole.
            old = [venue.final(followed.symbol, oldest_s - at * 60, swap=kind is Hyperliquid) for at in (400, 399)]
            for found in map(candle, old):
                assert found is not None
                body = {"series_id": str(followed), "candle": {"candle_time": found.time} | _values(found)}
                assert (await service.post("/api/market/ingest/candle_closed", body))[0] == 200
            await until(lambda: service.runtime.supervisors.keeps_up(followed), "it is followed", 20.0)
            asked = venue.asked(Ask.ROWS)
            over = await service.runtime.backfill.backfill(followed, Span(oldest_s - 400 * 60, newest_s - 60))
            assert (over.missing, over.trouble) == (0, None)
            assert 390 <= over.lost <= 450
            assert over.lost_why == f"{venue.name} keeps the newest {venue.depth:,} candles of 1m only"
            with SqliteReader(tmp_path / "store.sqlite") as reader:
                ledger = reader.read(lambda store: store.gaps(followed))
            (lost,) = [gap for gap in ledger if gap.state is GapState.LOST]
            assert (lost.start, lost.proof) == (oldest_s - 398 * 60, over.lost_why)
            assert all(gap.state in (GapState.LOST, GapState.CONFIRMED_EMPTY) for gap in ledger), ledger
            health = (await service.get("/api/market/health", series_id=str(followed)))[1]
            assert health["status"] == "yellow"
            assert venue.asked(Ask.ROWS) - asked < 60, "what is not there is not asked for again and again"
            over = await service.runtime.backfill.backfill(followed, Span(oldest_s - 300 * 60, oldest_s - 100 * 60))
            assert (over.total, over.missing, over.lost) == (0, 0, 200)


def _values(found: object) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("open", "high", "low", "close", "volume")}
