"""The debug API and /metrics, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from klinesync.core.series_id import SeriesId
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.runtime.metrics import METRICS
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service
from support.waiting import until

BTC = "binance:spot:BTC/USDT:1m"
START = 1_700_000_100  # a multiple of 300


def candle(minute: int, **changes: float) -> dict[str, float]:
    return {
        "candle_time": START + 60 * minute,
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 10.0,
    } | changes


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", enable_debug_api="on") as running:
        yield running


@pytest.fixture
async def measuring(tmp_path: Path) -> AsyncIterator[Service]:
    """A service that measures its store at each scrape."""
    around = Surroundings(tuning=Tuning(store_facts_ttl_s=0.0))
    async with running_service(tmp_path / "measured.sqlite", None, None, around, enable_debug_api="on") as running:
        yield running


async def ingest(service: Service, *minutes: int, series_id: str = BTC) -> None:
    body = {"series_id": series_id, "candles": [candle(minute) for minute in minutes]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 200, answer


async def measured(service: Service) -> dict[tuple[str, ...], float]:
    """The samples of /metrics by name and values of their labels."""
    async with service.http.get(service.url + "/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = await response.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/market/debug/ingest_state"),
        ("GET", "/api/market/debug/series_health?series_id=" + BTC),
        ("POST", "/api/market/ingest/candle_forming"),
    ],
)
async def test_without_the_debug_api_its_routes_are_404(tmp_path: Path, method: str, path: str) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        body = {"series_id": BTC, "candle": candle(0)}
        async with service.http.request(method, service.url + path, json=body) as response:
            assert response.status == 404
            assert (await response.json())["code"] == "not_found"


async def test_ingest_state_has_jobs_connections_and_backlogs(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=BTC, enable_debug_api="on") as service,
    ):
        series = SeriesId.parse(BTC)
        await until(lambda: service.runtime.supervisors.status(series).state == "live", "the stream is live")
        status, state = await service.get("/api/market/debug/ingest_state")
        assert status == 200
        assert set(state) == {"jobs", "connections", "queues", "rest"}
        jobs = state["jobs"]
        assert isinstance(jobs, list)
        (job,) = jobs
        assert job.pop("last_frame_at") > 0
        assert job == {
            "series_id": BTC,
            "kind": "whitelist",
            "refcount": 0,
            "state": "live",
            "idle_since": None,
            "reconnects": 0,
        }
        assert state["connections"] == [
            {
                "exchange": "binance",
                "market": "spot",
                "streams": 1,
                "connected": True,
                "reconnects": 0,
                "rotations": 0,
                "quarantined": 0,
            }
        ]
        queues = state["queues"]
        assert isinstance(queues, dict)
        assert set(queues) == {"live_candles", "bulk_candles", "healing_gaps", "outbox_messages", "outbox_bytes"}
        rest = state["rest"]
        assert isinstance(rest, dict)
        assert rest["binance:spot"]["limit"] == 6000
        assert rest["binance:spot"]["requests"] > 0
        assert set(rest["binance:spot"]["waiting"]) <= {"repair", "read", "sweep", "fill", "deep"}


async def test_series_health_counts_stored_and_missing_candles(service: Service) -> None:
    await ingest(service, 0, 1, 4, 5, 6, 7, 11, 12)
    status, health = await service.get("/api/market/debug/series_health", series_id=BTC)
    assert status == 200
    now_time = health.pop("now_time")
    assert isinstance(now_time, int)
    assert health.pop("lag_seconds") == now_time - (START + 13 * 60)
    assert health == {
        "series_id": BTC,
        "timeframe_seconds": 60,
        "first_time": START,
        "head_time": START + 12 * 60,
        "candle_count": 8,
        "gap_count": 2,
        "max_gap_seconds": 240,
        "recent_gaps": [
            {
                "prev_time": START + 60,
                "next_time": START + 240,
                "delta_seconds": 180,
                "missing_candles": 2,
                "state": "unknown",
            },
            {
                "prev_time": START + 420,
                "next_time": START + 660,
                "delta_seconds": 240,
                "missing_candles": 3,
                "state": "unknown",
            },
        ],
        "base_series_id": BTC,
        "base_bucket_completeness": [],
    }
    _, newest = await service.get("/api/market/debug/series_health", series_id=BTC, max_recent_gaps=1)
    assert newest["recent_gaps"] == health["recent_gaps"][1:]  # type: ignore[index]  # a list
    _, none = await service.get("/api/market/debug/series_health", series_id=BTC, max_recent_gaps=0)
    assert (none["recent_gaps"], none["gap_count"]) == ([], 2)


async def test_series_health_of_nothing_is_empty(service: Service) -> None:
    status, health = await service.get("/api/market/debug/series_health", series_id=BTC)
    assert status == 200
    assert (health["first_time"], health["head_time"], health["lag_seconds"]) == (None, None, None)
    assert (health["candle_count"], health["gap_count"], health["max_gap_seconds"]) == (0, 0, 0)
    status, answer = await service.get("/api/market/debug/series_health", series_id="nowhere:spot:BTC/USDT:1m")
    assert (status, answer["code"]) == (404, "unknown_series")


async def test_a_forming_candle_is_shown_and_not_stored(service: Service) -> None:
    async with service.http.ws_connect(service.url + "/ws/market") as socket:
        for series_id in (BTC, BTC.replace("1m", "5m")):
            await socket.send_json({"type": "subscribe", "series_id": series_id, "ack": True})
            for kind in ("subscribed", "caught_up"):
                assert (await socket.receive_json(timeout=10))["type"] == kind
        shown = candle(0)
        status, answer = await service.post("/api/market/ingest/candle_forming", {"series_id": BTC, "candle": shown})
        assert (status, answer) == (200, {"ok": True, "series_id": BTC, "candle_time": START})
        message = await socket.receive_json(timeout=10)
        assert message == {"type": "candle_forming", "series_id": BTC, "candle": shown}
        # Forming candles of derived series follow once their bucket was read.
        message = {"series_id": BTC}
        async with asyncio.timeout(60):
            while message["series_id"] == BTC:
                await service.post("/api/market/ingest/candle_forming", {"series_id": BTC, "candle": shown})
                message = await socket.receive_json()
        assert (message["type"], message["series_id"]) == ("candle_forming", BTC.replace("1m", "5m"))
    _, page = await service.get("/api/market/candles", series_id=BTC)
    assert page["candles"] == []


@pytest.mark.parametrize(
    ("series_id", "changes", "code"),
    [
        (BTC, {"high": 0.1}, "bad_candle"),
        (BTC, {"candle_time": START + 1}, "bad_candle"),
        (BTC, {"candle_time": 4_102_444_800}, "bad_candle"),
        (BTC.replace("1m", "5m"), {}, "derived_series"),
        ("BTCUSDT", {}, "bad_request"),
    ],
)
async def test_a_bad_forming_candle_is_refused(
    service: Service, series_id: str, changes: dict[str, float], code: str
) -> None:
    body = {"series_id": series_id, "candle": candle(0, **changes)}
    status, answer = await service.post("/api/market/ingest/candle_forming", body)
    assert (status, answer["code"]) == (422, code)


async def test_metrics_count_events(measuring: Service) -> None:
    service = measuring
    before = await measured(service)
    assert before["klinesync_series_stored",] == 0
    await ingest(service, 0, 1, 4)
    await ingest(service, 1)
    async with service.http.ws_connect(service.url + "/ws/market"):
        await until(lambda: service.runtime.hub.clients == 1, "the client is there")
        after = await measured(service)
    assert after["klinesync_ws_clients",] == 1
    assert after["klinesync_pipeline_candles_written_total", "http"] == 3, "what is stored already changes nothing"
    assert after["klinesync_pipeline_batches_total", "written"] == 2
    assert after["klinesync_pipeline_batches_total", "failed"] == 0
    assert after["klinesync_pipeline_batch_seconds_count",] == 2
    assert after["klinesync_pipeline_waiting_candles", "bulk"] == 0
    assert after["klinesync_store_writable",] == 1
    assert after["klinesync_gaps", "unknown"] == 1
    assert after["klinesync_gap_candles", "unknown"] == 2
    assert after["klinesync_series_stored",] == 1
    await ingest(service, 2)
    revised = await measured(service)
    assert revised["klinesync_pipeline_candles_revised_total",] == 1, "it lies behind the head"
    assert revised["klinesync_gap_candles", "unknown"] == 1


async def test_values_from_the_store_are_cached_for_several_scrapes(service: Service) -> None:
    await ingest(service, 0)
    first = await measured(service)
    await ingest(service, 0, series_id=BTC.replace("BTC", "ETH"))
    second = await measured(service)
    assert first["klinesync_series_stored",] == second["klinesync_series_stored",] == 1
    assert second["klinesync_pipeline_batches_total", "written"] == 2


async def test_a_service_that_follows_an_exchange_measures_everything(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=60, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=BTC, enable_debug_api="on") as service,
    ):
        await until(lambda: service.runtime.startup.progress().done == 1, "the sweep is done")
        await until(lambda: service.runtime.supervisors.status(SeriesId.parse(BTC)).state == "live", "live")
        found = await measured(service)
    assert found["klinesync_streams", "live"] == 1
    assert found["klinesync_stream_frames_total", "binance", "spot"] > 0
    assert found["klinesync_stream_frames_total", "binance", "futures"] == 0
    assert found["klinesync_rest_requests_total", "binance", "spot"] > 0
    assert found["klinesync_rest_weight_limit", "binance", "spot"] == 6000
    assert found["klinesync_startup_series", "done"] == 1
    assert found["klinesync_pipeline_candles_written_total", "rest"] > 0
    assert found["klinesync_pipeline_candles_written_total", "derived"] > 0
    assert found["klinesync_series_lag_seconds",] >= 0
    assert found["klinesync_series_behind",] in (0, 1)
    # Only metrics of events that did not happen are missing.
    named = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name, *_ in found}
    assert {metric.name for metric in METRICS} - named <= {
        "klinesync_rest_errors_total",
        "klinesync_rest_items_left_out_total",
        "klinesync_plugin_faults_total",
        "klinesync_plugin_suspended",
    }
