"""The requirements of the seed author's client, over real sockets: drawings that its line series accept, one number to
follow a series by, the delays of factors, streams of markets, compressed answers, and a log line for its origin."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pyarrow as pa
import pytest

from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
START = 1_700_000_040
FLAGS = {"factor_pivot_window_major": "4", "factor_pivot_window_minor": "2", "indicators": "EMA(21)"}
Json = dict[str, Any]


def walk(count: int) -> list[Json]:
    rng, price, rows = Random(8), 100.0, []
    for at in range(count):
        close = max(1.0, price + rng.gauss(0, 1))
        high, low = max(price, close) + rng.random(), min(price, close) - rng.random()
        row = {"open": price, "high": high, "low": max(low, 0.5), "close": close, "volume": 1.0}
        rows.append({"candle_time": START + 60 * at} | row)
        price = close
    return rows


ROWS = walk(900)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as running:
        await ingest(running, ROWS[:800])
        yield running


async def ingest(service: Service, rows: list[Json]) -> None:
    await service.ingest(BTC, rows)


async def get(service: Service, path: str, **params: str | int) -> Any:
    return await service.answer(path, series_id=BTC, **params)


async def test_every_polyline_has_ascending_times_and_zones_are_two_edges(service: Service) -> None:
    drawn = await get(service, "/api/draw/delta", window_candles=800)
    definitions = {one["instruction_id"]: one["definition"] for one in drawn["instruction_catalog_patch"]}
    lines = [definition for definition in definitions.values() if definition["type"] == "polyline"]
    assert lines
    for line in lines:
        assert all(one["time"] < two["time"] for one, two in pairwise(line["points"])), line
    zones = [name for name in definitions if name.startswith("zhongshu.dead:")]
    assert zones
    for name in zones:
        stem, _, edge = name.rpartition(":")
        top, bottom = definitions[f"{stem}:top"], definitions[f"{stem}:bottom"]
        assert edge in ("top", "bottom")
        assert top["points"][0]["value"] >= bottom["points"][0]["value"]
        assert top["entryDirection"] in (1, -1)
        assert top["entryDirection"] == bottom["entryDirection"]
    dead = (await get(service, "/api/factor/slices", window_candles=800))["snapshots"]["zhongshu"]
    keys = {"start_time", "end_time", "zg", "zd", "formed_time", "formed_reason", "death_time", "visible_time"}
    assert all(set(event) == keys for event in (*dead["history"]["dead"], *dead["head"]["alive"]))
    starts = {int(name.split(":")[1]) for name in zones}
    assert starts == {event["start_time"] for event in dead["history"]["dead"]} & starts
    pens = (await get(service, "/api/factor/slices", window_candles=800))["snapshots"]["pen"]["history"]["confirmed"]
    ends = {pen["end_time"]: pen["direction"] for pen in pens}
    for name in zones:
        start = int(name.split(":")[1])
        if start in ends:
            assert definitions[name]["entryDirection"] == ends[start], "of the pen that enters"


async def test_minor_pivots_are_drawn_for_all_of_the_window(service: Service) -> None:
    drawn = await get(service, "/api/draw/delta", window_candles=300)
    minor = {id_ for id_ in drawn["active_ids"] if id_.startswith("pivot.minor:")}
    rows = ROWS[500:800]
    expected = set()
    for at in range(2, len(rows) - 2):
        around = rows[at - 2 : at + 3]
        if rows[at]["high"] == max(row["high"] for row in around):
            expected.add(f"pivot.minor:{rows[at]['candle_time']}:resistance:2")
        if rows[at]["low"] == min(row["low"] for row in around):
            expected.add(f"pivot.minor:{rows[at]['candle_time']}:support:2")
    assert minor == expected
    head = (await get(service, "/api/factor/slices"))["snapshots"]["pivot"]["head"]
    assert set(head) == {"minor"}, "the factor itself is as it was"


async def test_one_number_follows_drawings_and_records(service: Service) -> None:
    told_version, last_id = 0, 0
    for end in (800, 820, 860, 900):
        await ingest(service, ROWS[800:end] or ROWS[:1])
        poll = await get(service, "/api/delta/poll", after_id=last_id, limit=5000)
        if not poll["records"]:
            assert end == 800
            continue
        (record,) = poll["records"]
        versions = [one["version_id"] for one in record["draw_delta"]["instruction_catalog_patch"]]
        versions.append(record["draw_delta"]["next_cursor"]["version_id"])
        assert record["id"] > told_version, "greater than every number that was told before"
        assert record["id"] >= max(versions), "and not less than its own"
        assert record["id"] > last_id
        told_version, last_id = max(told_version, *versions), record["id"]
    # A correction rewinds: the numbers of drawings decrease, the record's id does not.
    await ingest(service, [ROWS[10] | {"volume": 9.0}])
    (record,) = (await get(service, "/api/delta/poll", after_id=last_id))["records"]
    assert record["id"] > max(told_version, last_id)
    status, answer = await service.get("/api/delta/poll", series_id=BTC, limit=5001)
    assert (status, answer["code"]) == (422, "bad_request")


async def test_health_of_factors_in_seconds_with_codes(service: Service) -> None:
    health = await get(service, "/api/factor/health")
    assert health["store_head_time"] == health["factor_head_time"] == health["overlay_head_time"]
    assert health["timeframe_seconds"] == 60
    delays = [health[f"{name}_delay_seconds"] for name in ("factor", "overlay", "max")]
    assert delays == [0, 0, 0]
    assert (health["status"], health["status_reason"]) == ("green", "up_to_date")
    _, empty = await service.get("/api/factor/health", series_id="binance:spot:ETH/USDT:1m")
    assert (empty["status"], empty["status_reason"]) == ("gray", "no_store_head")


async def test_streams_of_markets_take_the_intervals_that_it_asks_with(service: Service) -> None:
    for params in ({"interval_s": "0.1"}, {"interval_s": "31"}, {"max_events": "-1"}):
        status, answer = await service.get("/api/market/top_markets/stream", **params)
        assert (status, answer["code"]) == (422, "bad_request")
    document: Any
    _, document = await service.get("/openapi.json")
    parameters = document["paths"]["/api/market/top_markets/stream"]["get"]["parameters"]
    schemas = {parameter["name"]: parameter["schema"] for parameter in parameters}
    assert [schemas["interval_s"][one] for one in ("minimum", "maximum", "default")] == [0.2, 30.0, 2.0]
    assert (schemas["max_events"]["minimum"], schemas["max_events"]["default"]) == (0, 0)


async def test_the_anchor_is_visible_by_default(service: Service) -> None:
    catalog: Any
    _, catalog = await service.get("/api/factor/catalog")
    (anchor,) = (factor for factor in catalog["factors"] if factor["key"] == "anchor")
    visible = {feature["key"]: feature["default_visible"] for feature in anchor["sub_features"]}
    assert visible["anchor.history"]
    assert visible["anchor.switch"]


@pytest.mark.parametrize("encoding", ["zstd", "br", "gzip", None])
async def test_json_comes_in_the_encoding_that_is_asked_for(service: Service, encoding: str | None) -> None:
    async with aiohttp.ClientSession(auto_decompress=False) as raw:
        for path, times in (("/api/market/candles", 2), ("/api/draw/delta", 1), ("/openapi.json", 1)):
            plain = {"Accept-Encoding": "identity"}
            async with raw.get(service.url + path, params={"series_id": BTC}, headers=plain) as response:
                assert "Content-Encoding" not in response.headers
                expected = await response.read()
            for _ in range(times):  # the second page comes from the cache
                headers = {"Accept-Encoding": encoding or "identity"}
                async with raw.get(service.url + path, params={"series_id": BTC}, headers=headers) as response:
                    body = await response.read()
                    assert "accept-encoding" in response.headers["Vary"].lower()
                    assert response.headers.get("Content-Encoding") == encoding
                    assert int(response.headers["Content-Length"]) == len(body)
                if encoding is not None:
                    assert len(body) < len(expected) / 2
                    codec: Any = {"br": "brotli"}.get(encoding, encoding)
                    body = pa.Codec(codec).decompress(body, len(expected), asbytes=True)
                assert json.loads(body) == json.loads(expected)


async def test_what_must_flush_and_what_is_small_is_never_compressed(service: Service) -> None:
    headers = {"Accept-Encoding": "zstd, br, gzip"}
    async with aiohttp.ClientSession(auto_decompress=False) as raw:
        async with raw.get(service.url + "/api/market/status/stream", headers=headers) as response:
            assert "Content-Encoding" not in response.headers
            assert (await response.content.readline()) == b"event: status\n"
        async with raw.get(service.url + "/healthz", headers=headers) as response:
            assert "Content-Encoding" not in response.headers
            assert await response.json() == {"status": "ok"}
        async with raw.ws_connect(service.url + "/ws/market", compress=15) as socket:
            assert not socket.compress, "frames are shared by all clients"


async def test_a_foreign_origin_is_logged_once_with_the_flag_that_admits_it(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    page = {"Origin": "http://charts.example:3000"}
    for _ in range(3):
        async with service.http.get(service.url + "/api/market/whitelist", headers=page) as response:
            assert response.status == 200
        async with service.http.post(service.url + "/api/market/ingest/candle_closed", headers=page) as response:
            assert response.status == 403
    own = {"Origin": service.url}
    async with service.http.get(service.url + "/api/market/whitelist", headers=own) as response:
        assert response.status == 200
    lines = [record.getMessage() for record in caplog.records if "origin" in record.getMessage()]
    assert len(lines) == 1
    assert "http://charts.example:3000" in lines[0]
    assert "--allowed-origins" in lines[0]
