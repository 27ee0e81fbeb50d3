"""The Python client of strategies: candles, slices, frames and drawings as arrays, and following live with factors."""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from klinesync.client import (
    AsyncKlinesync,
    BadTime,
    ClosedCandle,
    Klinesync,
    ServiceError,
    System,
    UnknownFactor,
    Update,
    tables,
)
from klinesync.client import service as client_service
from klinesync.core.errors import BadSeriesId, Rejected
from klinesync.sim.server import SimConfig, SimServer
from support.candles import ohlcv
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
FLAGS = {
    "factor_pivot_window_major": "5",
    "factor_pivot_window_minor": "2",
    "indicators": "SMA(20),EMA(21),MACD(12,26,9)",
    "enable_derived_timeframes": "off",
}
FIRST = 1_700_000_040
ROOT = Path(__file__).parents[2]


def walk(count: int) -> list[dict[str, float]]:
    rng, price, rows = random.Random(9), 100.0, []
    for minute in range(count):
        close = round(price + rng.uniform(-1, 1), 3)
        high, low = max(price, close) + 0.5, min(price, close) - 0.5
        rows.append(
            {
                "candle_time": FIRST + 60 * minute,
                "open": price,
                "high": high,
                "low": low,
                "close": close,
                "volume": 1.0,
            }
        )
        price = close
    return rows


ROWS = walk(6000)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as running:
        yield running


async def get(service: Service, path: str, **params: object) -> Any:
    given = {name: str(value) for name, value in params.items()}
    return await service.answer(path, **{"series_id": BTC, **given})


def times(rows: list[dict[str, float]]) -> list[float]:
    return [row["candle_time"] for row in rows]


async def test_candles_are_arrays_and_long_histories_are_paged(service: Service) -> None:
    await service.ingest(BTC, ROWS)
    async with AsyncKlinesync(service.url) as client:
        candles = await client.candles(BTC, limit=3)
        assert candles.dtype == tables.CANDLE
        assert candles.tolist() == [tuple(row.values()) for row in ROWS[-3:]]
        whole = await client.history(BTC, 0)
        assert whole.tolist() == [tuple(row.values()) for row in ROWS]
        part = await client.history(BTC, FIRST + 60, FIRST + 60 * 5500)
        assert part["candle_time"].tolist() == times(ROWS[1:5500])
        assert len(await client.candles(BTC, before=FIRST)) == 0
        assert len(await client.history(BTC, FIRST + 60 * 9000)) == 0


async def test_slices_are_what_the_service_answers_with_indicators_as_columns(service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])
    at_time = FIRST + 60 * 250
    told = await get(service, "/api/factor/slices", at_time=at_time, window_candles=240)
    async with AsyncKlinesync(service.url) as client:
        slices = await client.slices(BTC, at_time, window=240)
        assert (str(slices.series), slices.at_time, slices.epoch) == (BTC, at_time, 0)
        snapshots = told["snapshots"]
        assert list(slices.snapshots) == list(snapshots)
        for name in ("ema_21", "macd_12_26_9.macdsignal"):
            points = snapshots[name.partition(".")[0]]["history"][name]
            assert slices.snapshots[name.partition(".")[0]].points[name].tolist() == [
                tuple(point.values()) for point in points
            ]
            assert slices.value(name) == points[-1]["value"]
        assert slices.events("pivot", "major") == snapshots["pivot"]["history"]["major"]
        assert slices.head("pen") == snapshots["pen"]["head"]
        columns = slices.columns()
        assert columns["time"].tolist() == times(ROWS[19:251])
        assert np.isnan(columns["macd_12_26_9.macdhist"][:10]).all()
        assert columns["sma_20"][-1] == slices.value("sma_20")
        early = await client.slices(BTC, FIRST + 60 * 5)
        assert math.isnan(early.value("macd_12_26_9.macd"))
        with pytest.raises(KeyError):
            early.value("rsi_14")
        nothing = await client.slices(BTC, FIRST - 1)
        assert (nothing.at_time, nothing.snapshots, len(nothing.columns()["time"])) == (None, {}, 0)
        assert "ema_21" in {one["key"] for one in await client.catalogue()}


async def test_frames_and_drawings_are_read_and_followed_with_a_cursor(service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])
    async with AsyncKlinesync(service.url) as client:
        frame = await client.frame(BTC, window=200)
        told = await get(service, "/api/frame/live", window_candles=200)
        assert frame.at_time == frame.slices.at_time == frame.drawings.at_time == told["time"]["aligned_time"]
        assert frame.drawings.active == told["draw_state"]["active_ids"]
        assert frame.drawings.new == told["draw_state"]["instruction_catalog_patch"]
        assert frame.drawings.points["ema_21"]["value"][-1] == frame.slices.value("ema_21")
        assert (await client.frame(BTC, FIRST + 60 * 9 + 30)).at_time == FIRST + 60 * 9
        again = await client.drawings(BTC, frame.drawings.cursor, window=200)
        assert (again.new, len(again.points["ema_21"])) == ([], 0)
        await service.ingest(BTC, ROWS[300:305])
        more = await client.drawings(BTC, again.cursor, window=200)
        assert more.points["ema_21"]["time"].tolist() == times(ROWS[300:305])


async def test_a_request_without_an_answer_raises_a_sentence(service: Service) -> None:
    async with AsyncKlinesync(service.url) as client:
        with pytest.raises(ServiceError, match="series_id") as refused:
            await client.candles("nonsense")
        assert refused.value.code == "bad_request"
    async with AsyncKlinesync("http://127.0.0.1:9") as client:
        with pytest.raises(ServiceError, match="cannot be reached") as refused:
            await client.candles(BTC)
        assert refused.value.code == "unreachable"


async def closed(updates: AsyncIterator[Update], count: int) -> list[ClosedCandle]:
    found: list[ClosedCandle] = []
    async for update in updates:
        if isinstance(update, ClosedCandle):
            found.append(update)
            if len(found) == count:
                break
    return found


async def check(client: AsyncKlinesync, found: list[ClosedCandle], rows: list[dict[str, float]]) -> None:
    """Each candle once, each with its own slice."""
    assert [update.candle for update in found] == [
        ohlcv(int(row["candle_time"]), list(row.values())[1:]) for row in rows
    ]
    for update in found:
        assert update.slices is not None
        assert update.slices.at_time == update.candle.time
    for update in found[::7]:
        slices = await client.slices(BTC, update.candle.time)
        assert update.slices is not None
        assert update.slices.value("ema_21") == slices.value("ema_21")
        assert update.slices.head("pen") == slices.head("pen")


async def test_candles_come_with_the_slices_of_their_close(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with running_service(store, **FLAGS) as service:
        url = service.url
        await service.ingest(BTC, ROWS[:200])
        async with (
            AsyncKlinesync(url) as client,
            aclosing(client.follow(BTC, FIRST + 60 * 149, factors=True)) as updates,
        ):
            await check(client, await closed(updates, 50), ROWS[150:200])
            await service.ingest(BTC, ROWS[200:210])
            await check(client, await closed(updates, 10), ROWS[200:210])
            await service.ingest(BTC, [ROWS[180] | {"high": 500.0}])
            (revised,) = await closed(updates, 1)
            assert (revised.revised, revised.candle.high) == (True, 500.0)
            assert revised.slices is not None
            assert revised.slices.epoch == 1
            await service.ingest(BTC, ROWS[210:215])
            await check(client, await closed(updates, 5), ROWS[210:215])


async def test_lagging_factors_delay_the_candle_and_an_update_reports_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_service, "LAGGING_AFTER_S", 0.0)
    await service.ingest(BTC, ROWS[:100])
    lagging = 3
    asked = AsyncKlinesync.slices_after

    async def slices_after(self: AsyncKlinesync, *args: Any, **kwargs: Any) -> Any:
        nonlocal lagging
        lagging -= 1
        if lagging >= 0:
            raise ServiceError("ledger_out_of_sync:factor", "ledger_out_of_sync:factor")
        return await asked(self, *args, **kwargs)

    monkeypatch.setattr(AsyncKlinesync, "slices_after", slices_after)
    seen: list[Update] = []
    async with (
        AsyncKlinesync(service.url) as client,
        aclosing(client.follow(BTC, FIRST + 60 * 97, factors=True)) as updates,
    ):
        async for update in updates:
            seen.append(update)
            if sum(isinstance(one, ClosedCandle) for one in seen) == 2:
                break
    assert [one.event for one in seen if isinstance(one, System)] == ["factor.lagging"]
    found = [one for one in seen if isinstance(one, ClosedCandle)]
    assert [one.candle.time for one in found] == times(ROWS[98:100])
    assert all(one.slices is not None for one in found)


async def test_the_blocking_client_gives_the_same_answers(service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])

    def strategy() -> tuple[Any, ...]:
        with Klinesync(service.url) as client:
            head = int(client.candles(BTC, limit=1)["candle_time"][0])
            found = []
            for update in client.follow(BTC, head - 600, factors=True):
                if isinstance(update, ClosedCandle):
                    found.append(update)
                    if update.candle.time == head:
                        break
            kept = client.follow(BTC)  # left unchanged
            next(kept)
            with pytest.raises(ServiceError):
                client.slices("nonsense")
            with pytest.raises(BadSeriesId):
                next(client.follow("binance:nowhere:BTC/USDT:1m"))
            with pytest.raises(ServiceError):
                next(client.follow("nobody:spot:BTC/USDT:1m"))
            everything = client.history(BTC, 0), client.slices(BTC), client.frame(BTC), client.drawings(BTC)
            return found, *everything, client.catalogue()

    found, candles, slices, frame, drawings, catalogue = await asyncio.to_thread(strategy)
    async with AsyncKlinesync(service.url) as client:
        await check(client, found, ROWS[290:300])
        assert candles.tolist() == (await client.history(BTC, 0)).tolist()
        assert slices.head("anchor") == (await client.slices(BTC)).head("anchor")
        assert frame.drawings.active == drawings.active == (await client.drawings(BTC)).active
        assert catalogue == await client.catalogue()


@pytest.mark.parametrize(
    ("example", "expected"), [("strategy.py", {b"long", b"short", b"flat"}), ("strategy_async.py", {b"long", b"short"})]
)
async def test_the_examples_trade(example: str, expected: set[bytes], tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, factor_pivot_window_major="5") as service,
    ):
        head = None
        while head is None:
            _, page = await service.get("/api/factor/health", series_id=BTC)
            head = page.get("factor_head_time")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            str(ROOT / "examples" / example),
            service.url,
            BTC,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        seen: set[bytes] = set()
        try:
            while not expected <= seen:
                line = await asyncio.wait_for(process.stdout.readline(), 60)
                assert line, (await process.stderr.read()).decode()
                seen |= set(line.split())
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def test_without_pandas_a_sentence_says_what_to_install() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(tables.NoPandas, match=r"klinesync\[pandas\]"):
            tables.to_pandas(np.empty(0, tables.CANDLE))


async def test_the_first_call_opens_connections_and_the_end_of_the_program_closes_them(
    service: Service,
) -> None:
    await service.ingest(BTC, ROWS[:300])
    program = f"""
from klinesync.client import Klinesync
client = Klinesync({service.url!r})
print(len(client.candles({BTC!r}, limit=3)), len(Klinesync({service.url + "/"!r}).candles({BTC!r}, limit=4)))
updates = client.follow({BTC!r}, 0)
print(type(next(updates)).__name__)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        printed, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (printed.decode(), errors.decode(), process.returncode) == ("3 4\nConnected\n", "", 0)


async def test_a_closed_client_raises_closed(service: Service) -> None:
    def program() -> None:
        client = Klinesync(service.url)
        client.close()
        client.close()
        with pytest.raises(ServiceError, match="make a new one") as refused:
            client.candles(BTC)
        assert refused.value.code == "closed"
        with Klinesync(service.url) as other:
            updates = other.follow(BTC)
            next(updates)
        with pytest.raises(ServiceError, match="closed"):
            next(updates)

    await asyncio.to_thread(program)


async def test_a_client_outlives_an_event_loop(service: Service) -> None:
    await service.ingest(BTC, ROWS[:10])
    client = AsyncKlinesync(service.url)

    def program() -> list[int]:
        async def ask() -> int:
            count = len(await client.candles(BTC))
            await client.close()
            return count

        return [asyncio.run(ask()), asyncio.run(ask())]

    assert await asyncio.to_thread(program) == [10, 10]


async def test_times_are_seconds_datetimes_or_text(service: Service) -> None:
    await service.ingest(BTC, ROWS[:100])
    at = FIRST + 60 * 49
    moment = datetime.fromtimestamp(at, UTC)
    async with AsyncKlinesync(service.url) as client:
        for time in (at, float(at), np.int64(at), moment, moment.replace(tzinfo=None), moment.isoformat(), str(at)):
            assert (await client.candles(BTC, since=time))["candle_time"].tolist() == times(ROWS[50:100])
            assert len(await client.candles(BTC, before=time)) == 49
            assert len(await client.history(BTC, time)) == 51
            assert len(await client.history(BTC, 0, time)) == 49
            assert (await client.slices(BTC, time)).at_time == at
            assert (await client.slices_after(BTC, time, limit=1))[0].at_time == at + 60
            assert (await client.frame(BTC, time)).at_time == at
            assert (await client.drawings(BTC, at_time=time)).at_time == at
            async with aclosing(client.follow(BTC, time)) as updates:
                assert (await closed(updates, 1))[0].candle.time == at + 60
        with pytest.raises(BadTime, match="milliseconds"):
            await client.candles(BTC, since=at * 1000)
        with pytest.raises(BadTime, match="yesterday"):
            await anext(client.follow(BTC, "yesterday"))


ETH = "binance:spot:ETH/USDT:1m"


async def ingest_eth(service: Service, rows: list[dict[str, float]]) -> None:
    status, answer = await service.post("/api/market/ingest/candles_closed", {"series_id": ETH, "candles": rows})
    assert status == 200, answer


async def test_several_series_are_followed_history_in_the_order_of_time_then_live(service: Service) -> None:
    await service.ingest(BTC, ROWS[:2500])  # more than one catch-up has
    await ingest_eth(service, ROWS[1000:2600])
    async with (
        AsyncKlinesync(service.url) as client,
        aclosing(client.follow([BTC, ETH, BTC], FIRST - 60, factors=True)) as updates,
    ):
        history = await closed(updates, 4100)
        keys = [(update.candle.time, str(update.series)) for update in history]
        assert keys == sorted(keys)
        assert [time for time, name in keys if name == BTC] == times(ROWS[:2500])
        assert [time for time, name in keys if name == ETH] == times(ROWS[1000:2600])
        for update in history[::400]:
            assert update.slices is not None
            assert (update.slices.series, update.slices.at_time) == (update.series, update.candle.time)
        await service.ingest(BTC, ROWS[2500:2501])  # older than ETH's candles, and not held back
        await ingest_eth(service, ROWS[2600:2601])
        live = await closed(updates, 2)
        assert {(str(update.series), update.candle.time) for update in live} == {
            (BTC, ROWS[2500]["candle_time"]),
            (ETH, ROWS[2600]["candle_time"]),
        }


async def test_one_series_that_is_refused_is_an_error_that_names_it(service: Service) -> None:
    async with AsyncKlinesync(service.url) as client:
        with pytest.raises(ServiceError, match="nobody:spot") as refused:
            await closed(client.follow([BTC, "nobody:spot:BTC/USDT:1m"], 0), 1)
        assert refused.value.code == "unknown_series"
        with pytest.raises(Rejected, match="needs a series"):
            await anext(client.follow([]))
        with pytest.raises(Rejected, match="closed, forming, corrections"):
            await anext(client.follow(BTC, what=["clsoed"]))  # type: ignore[list-item]
        with pytest.raises(ServiceError, match="takes 1000 series, not 1001"):
            await anext(client.follow([f"binance:spot:A{at}/USDT:1m" for at in range(1001)]))


async def test_an_unknown_factor_lists_the_known_ones_and_reprs_are_one_line(
    service: Service,
) -> None:
    await service.ingest(BTC, ROWS[:300])
    async with AsyncKlinesync(service.url) as client:
        slices = await client.slices(BTC, window=200)
        with pytest.raises(UnknownFactor, match=r"'rsi_14'; there are: ema_21, macd_12_26_9\.macd, .*, sma_20$"):
            slices.value("rsi_14")
        with pytest.raises(UnknownFactor, match=r"'macd_12_26_9'; there are: .*macd_12_26_9\.macdsignal"):
            slices.value("macd_12_26_9")
        with pytest.raises(UnknownFactor, match=r"there are: .*pen, pivot"):
            slices.head("pens")
        with pytest.raises(KeyError, match=r"there are: major$"):
            slices.events("pivot", "middle")
        with pytest.raises(UnknownFactor, match=r"has no candle at that time$"):
            (await client.slices(BTC, 0)).value("ema_21")
        frame = await client.frame(BTC)
        shown = [repr(one) for one in (client, Klinesync(service.url), slices, frame, frame.drawings)]
        shown += [repr(snapshot) for snapshot in slices.snapshots.values()]
        async with aclosing(client.follow(BTC, FIRST, factors=True)) as updates:
            shown += [repr((await closed(updates, 1))[0]), repr(slices.series)]
        assert not [text for text in shown if "\n" in text or len(text) > 600 or " at 0x" in text]
        assert shown[0] == f"AsyncKlinesync({service.url!r})"
        assert shown[1] == f"Klinesync({service.url!r})"
        assert shown[2].startswith(f"Slices('{BTC}', at_time={slices.at_time}, epoch=0, ")
        assert "ema_21" in shown[2]


def test_every_public_method_explains_each_parameter() -> None:
    for kind in (AsyncKlinesync, Klinesync):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_"):
                continue
            text = inspect.getdoc(method)
            assert text is not None, f"{kind.__name__}.{name}"
            assert "See `" not in text
            for parameter in list(inspect.signature(method).parameters)[1:]:
                assert re.search(rf"^{parameter}: ", text, re.MULTILINE), f"{kind.__name__}.{name}: {parameter}"


@pytest.mark.parametrize("example", ["strategy.py", "strategy_async.py"])
async def test_ctrl_c_ends_the_examples_quietly(example: str, service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        str(ROOT / "examples" / example),
        service.url,
        BTC,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert errors.decode() == ""
    assert process.returncode == 0
