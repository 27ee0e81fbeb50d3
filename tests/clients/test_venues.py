"""The doubles of venues answer the requests of unmodified ccxt, and fail on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import ccxt.pro
import pytest

from venues import faults, hyperliquid
from venues.bybit import Bybit
from venues.faults import Ask, DateHeader, Drip, Fault, Hang, StreamFault, too_many
from venues.gate import Gate
from venues.hyperliquid import Hyperliquid
from venues.kraken import Kraken
from venues.market import Pair
from venues.okx import Okx
from venues.pointed import maker
from venues.venue import Venue

MINUTE_MS = 60_000
# Factor by which a venue's time passes faster than ours, so that ccxt spaces its requests less.
SPEED = 20.0
ALL = (Okx, Bybit, Kraken, Gate, Hyperliquid)
WITH_STREAM = (Okx, Bybit)


def double(kind: type[Venue], **settings: object) -> Venue:
    if kind is Hyperliquid:
        settings = {"pairs": hyperliquid.DEFAULT_PAIRS} | settings
    return kind(**settings)


def symbol(venue: Venue, pair: Pair) -> str:
    return pair.symbol if pair.settle is None else f"{pair.symbol}:{pair.settle}"


@pytest.fixture(params=ALL, ids=lambda kind: kind.name)
async def venue(request: pytest.FixtureRequest) -> AsyncIterator[Venue]:
    # Without a start time, ccxt requests the newest rows of hyperliquid by this machine's clock.
    async with double(request.param, speed=1.0 if request.param is Hyperliquid else SPEED) as running:
        yield running


@pytest.fixture
async def client(venue: Venue) -> AsyncIterator[ccxt.pro.Exchange]:
    made = maker(venue, timeout_s=0.5)(venue.name)
    yield made
    await made.close()


async def test_the_list_of_markets_and_the_time_are_the_venues(venue: Venue, client: ccxt.pro.Exchange) -> None:
    markets = await client.load_markets()
    spot_only = isinstance(venue, Kraken)
    assert set(markets) == {symbol(venue, pair) for pair in venue.pairs if pair.settle is None or not spot_only}
    assert all(market["active"] is not False for market in markets.values())
    assert abs(await client.fetch_time() - venue.now_ms()) < 2000 * SPEED


async def test_rows_are_those_of_the_model_from_a_time_on_and_the_newest(
    venue: Venue, client: ccxt.pro.Exchange
) -> None:
    pair = next(iter(venue.pairs))
    now_ms = venue.now_ms() // MINUTE_MS * MINUTE_MS
    for since_ms, limit in ((now_ms - 30 * MINUTE_MS, 5), (None, 5)):
        rows = await client.fetch_ohlcv(symbol(venue, pair), "1m", since_ms, limit)
        assert len(rows) == 5
        if since_ms is not None:
            assert rows[0][0] == since_ms
        for row in rows:
            if row[0] < now_ms:
                final = venue.candles.final(pair, 60, row[0] // 1000)
                assert final is not None
                assert row == [final.time * 1000, *final[1:]]


@pytest.mark.parametrize("fault", [faults.SERVER_ERROR, faults.UNAVAILABLE, faults.FORBIDDEN, too_many("60")])
async def test_a_status_is_an_error_with_that_status_in_its_text(
    venue: Venue, client: ccxt.pro.Exchange, fault: faults.Status
) -> None:
    venue.fail(fault, Ask.TIME)
    with pytest.raises(ccxt.pro.BaseError) as caught:
        await client.fetch_time()
    assert isinstance(caught.value, ccxt.pro.RateLimitExceeded) or str(fault.status) in str(caught.value)
    venue.mend()
    assert await client.fetch_time()


@pytest.mark.parametrize("fault", [Hang(), Drip(0.3)], ids=["hang", "drip"])
async def test_an_answer_that_does_not_come_is_a_timeout(venue: Venue, client: ccxt.pro.Exchange, fault: Fault) -> None:
    venue.fail(fault)
    with pytest.raises(ccxt.pro.RequestTimeout):
        await client.fetch_time()


async def test_a_venue_that_refuses_connections_cannot_be_reached_and_comes_back(
    venue: Venue, client: ccxt.pro.Exchange
) -> None:
    assert await client.fetch_time()
    await venue.refuse_connections()
    with pytest.raises(ccxt.pro.NetworkError):
        await client.fetch_time()
    await venue.listen()
    assert await client.fetch_time()


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_list_can_be_shrunken_or_empty(venue: Venue, client: ccxt.pro.Exchange, share: float) -> None:
    whole = len(await client.load_markets())
    venue.listed_share = share
    venue.pairs.sort(key=lambda pair: pair.settle is not None)
    assert len(await client.load_markets(reload=True)) < whole


async def test_the_date_and_the_time_can_be_ahead_or_absent(venue: Venue, client: ccxt.pro.Exchange) -> None:
    venue.clock_ahead_s = 30.0
    before_ms = venue.now_ms()
    assert before_ms + 29_000 <= await client.fetch_time() <= venue.now_ms() + 30_000
    assert "Date" in client.last_response_headers
    venue.date = DateHeader.OFF
    await client.fetch_time()
    assert "Date" not in client.last_response_headers


@pytest.mark.parametrize("kind", [Gate, Kraken, Hyperliquid])
async def test_what_lies_behind_the_depth_is_not_to_be_had(kind: type[Venue]) -> None:
    async with double(kind, speed=SPEED) as venue:
        client = maker(venue)(venue.name)
        try:
            assert venue.depth is not None
            since_ms = (venue.now_ms() // MINUTE_MS - venue.depth - 100) * MINUTE_MS
            name = symbol(venue, venue.pairs[0])
            if kind is Gate:
                with pytest.raises(ccxt.pro.BadRequest, match="too long ago"):
                    await client.fetch_ohlcv(name, "1m", since_ms, 100)
            else:
                rows = await client.fetch_ohlcv(name, "1m", since_ms, venue.depth)
                assert rows[0][0] > since_ms
        finally:
            await client.close()


@pytest.mark.parametrize("kind", ALL)
async def test_a_row_changes_behind_its_end_and_stays_as_it_is_then(kind: type[Venue]) -> None:
    venue = double(kind, late_ms=3000, always_late=True)
    pair, open_s = venue.pairs[0], venue.now_ms() // MINUTE_MS * 60 - 600
    end_ms = (open_s + 60) * 1000
    final = venue.candles.final(pair, 60, open_s)
    assert venue.candles.row(pair, 60, open_s, end_ms) != final
    assert venue.candles.row(pair, 60, open_s, end_ms + 2999) != final
    assert venue.candles.row(pair, 60, open_s, end_ms + 3000) == final


@pytest.mark.parametrize("kind", WITH_STREAM)
async def test_the_stream_shows_the_candle_in_progress_and_its_end(kind: type[Venue]) -> None:
    async with double(kind, speed=60) as venue:
        client = maker(venue)(venue.name)
        try:
            seen: dict[int, list[float]] = {}
            async with asyncio.timeout(60):
                while len(seen) < 4:
                    for row in await client.watch_ohlcv("BTC/USDT", "1m"):
                        seen[row[0]] = list(row)
            for time_ms in sorted(seen)[:-1]:
                final = venue.final("BTC/USDT", time_ms // 1000)
                assert final is not None
                assert seen[time_ms] == [time_ms, *final[1:]]
            await client.un_watch_ohlcv("BTC/USDT", "1m")
        finally:
            await client.close()


@pytest.mark.parametrize("fault", list(StreamFault), ids=lambda fault: fault.value)
@pytest.mark.parametrize("kind", WITH_STREAM)
async def test_a_stream_fails_as_it_is_told_to(kind: type[Venue], fault: StreamFault) -> None:
    async with double(kind, speed=60) as venue:
        venue.stream_fault = fault
        client = maker(venue)(venue.name)
        try:
            rows: list[list[float]] = []
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(1.5):
                    while True:
                        rows += await client.watch_ohlcv("BTC/USDT", "1m")
            except TimeoutError:
                assert fault is not StreamFault.REFUSED
            except ccxt.pro.NetworkError:
                assert fault is StreamFault.REFUSED
            assert venue.handshakes[0] >= began_s
            if fault in (StreamFault.REFUSED, StreamFault.SILENT):
                assert rows == []
            elif fault is StreamFault.FROZEN:
                assert len({tuple(row) for row in rows}) == 1
            else:
                final = {row[0]: venue.final("BTC/USDT", row[0] // 1000) for row in map(tuple, rows)}
                assert all(row[4] != final[row[0]].close for row in map(tuple, rows))
        finally:
            await client.close()


async def test_a_venue_can_enforce_what_it_allows_in_a_minute() -> None:
    async with double(Hyperliquid) as venue:
        venue.enforces_budget, venue.weight_per_minute = True, 300.0
        client = maker(venue)(venue.name)
        try:
            await client.load_markets()
            since_ms = venue.now_ms() - 4000 * MINUTE_MS
            asked = [client.fetch_ohlcv("BTC/USDC:USDC", "1m", since_ms, 4000) for _ in range(4)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, ccxt.pro.RateLimitExceeded)]
            assert 0 < len(refused) < len(answers)
        finally:
            await client.close()
