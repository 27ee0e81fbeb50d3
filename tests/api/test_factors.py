"""Factors and drawings over HTTP: of one candle, without look-ahead, and refused while the ledgers lag."""

import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import talib
from numpy import array

from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
FLAGS = {
    "factor_pivot_window_major": "5",
    "factor_pivot_window_minor": "2",
    "indicators": "SMA(20),MACD(12,26,9)",
    "enable_derived_timeframes": "off",
}
FIRST = 1_700_000_040
COUNT = 700


def walk(count: int = COUNT, seed: int = 7) -> list[dict[str, float]]:
    rng, price, rows = random.Random(seed), 100.0, []
    for minute in range(count):
        close = round(price + rng.uniform(-1, 1), 3)
        high, low = max(price, close) + rng.random(), min(price, close) - rng.random()
        rows.append(
            {
                "candle_time": FIRST + 60 * minute,
                "open": price,
                "high": round(high, 3),
                "low": round(low, 3),
                "close": close,
                "volume": 1.0,
            }
        )
        price = close
    return rows


ROWS = walk()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as running:
        yield running


async def get(service: Service, path: str, **params: str | int) -> Any:
    return await service.answer(path, series_id=BTC, **params)


def known_at(slices: Any, time: int) -> dict[str, list[Any]]:
    """The events of a slice that had become visible at a time."""
    found: dict[str, list[Any]] = {}
    for name in ("pivot", "pen", "zhongshu"):
        for events in slices["snapshots"][name]["history"].values():
            found[name] = [event for event in events if event["visible_time"] <= time]
    return found


async def test_a_slice_of_the_past_has_no_look_ahead(service: Service) -> None:
    await service.ingest(BTC, ROWS[:400])
    then = await get(service, "/api/factor/slices", window_candles=300)
    await service.ingest(BTC, ROWS[400:])
    time = int(ROWS[399]["candle_time"])
    assert await get(service, "/api/factor/slices", window_candles=300, at_time=time + 59) == then
    assert then["at_time"] == time
    assert then["candle_id"] == f"{BTC}:{time}"
    now = await get(service, "/api/factor/slices", window_candles=COUNT)
    assert now["factors"] == ["pivot", "pen", "zhongshu", "anchor", "sma_20", "macd_12_26_9"]
    whole = await get(service, "/api/factor/slices", window_candles=400, at_time=time)
    assert known_at(now, time) == known_at(whole, time)
    assert len(known_at(now, 1 << 40)["pivot"]) > len(known_at(now, time)["pivot"]) > 10
    for snapshot in now["snapshots"].values():
        assert snapshot["meta"]["at_time"] == ROWS[-1]["candle_time"]


async def test_indicators_are_talibs(service: Service) -> None:
    await service.ingest(BTC, ROWS)
    slices = await get(service, "/api/factor/slices", window_candles=500)
    closes = array([row["close"] for row in ROWS])
    expected = {"sma_20": talib.SMA(closes, 20)}
    names = ("macd_12_26_9.macd", "macd_12_26_9.macdsignal", "macd_12_26_9.macdhist")
    expected |= dict(zip(names, talib.MACD(closes, 12, 26, 9), strict=True))
    for key, values in expected.items():
        snapshot = slices["snapshots"][key.split(".")[0]]
        points = snapshot["history"][key]
        assert [point["time"] for point in points] == [row["candle_time"] for row in ROWS[-500:]]
        for point, value in zip(points, values[-500:], strict=True):
            assert math.isclose(point["value"], value, rel_tol=0, abs_tol=1e-7)
        assert snapshot["head"][key] == points[-1]["value"]


def applied(delta: Any, catalogue: dict[str, Any], points: dict[str, list[Any]]) -> dict[str, Any]:
    """The drawings that a reader shows after a delta, applied as the reference describes."""
    for one in delta["instruction_catalog_patch"]:
        catalogue[one["instruction_id"]] = one["definition"]
    for name, some in delta["series_points"].items():
        held = points.setdefault(name, [])
        held += [point for point in some if not held or point["time"] > held[-1]["time"]]
    return {name: catalogue[name] for name in delta["active_ids"]}


async def test_a_reader_of_deltas_shows_the_same_as_one_that_reads_once(service: Service) -> None:
    catalogue: dict[str, Any] = {}
    points: dict[str, list[Any]] = {}
    cursor: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for at in range(100, COUNT + 1, 40):
        await service.ingest(BTC, ROWS[:at])
        delta = await get(service, "/api/draw/delta", window_candles=200, **cursor)
        shown = applied(delta, catalogue, points)
        cursor = {f"cursor_{name}": value for name, value in delta["next_cursor"].items()} | {"epoch": delta["epoch"]}
        again = await get(service, "/api/draw/delta", window_candles=200, **cursor)
        assert again["instruction_catalog_patch"] == []
        assert all(some == [] for some in again["series_points"].values())
    fresh = await get(service, "/api/draw/delta", window_candles=200)
    fresh_points: dict[str, list[Any]] = {}
    assert applied(fresh, {}, fresh_points) == shown
    assert {name: held[-5:] for name, held in points.items()} == {
        name: held[-5:] for name, held in fresh_points.items()
    }
    assert {one["definition"]["feature"] for one in fresh["instruction_catalog_patch"]} >= {
        "pivot.major",
        "pen.confirmed",
        "anchor.current",
    }


async def test_a_correction_raises_the_epoch_and_everything_is_sent_again(service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])
    before = await get(service, "/api/draw/delta")
    record = (await get(service, "/api/delta/poll"))["next_cursor"]["id"]
    assert (await get(service, "/api/delta/poll", after_id=record))["records"] == []
    await service.ingest(BTC, [ROWS[100] | {"high": 500.0}])
    cursor = {f"cursor_{name}": value for name, value in before["next_cursor"].items()}
    after = await get(service, "/api/draw/delta", **cursor, epoch=before["epoch"])
    assert after["epoch"] == before["epoch"] + 1
    fresh = await get(service, "/api/draw/delta")
    assert after == fresh
    assert any("resistance" in name and str(ROWS[100]["candle_time"]) in name for name in fresh["active_ids"])
    poll = await get(service, "/api/delta/poll", after_id=record)
    assert [(one["id"] > record, one["epoch"]) for one in poll["records"]] == [(True, after["epoch"])]
    assert poll["records"][0]["draw_delta"] == fresh
    assert poll["next_cursor"] == {"id": poll["records"][0]["id"]}


async def test_a_frame_is_of_one_candle(service: Service) -> None:
    await service.ingest(BTC, ROWS[:300])
    live = await get(service, "/api/frame/live", window_candles=100)
    time = int(ROWS[299]["candle_time"])
    assert live["time"] == {"at_time": time, "aligned_time": time, "candle_id": f"{BTC}:{time}"}
    assert live["factor_slices"] == await get(service, "/api/factor/slices", window_candles=100)
    assert live["draw_state"] == await get(service, "/api/draw/delta", window_candles=100)
    earlier = await get(service, "/api/frame/at_time", window_candles=100, at_time=FIRST + 60 * 150 + 30)
    assert earlier["time"] == {
        "at_time": FIRST + 60 * 150 + 30,
        "aligned_time": FIRST + 60 * 150,
        "candle_id": f"{BTC}:{FIRST + 60 * 150}",
    }
    assert earlier["draw_state"]["to_candle_time"] == earlier["factor_slices"]["at_time"] == FIRST + 60 * 150


async def test_a_lagging_ledger_is_reported_and_catches_up(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", **FLAGS, ledger_advance_max_candles="100") as service:
        answer = await service.ingest(BTC, ROWS)
        assert answer["ledger"] == "lagging"
        status, refusal = await service.get("/api/factor/slices", series_id=BTC)
        while status == 409:
            assert refusal == {"detail": "ledger_out_of_sync:factor", "code": "ledger_out_of_sync:factor"}
            status, refusal = await service.get("/api/factor/slices", series_id=BTC)
        assert status == 200
        assert (await get(service, "/api/factor/health"))["status"] == "green"
        assert "ledger" not in await service.ingest(BTC, ROWS[:1])
        whole = await get(service, "/api/draw/delta", window_candles=COUNT)
    async with running_service(tmp_path / "other.sqlite", **FLAGS) as service:
        await service.ingest(BTC, ROWS)
        assert await get(service, "/api/draw/delta", window_candles=COUNT) == whole


async def test_a_restart_changes_no_answer(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as service:
        await service.ingest(BTC, ROWS[:500])
        before = await get(service, "/api/frame/live")
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as service:
        assert await get(service, "/api/frame/live") == before
    async with running_service(tmp_path / "store.sqlite", **FLAGS | {"factor_pivot_window_major": "9"}) as service:
        answer: Any
        status, answer = await service.get("/api/frame/live", series_id=BTC)
        while status == 409:
            assert answer["code"] == "ledger_out_of_sync"
            status, answer = await service.get("/api/frame/live", series_id=BTC)
        assert answer["draw_state"]["epoch"] == before["draw_state"]["epoch"] + 1
        assert answer["factor_slices"]["snapshots"]["pivot"]["history"]["major"][0]["window"] == 9


async def test_health_has_the_heads_of_factors_and_overlays(service: Service) -> None:
    await service.ingest(BTC, ROWS[:50])
    time = ROWS[49]["candle_time"]
    health = await get(service, "/api/factor/health")
    assert health == {
        "series_id": BTC,
        "timeframe_seconds": 60,
        "store_head_time": time,
        "head_time": time,
        "factor_head_time": time,
        "overlay_head_time": time,
        "factor_delay_seconds": 0,
        "overlay_delay_seconds": 0,
        "max_delay_seconds": 0,
        "factor_delay_candles": 0,
        "overlay_delay_candles": 0,
        "status": "green",
        "status_reason": "up_to_date",
        "detail": "up to date",
        "progress_pct": None,
        "suspended": {},
    }


async def test_a_series_without_candles_has_empty_answers(service: Service) -> None:
    await service.ingest(BTC, ROWS[:50])
    slices = await get(service, "/api/factor/slices", at_time=FIRST - 1)
    assert (slices["at_time"], slices["candle_id"], slices["snapshots"]) == (None, None, {})
    frame = await get(service, "/api/frame/at_time", at_time=FIRST - 1)
    assert frame["time"] == {"at_time": FIRST - 1, "aligned_time": None, "candle_id": None}


@pytest.mark.parametrize("path", ["/api/factor/slices", "/api/draw/delta", "/api/frame/live"])
@pytest.mark.parametrize("params", [{"window_candles": 0}, {"window_candles": 5001}, {"series_id": "nonsense"}])
async def test_bad_parameters_are_refused(service: Service, path: str, params: dict[str, str | int]) -> None:
    status, answer = await service.get(path, **{"series_id": BTC, **params})
    assert (status, answer["code"]) == (422, "bad_request")


async def test_the_catalogue_names_factors_and_indicators(service: Service) -> None:
    catalogue: Any
    _, catalogue = await service.get("/api/factor/catalog")
    keys = {factor["key"]: [feature["key"] for feature in factor["sub_features"]] for factor in catalogue["factors"]}
    assert keys["pivot"] == ["pivot.major", "pivot.minor"]
    assert keys["macd_12_26_9"] == ["macd_12_26_9.macd", "macd_12_26_9.macdsignal", "macd_12_26_9.macdhist"]
    panes = {factor["key"]: factor.get("pane") for factor in catalogue["factors"]}
    assert (panes["sma_20"], panes["macd_12_26_9"], panes["pivot"]) == ("price", "own", None)


async def test_slices_of_many_candles_are_those_of_each_one(service: Service) -> None:
    hole = range(300, 330)
    rows = [row for number, row in enumerate(ROWS) if number not in hole]
    await service.ingest(BTC, rows)
    for since, limit in ((0, 30), (FIRST + 60 * 280, 60), (FIRST + 60 * (COUNT - 5), 100)):
        answer = await get(service, "/api/factor/slices_after", since=since, limit=limit)
        times = [int(row["candle_time"]) for row in rows if row["candle_time"] > since][:limit]
        assert [one["at_time"] for one in answer["slices"]] == times
        for one in answer["slices"][:: max(1, len(times) // 7)]:
            assert one == await get(service, "/api/factor/slices", at_time=one["at_time"], window_candles=1)
    answer = await get(service, "/api/factor/slices_after", since=0, limit=500)
    said = [one["snapshots"]["pivot"]["history"]["major"] for one in answer["slices"]]
    assert sum(map(len, said)) > 10
    assert (await get(service, "/api/factor/slices_after", since=int(ROWS[-1]["candle_time"])))["slices"] == []


async def test_slices_of_many_candles_end_at_the_head_of_factors(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", **FLAGS, ledger_advance_max_candles="100") as service:
        await service.ingest(BTC, ROWS)
        seen: list[float] = []
        while len(seen) < COUNT:
            since = int(seen[-1]) if seen else 0
            found: tuple[int, Any] = await service.get(
                "/api/factor/slices_after", series_id=BTC, since=since, limit=500
            )
            status, answer = found
            if status == 409:
                assert answer["code"] == "ledger_out_of_sync:factor"
                continue
            seen += [one["at_time"] for one in answer["slices"]]
        assert seen == [row["candle_time"] for row in ROWS]
