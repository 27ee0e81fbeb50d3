"""ListingWatch: how soon a list of symbols tells that a symbol is traded again. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import Listing
from klinesync.ingest.followed import Followed, FollowSettings, Moment
from klinesync.ingest.listing_watch import ListingWatch
from klinesync.ingest.timings import USUAL_TIMINGS
from sim.virtual_loop import VirtualLoop
from support.fake_exchange import FakeExchange

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
SETTINGS = FollowSettings(
    first_history_candles=5,
    most_tail_candles=1000,
    forming_interval_s=0.25,
    stream_stale_s=5.0,
    rest_final_margin_s=2.0,
    audit_interval_s=0.0,
    ondemand_idle_ttl_s=60.0,
    ondemand_max_jobs=0,
)
TRADING = Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", status="TRADING")
BREAK = Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", status="BREAK")


class Exchange(FakeExchange):
    """Lists a symbol that is not traded in `[100, traded_s)` of the loop's time after the start; caches its list like
    real exchanges."""

    def __init__(self, loop: VirtualLoop, traded_s: float) -> None:
        super().__init__()
        self._loop = loop
        self._start_s = loop.time()
        self._traded_s = traded_s
        self._kept: tuple[float, Listing] | None = None
        self.requests = 0

    def after_s(self) -> float:
        return self._loop.time() - self._start_s

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        now_s = self.after_s()
        if self._kept is None or now_s - self._kept[0] > max_age_s:
            self.requests += 1
            self._kept = (now_s, BREAK if 100.0 <= now_s < self._traded_s else TRADING)
        return {"BTC/USDT": self._kept[1]}


def watched(traded_s: float, suspect_every_s: float | None, end_s: float) -> tuple[list[tuple[float, bool]], int]:
    """When the series was found delisted or traded again, and how many lists were requested until `end_s`."""
    loop = VirtualLoop()
    exchange = Exchange(loop, traded_s)
    followed = Followed(BTC, None, SETTINGS, loop.time(), None)
    turns: list[tuple[float, bool]] = []

    def judge(series: Followed, listing: Listing | None, second: bool) -> None:
        before = series.is_delisted
        series.judge(listing, Moment(loop.time(), None), second=second)
        if series.is_delisted != before:
            turns.append((exchange.after_s(), series.is_delisted))

    watch = ListingWatch(exchange, ["spot"], lambda _: [followed], judge, loop.time)

    async def work() -> None:
        running = asyncio.get_running_loop().create_task(watch.run())
        while exchange.after_s() < 101.0:
            await asyncio.sleep(1.0)
        watch.suspect()
        while exchange.after_s() < end_s:
            await asyncio.sleep(suspect_every_s or 1.0)
            if suspect_every_s is not None:
                watch.suspect()
        running.cancel()

    try:
        loop.run_until_complete(work())
    finally:
        loop.close()
    return turns, exchange.requests


@pytest.mark.parametrize("suspect_every_s", [None, 7.0, 23.0, 59.0, 64.0, 90.0])
@pytest.mark.parametrize("traded_s", [180.0, 200.0, 225.0, 241.0, 287.0])
def test_a_symbol_that_is_traded_again_is_known_within_a_minute_whatever_else_is_looked_at(
    traded_s: float, suspect_every_s: float | None
) -> None:
    turns, requests = watched(traded_s, suspect_every_s, 500.0)
    (gone_s, gone), (back_s, still_gone) = turns
    assert (gone, still_gone) == (True, False)
    assert gone_s < 170.0
    assert back_s - traded_s <= USUAL_TIMINGS.suspect_listings_age_s + USUAL_TIMINGS.listings_pause_s + 1.0
    assert requests <= 500.0 / USUAL_TIMINGS.suspect_listings_age_s + 2


def test_lists_of_a_market_with_a_gone_symbol_are_requested_once_a_minute() -> None:
    _, quiet = watched(10_000.0, None, 1300.0)
    _, suspect = watched(10_000.0, 7.0, 1300.0)
    assert 15 <= quiet <= suspect <= 1300.0 / USUAL_TIMINGS.suspect_listings_age_s + 2


def test_without_a_gone_symbol_the_lists_are_requested_once_an_hour() -> None:
    turns, requests = watched(100.0, None, 3 * USUAL_TIMINGS.listings_age_s + 200.0)
    assert not turns
    assert requests <= 5
