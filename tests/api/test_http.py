"""HTTP over real sockets: the contract's shapes, limits and errors."""

import re
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest

from klinesync.core.candle import Candle, check_candle
from klinesync.core.timeframe import Timeframe
from klinesync.market.bodies import MAX_BODY_BYTES
from klinesync.market_data import ingest_service
from klinesync.pipelines import ingest_pipeline
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
CANDLE = b'{"series_id": "binance:spot:BTC/USDT:1m", "candle": %s}'


def candle(minute: int, **changes: float) -> dict[str, float]:
    return {
        "candle_time": 1_700_000_040 + 60 * minute,
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 10.0,
    } | changes


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite") as running:
        yield running


async def ingest(service: Service, *minutes: int) -> None:
    body = {"series_id": BTC, "candles": [candle(minute) for minute in minutes]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 200, answer


async def test_posted_candles_are_checked_in_another_thread(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def check(candle: Candle, timeframe: Timeframe) -> Candle:
        threads.append(threading.get_ident())
        return check_candle(candle, timeframe)

    for module in (ingest_service, ingest_pipeline):
        monkeypatch.setattr(module, "check_candle", check)
    await ingest(service, 3, 1, 2)
    assert len(threads) == 3, "each once"
    assert threading.get_ident() not in threads, "the event loop is free meanwhile"


async def test_ingested_candles_are_read_back(service: Service) -> None:
    status, answer = await service.post(
        "/api/market/ingest/candle_closed", {"series_id": BTC, "candle": candle(0) | {"trades": 5}}
    )
    assert (status, answer) == (200, {"ok": True, "series_id": BTC, "candle_time": 1_700_000_040})
    body = {"series_id": BTC, "candles": [candle(2), candle(1), candle(1)]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert (status, answer) == (
        200,
        {
            "ok": True,
            "series_id": BTC,
            "count": 3,
            "first_candle_time": 1_700_000_100,
            "last_candle_time": 1_700_000_160,
        },
    )
    status, answer = await service.get("/api/market/candles", series_id=BTC)
    assert status == 200
    assert answer == {
        "series_id": BTC,
        "server_head_time": 1_700_000_160,
        "candles": [candle(0), candle(1), candle(2)],
        "gaps": [],
    }


async def test_pages_go_forward_with_since_and_back_with_before(service: Service) -> None:
    await ingest(service, *range(10))

    async def minutes(**params: int) -> list[int]:
        status, answer = await service.get("/api/market/candles", series_id=BTC, **params)
        assert status == 200, answer
        rows = answer["candles"]
        assert isinstance(rows, list)
        return [(row["candle_time"] - 1_700_000_040) // 60 for row in rows]

    assert await minutes(limit=3) == [7, 8, 9]
    assert await minutes(limit=3, since=1_700_000_040) == [1, 2, 3]
    assert await minutes(limit=3, before=1_700_000_040 + 60 * 5) == [2, 3, 4]
    assert await minutes(since=1_700_000_040 + 60 * 9) == []
    assert await minutes(before=1_700_000_040) == []


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({}, "series_id"),
        ({"series_id": "BTCUSDT"}, "four parts"),
        ({"series_id": BTC, "limit": 0}, "limit"),
        ({"series_id": BTC, "limit": 5001}, "limit"),
        ({"series_id": BTC, "limit": "x"}, "limit"),
        ({"series_id": BTC, "since": -1}, "since"),
        ({"series_id": BTC, "since": 10**20}, "since"),
        ({"series_id": BTC, "before": "now"}, "before"),
        ({"series_id": BTC, "since": 0, "before": 9}, "exclude each other"),
    ],
)
async def test_a_malformed_request_is_422_and_names_the_field(
    service: Service, params: dict[str, str | int], word: str
) -> None:
    status, answer = await service.get("/api/market/candles", **params)
    assert status == 422
    assert answer["code"] == "bad_request"
    assert word in str(answer["detail"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"high": 0.1}, "high 0.1 is below low 0.5"),
        ({"low": 0.0}, "low is 0.0; a price is greater than 0"),
        ({"open": -1.0, "low": -1.0}, "open is -1.0; a price is greater than 0"),
        ({"volume": -1.0}, "negative"),
        ({"candle_time": 1_700_000_041}, "grid"),
        ({"candle_time": 4_102_444_800}, "after the exchange's now"),
    ],
)
async def test_a_bad_candle_is_422_with_the_reason_and_nothing_is_stored(
    service: Service, changes: dict[str, float], word: str
) -> None:
    body = {"series_id": BTC, "candles": [candle(0), candle(1, **changes)]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 422
    assert answer["code"] == "bad_candle"
    assert word in str(answer["detail"])
    _, page = await service.get("/api/market/candles", series_id=BTC)
    assert page["candles"] == []


async def test_one_time_with_two_values_is_refused(service: Service) -> None:
    body = {"series_id": BTC, "candles": [candle(0), candle(0, close=1.0)]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert (status, answer["code"]) == (422, "bad_candle")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"series_id": "binance:spot:BTC/USDT:1m"}',
        b'{"series_id": "binance:spot:BTC/USDT:1m", "candle": {"candle_time": 0}}',
        CANDLE % b'{"candle_time":0,"open":NaN,"high":1,"low":1,"close":1,"volume":1}',
        CANDLE % b'{"candle_time":0,"open":1,"high":1,"low":1,"close":1,"volume":1,"trades":NaN}',
        CANDLE % (b"[" * 100_000),
        CANDLE % b'{"candle_time":0,"open":"1","high":1,"low":1,"close":1,"volume":1}',
        CANDLE % b'{"candle_time":0.5,"open":1,"high":1,"low":1,"close":1,"volume":1}',
        CANDLE % b'{"candle_time":0,"open":1e999,"high":1,"low":1,"close":1,"volume":1}',
        b"\xff",
    ],
)
async def test_a_malformed_body_is_422(service: Service, raw: bytes) -> None:
    async with service.http.post(
        service.url + "/api/market/ingest/candle_closed", data=raw, headers={"Content-Type": "application/json"}
    ) as response:
        answer = await response.json()
        assert (response.status, answer["code"]) == (422, "bad_request"), answer


async def test_a_body_past_the_limit_is_413(service: Service) -> None:
    async with service.http.post(
        service.url + "/api/market/ingest/candle_closed",
        data=BytesIO(b" " * (MAX_BODY_BYTES + 1)),
        headers={"Content-Type": "application/json"},
    ) as response:
        assert response.status == 413
        assert (await response.json())["code"] == "too_large"


async def test_too_many_candles_at_once_are_refused(service: Service) -> None:
    body = {"series_id": BTC, "candles": [candle(0)] * 20_001}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert (status, answer["code"]) == (422, "bad_request")


async def test_an_unknown_path_is_404_json(service: Service) -> None:
    for path in ("/api/market/nothing", "/api/nothing", "/nothing"):
        status, answer = await service.get(path)
        assert (status, answer["code"]) == (404, "not_found"), path
    status, answer = await service.post("/api/market/candles", {})
    assert (status, answer["code"]) == (405, "method_not_allowed")


async def test_healthz_and_readyz_answer_200(service: Service) -> None:
    assert await service.get("/healthz") == (200, {"status": "ok"})
    assert await service.get("/readyz") == (200, {"status": "ready"})


async def test_the_whitelist_is_listed(service: Service) -> None:
    status, answer = await service.get("/api/market/whitelist")
    assert status == 200
    assert "binance:futures:BTC/USDT:1m" in str(answer["series_ids"])
    assert answer["derived_base_timeframe"] == "1m"
    assert answer["derived_timeframes"] == ["5m", "15m", "1h", "4h", "1d"]


async def test_without_the_exchange_an_empty_series_is_served_empty(service: Service) -> None:
    status, answer = await service.get("/api/market/candles", series_id="binance:spot:NOSUCH/USDT:1m")
    assert (status, answer["candles"], answer["server_head_time"]) == (200, [], None)


async def test_an_exchange_that_cannot_be_followed_is_unknown(service: Service) -> None:
    status, answer = await service.get("/api/market/candles", series_id="nowhere:spot:BTC/USDT:1m")
    assert (status, answer["code"]) == (404, "unknown_series")


async def test_openapi_lists_the_routes_with_their_errors(service: Service) -> None:
    status, document = await service.get("/openapi.json")
    assert status == 200
    paths = document["paths"]
    assert isinstance(paths, dict)
    assert set(paths) == {
        "/api/delta/poll",
        "/api/draw/delta",
        "/api/factor/catalog",
        "/api/factor/health",
        "/api/factor/slices",
        "/api/factor/slices_after",
        "/api/frame/at_time",
        "/api/frame/live",
        "/api/market/candles",
        "/api/market/explain",
        "/api/market/health",
        "/api/market/ingest/backfill",
        "/api/market/ingest/candle_closed",
        "/api/market/ingest/candles_closed",
        "/api/market/status",
        "/api/market/status/stream",
        "/api/market/top_markets",
        "/api/market/top_markets/stream",
        "/api/market/whitelist",
        "/healthz",
        "/metrics",
        "/readyz",
    }
    assert set(paths["/api/market/candles"]["get"]["responses"]) == {"200", "403", "404", "422", "503"}


async def test_the_documentation_page_brings_all_it_needs(service: Service) -> None:
    async with service.http.get(service.url + "/docs") as response:
        assert response.status == 200
        html = await response.text()
    addresses = re.findall(r"(?:src|href)=\"([^\"]+)\"", html)
    assert addresses
    for address in addresses:
        assert address.startswith("/"), "nothing is loaded from elsewhere"
        async with service.http.get(service.url + address) as response:
            assert response.status == 200


async def test_the_page_forbids_what_it_did_not_bring(service: Service) -> None:
    for method in ("GET", "HEAD"):
        async with service.http.request(method, service.url + "/") as response:
            if response.status == 503:
                pytest.skip("the page is not built: make setup builds it")
            assert response.status == 200
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            assert response.headers["Cache-Control"] == "no-cache"
            html = await response.text()
        if method == "GET":
            script = re.findall(r"/assets/[^\"]+\.js", html)[0]
            async with service.http.get(service.url + script) as response:
                assert response.status == 200
                assert "immutable" in response.headers["Cache-Control"]
