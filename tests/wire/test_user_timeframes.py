"""Timeframes that no exchange has, over real sockets: computed, streamed, read far back, on the whitelist, refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from math import isclose
from pathlib import Path

import pytest

from klinesync.core.candle import ROUNDING, Candle
from klinesync.core.errors import BadFlag
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.market.tuning import Tuning
from klinesync.market_data.verify import verify
from klinesync.sim.exchange import Grid
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite_reader import SqliteReader
from support.candles import ohlcv
from support.derived_candles import roll_up
from support.history_files import write_freqtrade
from support.processes import in_process, klinesync
from support.running_service import Service, retrying, running_service
from support.upstream import truth

BASE = SeriesId.parse("binance:spot:ETH/USDT:1m")
MINUTE = BASE.timeframe
TARGETS = "5m,10m,15m,45m,90m,1h,4h,1d,2d"
START = 1_700_000_130
NEWEST = START // 60 * 60 - 60
PATIENCE_S = 40.0
ON_DEMAND = {"enable_whitelist_ingest": "off", "audit_interval_s": "0", "derived_timeframes": TARGETS}


def frame(code: str) -> Timeframe:
    return Timeframe.parse(code)


# A jump of the exchange's clock is seen soon.
RETRYING = retrying(0.2, tuning=Tuning(clock_age_s=0.2))


def theirs(exchange: SimServer, series: SeriesId, first: int, end: int) -> list[Candle]:
    """The candles of that timeframe that open in `[first, end)`, as the exchange would have them."""
    listing = exchange.exchange.spot[series.symbol.replace("/", "")]
    return [Candle(*row[:6]) for row in listing.candles(Grid(series.timeframe), first, end, end * 1000).rows()]


def alike(some: Sequence[Candle], others: Sequence[Candle]) -> bool:
    """Whether they are equal except for the rounding of volumes."""
    return len(some) == len(others) and all(
        one[:5] == other[:5] and isclose(one.volume, other.volume, rel_tol=ROUNDING)
        for one, other in zip(some, others, strict=True)
    )


async def page(service: Service, series: SeriesId, **params: int) -> list[Candle]:
    status, answer = await service.get("/api/market/candles", series_id=str(series), **params)
    assert status == 200, answer
    rows = answer["candles"]
    assert isinstance(rows, list)
    return [Candle(*row.values()) for row in rows]


async def until_page(service: Service, series: SeriesId, count: int, **params: int) -> list[Candle]:
    """The page, once it has that many candles; polled."""
    candles: list[Candle] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(candles := await page(service, series, **params)) < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{len(candles)} candles of {series}, {count} are due") from None
    return candles


def check_store(store: Path) -> None:
    with SqliteReader(store) as reader:
        audits = verify(reader, MINUTE, [frame(code) for code in TARGETS.split(",")])
        assert {audit.series: audit.kinds for audit in audits if audit.kinds} == {}


@pytest.mark.parametrize(("code", "count"), [("10m", 700), ("45m", 600), ("90m", 600), ("2d", 30)])
async def test_a_page_reaches_behind_the_base_with_what_is_folded_of_the_exchanges_longest_timeframe(
    code: str, count: int, tmp_path: Path
) -> None:
    store, series = tmp_path / "store.sqlite", BASE.with_timeframe(frame(code))
    async with (
        SimServer(SimConfig(symbols=3, start=START)) as exchange,
        running_service(store, exchange, None, RETRYING, **ON_DEMAND) as service,
    ):
        candles = await until_page(service, series, min(count, 500), limit=500)
        if count > 500:
            candles = [
                *await until_page(service, series, count - 500, before=candles[0].time, limit=count - 500),
                *candles,
            ]
        step_s = series.timeframe.step_s
        assert [candle.time for candle in candles] == list(range(candles[0].time, candles[-1].time + 1, step_s))
        assert candles[-1].time == series.timeframe.latest_closed(NEWEST + 60)
        assert alike(candles, theirs(exchange, series, candles[0].time, candles[-1].time + step_s))
        minutes = await page(service, BASE, since=0, limit=5000)
        assert len(minutes) == 2000, "the folded candles are stored alone"
        whole = truth(exchange, BASE, range(series.timeframe.ceil(minutes[0].time), series.timeframe.floor(START), 60))
        rolled = roll_up(whole, MINUTE, (series.timeframe,))[series.timeframe] if whole else []
        assert candles[len(candles) - len(rolled) :] == rolled, "bit for bit, where the base gives them"
        status, health = await service.get("/api/market/health", series_id=str(series))
        assert (status, health["status"], health["timeframe_seconds"]) == (200, "green", step_s), health
    check_store(store)


async def test_it_is_on_the_whitelist_streamed_forming_and_closed_and_its_factors_are_computed(tmp_path: Path) -> None:
    store, tens = tmp_path / "store.sqlite", BASE.with_timeframe(frame("10m"))
    flags = {
        "whitelist": str(tens),
        "derived_timeframes": "10m,45m",  # without the parents in the chain
        "startup_kline_sync_target_candles": "100",
        "derived_native_candles": "0",
        "enable_ondemand_ingest": "off",
    }
    async with (
        SimServer(SimConfig(symbols=3, start=START, speed=300)) as exchange,
        running_service(store, exchange, None, RETRYING, **flags) as service,
    ):
        closed: list[Candle] = []
        last: Candle | None = None
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(tens), "since": START - 1800, "ack": True})
            async with asyncio.timeout(PATIENCE_S):
                while len(closed) < 6:
                    message = (await socket.receive()).json()
                    assert message["type"] != "error", message
                    if message["type"] == "candle_forming":
                        last = Candle(*message["candle"].values())
                        assert last.time % 600 == 0
                    if message["type"] == "candle_closed":
                        closed.append(Candle(*message["candle"].values()))
        assert last is not None
        times = [candle.time for candle in closed]
        assert times == list(range(times[0], times[-1] + 1, 600))
        whole = truth(exchange, BASE, range(times[0], times[-1] + 600, 60))
        assert closed == roll_up(whole, MINUTE, (tens.timeframe,))[tens.timeframe]
        assert [job.series_id for job in service.runtime.supervisors.jobs_state()] == [str(BASE)]
        status, listed = await service.get("/api/market/whitelist")
        assert (status, listed["derived_timeframes"]) == (200, ["10m", "45m"])
        status, slices = await service.get("/api/factor/slices", series_id=str(tens), at_time=times[-2])
        assert (status, slices["candle_id"]) == (200, f"{tens}:{times[-2]}"), slices


async def test_what_is_neither_derived_nor_the_exchanges_is_unknown_with_the_flag_that_would_give_it(
    tmp_path: Path,
) -> None:
    forty = BASE.with_timeframe(frame("40m"))
    sentence = (
        f"series {forty} is unknown: binance has no 40m candles; it has {' '.join(Timeframe.known)}; "
        "add 40m to the flag derived_timeframes to have it computed from 1m"
    )
    async with (
        SimServer(SimConfig(symbols=3, start=START)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, None, RETRYING, **ON_DEMAND) as service,
    ):
        for path in ("/api/market/candles", "/api/market/health", "/api/market/explain", "/api/factor/health"):
            status, answer = await service.get(path, series_id=str(forty))
            assert (status, answer["code"]) == (404, "unknown_series"), (path, answer)
            assert "binance has no 40m candles" in str(answer["detail"]), path
        status, answer = await service.get("/api/market/candles", series_id=str(forty))
        assert answer["detail"] == sentence
        status, answer = await service.post("/api/market/ingest/backfill", {"series_id": str(forty), "from": 0})
        assert (status, answer["detail"]) == (404, sentence)
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(forty)})
            message = await socket.receive_json(timeout=30)
            assert (message["code"], message["message"]) == ("unknown_series", sentence)
        assert service.runtime.supervisors.jobs_state() == []
        nowhere = SeriesId.parse("binance:spot:NO/PE:40m")
        status, answer = await service.get("/api/market/candles", series_id=str(nowhere))
        assert status == 404
        assert "derived_timeframes" not in str(answer["detail"]), "its base is unknown too"
        known = SeriesId.parse("binance:spot:NO/PE:45m")
        status, answer = await service.get("/api/market/candles", series_id=str(known))
        assert (status, answer["detail"]) == (
            404,
            f"series {known} is unknown: binance lists no such symbol on its spot market",
        )
        for code, why in (("7m", "does not divide a day"), ("60m", "is written 1h"), ("7d", "is written 1w")):
            status, answer = await service.get("/api/market/candles", series_id=f"binance:spot:ETH/USDT:{code}")
            assert (status, answer["code"]) == (422, "bad_request")
            assert why in str(answer["detail"])


async def test_a_whitelist_with_a_timeframe_that_nobody_has_stops_the_start_with_the_flag(tmp_path: Path) -> None:
    forty = BASE.with_timeframe(frame("40m"))
    async with SimServer(SimConfig(symbols=3, start=START)) as exchange:
        with pytest.raises(BadFlag, match=r"binance has no 40m candles.*add 40m to the flag derived_timeframes"):
            async with running_service(tmp_path / "store.sqlite", exchange, None, RETRYING, whitelist=str(forty)):
                pass


async def test_a_stored_series_of_a_timeframe_that_nobody_has_any_more_is_served_and_comes_back(tmp_path: Path) -> None:
    store, series = tmp_path / "store.sqlite", BASE.with_timeframe(frame("45m"))
    flags = ON_DEMAND | {"derived_native_candles": "0"}
    async with SimServer(SimConfig(symbols=3, start=START, speed=60)) as exchange:
        async with running_service(store, exchange, None, RETRYING, **flags) as service:
            before = await until_page(service, series, 40, limit=40)
        async with running_service(store, exchange, None, RETRYING, **flags | {"derived_timeframes": "5m"}) as service:
            assert await page(service, series, limit=40) == before
            status, answer = await service.post(
                "/api/market/ingest/candle_closed",
                {"series_id": str(series), "candle": dict(zip(
                    ("candle_time", "open", "high", "low", "close", "volume"), before[-1].ohlcv, strict=True
                ))},
            )  # fmt: skip
            assert (status, answer["code"]) == (422, "derived_series")
            first = (await page(service, BASE, since=0, limit=1))[0].time
            corrected = truth(exchange, BASE, [before[-1].time])[0]._replace(high=1e6)
            await service.runtime.market_data.ingest_candles_closed(BASE, [corrected])
            assert (await page(service, series, limit=1))[0].high == 1e6, "it follows its base"
            assert first <= before[0].time
        async with running_service(
            store, exchange, None, RETRYING, **flags | {"derived_timeframes": "45m,1d"}
        ) as service:
            after = await until_page(service, series, 40, since=before[0].time - 1, limit=40)
            assert after[:-1] == before[:-1]
            assert after[-1].high == 1e6
    check_store(store)


def test_commands_take_a_series_of_such_a_timeframe(tmp_path: Path) -> None:
    series, other = BASE.with_timeframe(frame("45m")), BASE.with_timeframe(frame("40m"))
    flags = (f"--database-url=sqlite:///{tmp_path}/store.sqlite", "--derived-timeframes=45m,2d")
    start = series.timeframe.floor(NEWEST) - 10 * 2700

    async def backfilled() -> list[Candle]:
        """The traded candles of the span that the command has read."""
        async with SimServer(SimConfig(symbols=3, start=START)) as exchange:
            span = f"--from={start}", f"--to={start + 8 * 2700}", f"--binance-spot-rest-url={exchange.http_url}"
            status, out, told = await asyncio.to_thread(klinesync, "backfill", str(series), *span, "--json", *flags)
            assert (status, json.loads(out)["series_id"], json.loads(out)["candles"]) == (0, str(BASE), 360), told
            status, _, told = await asyncio.to_thread(klinesync, "backfill", str(other), *span, *flags)
            assert (status, "binance has no 40m candles; it has 1m" in told) == (1, True), told
            return truth(exchange, BASE, range(start, start + 8 * 2700, 60))

    expected = roll_up(asyncio.run(backfilled()), MINUTE, (series.timeframe,))[series.timeframe]
    status, _, told = in_process("verify", str(series), *flags)
    assert status == 0, told
    status, _, told = in_process("export", str(series), "--format=csv", f"--output={tmp_path}/out.csv", flags[0])
    assert status == 0, told
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert [ohlcv(int(row[0]), map(float, row[1:6])) for row in rows] == expected
    status, _, told = in_process(
        "export", str(series), "--format=feather", f"--output={tmp_path}", "--freqtrade", flags[0]
    )
    assert (status, (tmp_path / "ETH_USDT-45m.feather").exists()) == (0, True), told
    status, _, told = in_process("import", f"{tmp_path}/ETH_USDT-45m.feather", *flags)
    assert (status, f"{series} is derived from 1m: import the 1m candles instead" in told) == (1, True), told
    written = [Candle(2400 * at, 2.0, 3.0, 1.0, 2.0, 1.0) for at in (7, 8)]
    status, _, told = in_process("import", str(write_freqtrade(tmp_path / "ETH_USDT-40m.json", written)), *flags)
    assert status == 0, told
    status, out, told = in_process("verify", "--json", *flags)
    assert (status, str(other) in {audit["series_id"] for audit in json.loads(out)["series"]}) == (0, True), told
