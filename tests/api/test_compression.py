"""Compression over real sockets: JSON and the page's files, in the coding that the client accepts."""

from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import aiohttp
import pytest

from klinesync.market.content_coding import PREFERRED, decompress
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite") as running:
        candles = [
            {
                "candle_time": 1_700_000_040 + 60 * n,
                "open": 1.0,
                "high": 2.0,
                "low": 0.5,
                "close": 1.5,
                "volume": 10.0 + n,
            }
            for n in range(2000)
        ]
        status, answer = await running.post("/api/market/ingest/candles_closed", {"series_id": BTC, "candles": candles})
        assert status == 200, answer
        yield running


async def get(service: Service, path: str, accept: str) -> tuple[aiohttp.ClientResponse, bytes]:
    """The body as received, without decompression."""
    async with (
        aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": accept}) as http,
        http.get(service.url + path) as response,
    ):
        return response, await response.read()


@pytest.mark.parametrize(
    "path", [f"/api/market/candles?series_id={BTC}&limit=2000", f"/api/draw/delta?series_id={BTC}"]
)
async def test_json_is_compressed_in_each_coding_and_is_the_same(service: Service, path: str) -> None:
    response, body = await get(service, path, "identity")
    assert response.status == 200
    assert "Content-Encoding" not in response.headers
    for coding in PREFERRED:
        for _ in range(3):  # made, made to be kept, kept
            response, compressed = await get(service, path, coding)
            assert response.headers["Content-Encoding"] == coding
            assert response.headers["Content-Length"] == str(len(compressed))
            assert response.headers["Vary"] == "Accept-Encoding"
            assert len(compressed) < len(body) / 3
            assert decompress(compressed, coding) == body


async def test_a_kept_page_is_not_served_after_its_series_has_changed(service: Service) -> None:
    path = f"/api/market/candles?series_id={BTC}&limit=2000"
    for _ in range(3):
        _, before = await get(service, path, "gzip")
    candle = {"candle_time": 1_700_000_040, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.25, "volume": 10.0}
    status, _ = await service.post("/api/market/ingest/candle_closed", {"series_id": BTC, "candle": candle})
    assert status == 200
    _, after = await get(service, path, "gzip")
    assert b'"close":1.25' not in decompress(before, "gzip")
    assert b'"close":1.25' in decompress(after, "gzip")


async def test_the_page_and_its_files_are_compressed_and_answered_with_304_when_known(service: Service) -> None:
    web = Path(str(resources.files("klinesync"))) / "web"
    if not (web / "index.html").exists():
        pytest.skip("the page is not built: run `npm ci && npm run build` in frontend/")
    scripts = [f"/assets/{file.name}" for file in (web / "assets").glob("*.js")]
    for path in ("/", *scripts):
        response, compressed = await get(service, path, "br, gzip")
        assert response.headers["Content-Encoding"] == "br"
        file = web / (path.lstrip("/") or "index.html")
        assert decompress(compressed, "br") == file.read_bytes()
    async with service.http.get(service.url + scripts[0]) as first:
        etag = first.headers["ETag"]
    async with service.http.get(service.url + scripts[0], headers={"If-None-Match": etag}) as again:
        assert again.status == 304


async def test_small_answers_and_errors_are_sent_as_they_are(service: Service) -> None:
    for path in ("/healthz", "/api/market/candles?series_id=x"):
        response, _ = await get(service, path, "gzip")
        assert "Content-Encoding" not in response.headers
