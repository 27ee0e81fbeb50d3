"""CVD, VWAP and TAKER_RATIO over HTTP and in the Python client: like indicators, also after a fill of order flow."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from klinesync.client import AsyncKlinesync, ClosedCandle
from klinesync.core.candle import Candle
from klinesync.factor.plugin import Event, Factor, Upstream
from klinesync.factor.structure import structure
from klinesync.market import parts_writing
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
DAYS = "binance:spot:BTC/USDT:1d"
FLAGS = {
    "factor_pivot_window_major": "5",
    "factor_pivot_window_minor": "2",
    "indicators": "SMA(20),CVD,VWAP,TAKER_RATIO",
    "derived_timeframes": "1d",
}
NAMES = ("cvd", "vwap", "taker_ratio")
# 106 minutes before midnight.
FIRST = 1_700_000_040
MIDNIGHT = 1_700_006_400
COUNT = 400


def walk() -> list[dict[str, float]]:
    rng, price, rows = random.Random(7), 100.0, []
    for minute in range(COUNT):
        close = round(price + rng.uniform(-1, 1), 3)
        high, low = max(price, close) + rng.random(), min(price, close) - rng.random()
        volume = round(100 * rng.random(), 3)
        values = {"open": price, "high": round(high, 3), "low": round(low, 3), "close": close, "volume": volume}
        rows.append(
            {"candle_time": FIRST + 60 * minute} | values | {"taker_buy_volume": round(volume * rng.random(), 3)}
        )
        price = close
    return rows


ROWS = walk()


def bare(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "taker_buy_volume"}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as running:
        yield running


async def get(service: Service, path: str, **params: str | int) -> Any:
    return await service.answer(path, **({"series_id": BTC} | params))


def expected(rows: list[dict[str, float]]) -> dict[str, dict[float, float]]:
    """By the definitions, from the rows of each day."""
    found: dict[str, dict[float, float]] = {name: {} for name in NAMES}
    for at, row in enumerate(rows):
        time = row["candle_time"]
        day = [one for one in rows[: at + 1] if one["candle_time"] // 86_400 == time // 86_400]
        volume = math.fsum(one["volume"] for one in day)
        typical = [(one["high"] + one["low"] + one["close"]) / 3 * one["volume"] for one in day]
        found["vwap"][time] = math.fsum(typical) / volume
        if all("taker_buy_volume" in one for one in day):
            found["cvd"][time] = math.fsum(2 * one["taker_buy_volume"] - one["volume"] for one in day)
        if "taker_buy_volume" in row:
            found["taker_ratio"][time] = row["taker_buy_volume"] / row["volume"]
    return found


def check(points: list[dict[str, float]], line: dict[float, float], times: list[float]) -> None:
    assert [point["time"] for point in points] == [time for time in times if time in line]
    for point in points:
        assert math.isclose(point["value"], line[point["time"]], rel_tol=1e-9, abs_tol=1e-9)


def times(rows: list[dict[str, float]]) -> list[float]:
    return [row["candle_time"] for row in rows]


async def test_pages_slices_and_frames_have_their_values(service: Service) -> None:
    rows = [bare(row) if at in (50, 300) else row for at, row in enumerate(ROWS)]
    await service.ingest(BTC, rows)
    lines = expected(rows)
    assert lines["cvd"].keys() == set(times(rows[:50] + rows[106:300]))
    for last, window in ((COUNT - 1, 300), (200, 30), (106, 2), (0, 5)):
        at_time, shown = int(rows[last]["candle_time"]), times(rows[max(last + 1 - window, 0) : last + 1])
        asked = {"at_time": at_time, "window_candles": window}
        drawn = await get(service, "/api/draw/delta", **asked)
        slices = await get(service, "/api/factor/slices", **asked)
        assert drawn["series_points"].keys() == {*NAMES, "sma_20"}
        for name in NAMES:
            check(drawn["series_points"][name], lines[name], shown)
            snapshot = slices["snapshots"][name]
            assert snapshot["history"] == {name: drawn["series_points"][name]}
            head = {point["time"]: point["value"] for point in drawn["series_points"][name]}.get(at_time)
            assert snapshot["head"] == {name: head}
        frame = await get(service, "/api/frame/at_time", **asked)
        assert (frame["factor_slices"], frame["draw_state"]) == (slices, drawn)
    after = await get(service, "/api/factor/slices_after", since=int(rows[290]["candle_time"]), limit=20)
    for one in after["slices"]:
        slices = await get(service, "/api/factor/slices", at_time=one["at_time"], window_candles=1)
        assert one == slices


async def test_the_catalog_has_them_with_their_panes(service: Service) -> None:
    catalog = {row["key"]: row for row in (await get(service, "/api/factor/catalog"))["factors"]}
    assert [(name, catalog[name]["pane"]) for name in NAMES] == [
        ("cvd", "own"), ("vwap", "price"), ("taker_ratio", "own"),
    ]  # fmt: skip
    assert catalog["vwap"]["sub_features"] == [
        {"key": "vwap", "label": "VWAP", "default_visible": True, "style": "line"}
    ]


async def test_at_each_close_a_reader_gets_the_values_that_a_page_has_later(service: Service) -> None:
    cursor: dict[str, int] = {}
    held: dict[str, list[Any]] = {name: [] for name in NAMES}
    for at in range(80, 140):
        await service.ingest(BTC, ROWS[at : at + 1])
        delta = await get(service, "/api/draw/delta", **cursor)
        cursor = {f"cursor_{name}": value for name, value in delta["next_cursor"].items()} | {"epoch": delta["epoch"]}
        for name in NAMES:
            held[name] += delta["series_points"][name]
    whole = await get(service, "/api/draw/delta")
    assert held == {name: whole["series_points"][name] for name in NAMES}
    lines = expected(ROWS[80:140])
    for name in NAMES:
        check(held[name], lines[name], times(ROWS[80:140]))


async def test_a_restart_and_the_batches_change_no_value(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as service:
        for at in range(0, 300, 7):
            await service.ingest(BTC, ROWS[at : min(at + 7, 300)])
        before = await get(service, "/api/frame/live")
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as service:
        assert await get(service, "/api/frame/live") == before
    async with running_service(tmp_path / "other.sqlite", **FLAGS) as service:
        await service.ingest(BTC, ROWS[:300])
        again = await get(service, "/api/frame/live")
        assert again["factor_slices"]["snapshots"] == before["factor_slices"]["snapshots"]
        assert again["draw_state"]["series_points"] == before["draw_state"]["series_points"]


async def test_order_flow_that_is_filled_in_gives_values_within_the_epoch(service: Service) -> None:
    await service.ingest(BTC, [bare(row) for row in ROWS])
    before = await get(service, "/api/draw/delta")
    assert before["series_points"]["cvd"] == before["series_points"]["taker_ratio"] == []
    record = (await get(service, "/api/delta/poll"))["next_cursor"]["id"]
    await service.ingest(BTC, ROWS)
    cursor = {f"cursor_{name}": value for name, value in before["next_cursor"].items()}
    after = await get(service, "/api/draw/delta", **cursor, epoch=before["epoch"])
    assert (after["epoch"], after["next_cursor"]) == (before["epoch"], before["next_cursor"])
    assert (after["instruction_catalog_patch"], after["active_ids"]) == ([], before["active_ids"])
    fresh = await get(service, "/api/draw/delta")
    lines = expected(ROWS)
    for name in NAMES:
        check(fresh["series_points"][name], lines[name], times(ROWS))
    assert fresh["active_ids"] == before["active_ids"]
    (poll,) = (await get(service, "/api/delta/poll", after_id=record))["records"]
    assert (poll["epoch"], poll["draw_delta"]) == (before["epoch"], fresh)
    assert (await get(service, "/api/factor/health"))["status"] == "green"


async def test_a_correction_raises_the_epoch_and_moves_the_values_of_its_day(service: Service) -> None:
    await service.ingest(BTC, ROWS)
    before = await get(service, "/api/draw/delta")
    rows = [
        row | {"volume": row["volume"] + 10, "taker_buy_volume": 0.0} if at == 30 else row
        for at, row in enumerate(ROWS)
    ]
    await service.ingest(BTC, rows[30:31])
    after = await get(service, "/api/draw/delta")
    assert after["epoch"] == before["epoch"] + 1
    lines = expected(rows)
    for name in NAMES:
        check(after["series_points"][name], lines[name], times(rows))
        assert after["series_points"][name][106:] == before["series_points"][name][106:]  # the next day


async def test_a_derived_candle_of_a_day_is_its_own_sum(service: Service) -> None:
    day = [
        {"candle_time": MIDNIGHT + 60 * at, "open": 2.0, "high": 3.0, "low": 1.0, "close": 2.0, "volume": 4.0}
        | {"taker_buy_volume": 3.0}
        for at in range(1440)
    ]
    await service.ingest(BTC, day)
    drawn = await get(service, "/api/draw/delta", series_id=DAYS)
    assert {name: [point["value"] for point in drawn["series_points"][name]] for name in NAMES} == {
        "cvd": [2880.0], "vwap": [2.0], "taker_ratio": [0.75],
    }  # fmt: skip


async def test_the_client_has_them_as_arrays_and_with_each_candle(service: Service) -> None:
    rows = [bare(row) if at == 150 else row for at, row in enumerate(ROWS)]
    await service.ingest(BTC, rows[:200])
    lines = expected(rows)
    async with AsyncKlinesync(service.url) as client:
        slices = await client.slices(BTC, window=100)
        columns = slices.columns()
        for name in NAMES:
            assert slices.snapshots[name].outputs() == [name]
            for time, value in zip(columns["time"].tolist(), columns[name].tolist(), strict=True):
                assert (
                    math.isclose(value, lines[name][time], abs_tol=1e-9) if time in lines[name] else math.isnan(value)
                )
        assert math.isnan(slices.value("cvd"))
        assert slices.value("vwap") == columns["vwap"][-1]
        drawings = await client.drawings(BTC, window=100)
        assert drawings.points["taker_ratio"]["value"][-1] == slices.value("taker_ratio")
        async with aclosing(client.follow(BTC, times(rows)[99], factors=True)) as updates:
            found: list[ClosedCandle] = []
            async for update in updates:
                if isinstance(update, ClosedCandle):
                    found.append(update)
                    if len(found) == 100:
                        break
        for update in found:
            assert update.slices is not None
            for name in NAMES:
                value, line = update.slices.value(name), lines[name]
                known = update.candle.time in line
                assert math.isclose(value, line[update.candle.time], abs_tol=1e-9) if known else math.isnan(value)


class Spread(Factor[float]):
    """A factor of another package: the range of a candle, and its part of the close. NaN for a close of 77."""

    name = "spread"
    label = "Spread"
    has_events = False
    outputs = ("range", "part")
    state_type = float

    def seed(self) -> float:
        return 0.0

    def advance(self, state: float, candle: Candle, upstream: Upstream) -> tuple[float, Sequence[Event]]:
        return math.nan if candle.close == 77 else candle.high - candle.low, ()

    def numbers(self, state: float) -> Sequence[float | None]:
        return state, state / 100


async def test_a_factor_of_another_package_has_its_numbers_and_a_wrong_number_costs_no_candle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_writing, "load_factors", lambda settings: [*structure(settings), Spread()])
    async with running_service(tmp_path / "store.sqlite", **(FLAGS | {"indicators": "SMA(20)"})) as service:
        await service.ingest(BTC, ROWS[:100])
        drawn = await get(service, "/api/draw/delta")
        assert drawn["series_points"].keys() == {"spread.range", "spread.part", "sma_20"}
        assert [point["value"] for point in drawn["series_points"]["spread.range"]] == [
            row["high"] - row["low"] for row in ROWS[:100]
        ]
        head = (await get(service, "/api/factor/slices"))["snapshots"]["spread"]["head"]
        assert head["spread.part"] == (ROWS[99]["high"] - ROWS[99]["low"]) / 100
        wrong = ROWS[100] | {"close": 77.0, "low": 70.0}
        answer = await service.ingest(BTC, [wrong])
        assert answer["ledger"] == "lagging"
        candles = await get(service, "/api/market/candles", limit=1)
        assert candles["candles"][0]["close"] == 77.0
        health = await get(service, "/api/factor/health")
        assert "spread failed at the candle at" in health["detail"]
        assert "output range is nan" in health["detail"]
        # A correction of the candle ends the fault.
        await service.ingest(BTC, [ROWS[100]])
        drawn = await get(service, "/api/draw/delta")
        assert drawn["series_points"]["spread.range"][-1]["time"] == ROWS[100]["candle_time"]
