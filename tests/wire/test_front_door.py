"""The front door over real sockets: which clients are admitted, and how much each may send."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from klinesync.market import http_limits
from klinesync.market.guard import guarded
from klinesync.market.limits import USUAL_CONNECTIONS, ConnectionLimits
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data import status_service
from support.processes import klinesync, running, serve_arguments
from support.running_service import Service, running_service
from support.waiting import until

TOKEN = "a-token-of-some-length"
BTC = "binance:spot:BTC/USDT:1m"
CANDLE = {"candle_time": 1_700_000_040, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite") as running:
        yield running


@pytest.fixture
async def with_token(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(
        tmp_path / "guarded.sqlite",
        api_token=TOKEN,
        allowed_origins="https://charts.example",
        enable_debug_api="on",
    ) as running:
        yield running


async def raw(service: Service, request: bytes, *more: bytes) -> tuple[int, dict[str, object]]:
    """The status and body of the answer to raw bytes, until the service closes."""
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in (request, *more):
            writer.write(part)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def handshake(service: Service, **headers: str) -> int:
    """The status of a WebSocket handshake."""
    try:
        async with service.http.ws_connect(service.url + "/ws/market", headers=headers):
            return 101
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status


async def test_a_service_that_others_could_reach_does_not_start_without_a_token(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    arguments = serve_arguments("http://127.0.0.1:9", store)
    status, out, err = await asyncio.to_thread(klinesync, *arguments, "--host=0.0.0.0", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert "flag api_token: is required to listen on 0.0.0.0, which is not loopback" in err
    assert "Traceback" not in err
    assert not store.exists()
    async with running_service(store, host="0.0.0.0", api_token=TOKEN) as service:
        assert (await service.get("/readyz"))[0] == 200


async def test_connections_are_limited_by_the_systems_limit_of_open_files(tmp_path: Path) -> None:
    """Systems start a process with a limit of 1,024 files or fewer, which the process may raise."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        arguments = serve_arguments("http://127.0.0.1:9", tmp_path / "store.sqlite")
        async with running(*arguments, log=tmp_path / "serve.log") as service:
            await service.address("klinesync serves")
            allowed, most = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
            assert most == before[1]
            wanted = USUAL_CONNECTIONS.connections + http_limits.OTHER_FILES
            assert allowed == (wanted if most == resource.RLIM_INFINITY else min(wanted, most))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("files", "clients"),
    [
        (resource.RLIM_INFINITY, USUAL_CONNECTIONS.connections),
        (1_000_000, USUAL_CONNECTIONS.connections),
        (20_000, 20_000 - http_limits.OTHER_FILES),
        (256, 128),
    ],
)
def test_files_are_reserved_for_the_store(monkeypatch: pytest.MonkeyPatch, files: int, clients: int) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert http_limits.most_connections() == clients


async def test_a_rebound_name_reads_nothing_and_opens_no_socket(service: Service) -> None:
    for path in ("/api/market/whitelist", "/", "/openapi.json", "/healthz"):
        async with service.http.get(service.url + path, headers={"Host": "evil.example:8000"}) as response:
            assert response.status == 403
            assert (await response.json())["code"] == "forbidden"
    assert await handshake(service, Host="evil.example") == 403
    assert await handshake(service) == 101


async def test_a_foreign_page_writes_nothing_and_opens_no_socket(service: Service) -> None:
    body = {"series_id": BTC, "candle": CANDLE}
    for origin in ("http://evil.example", "null"):
        async with service.http.post(
            service.url + "/api/market/ingest/candle_closed", json=body, headers={"Origin": origin}
        ) as response:
            assert (response.status, (await response.json())["code"]) == (403, "forbidden")
        assert await handshake(service, Origin=origin) == 403
    _, page = await service.get("/api/market/candles", series_id=BTC)
    assert page["candles"] == []
    assert await handshake(service, Origin=service.url) == 101


async def test_a_foreign_page_gets_no_cors_headers(service: Service) -> None:
    async with service.http.get(
        service.url + "/api/market/whitelist", headers={"Origin": "http://evil.example"}
    ) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_requests_of_foreign_pages_have_no_effect(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image, a script or a `no-cors` fetch has no Origin: `Sec-Fetch-Site` is the only mark of its site."""

    def reached(series_id: str) -> None:
        raise AssertionError("the request got in")

    monkeypatch.setattr("klinesync.market.http_routes.SeriesId.parse", reached)
    for site in ("cross-site", "same-site", "Cross-Site"):
        for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            async with service.http.get(
                service.url + "/api/market/candles",
                params={"series_id": BTC},
                headers={"Sec-Fetch-Site": site} | origin,
            ) as response:
                assert (response.status, (await response.json())["code"]) == (403, "forbidden")


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_the_page_itself_and_the_address_bar_read_the_api(service: Service, site: str) -> None:
    async with service.http.get(
        service.url + "/api/market/whitelist", headers={"Sec-Fetch-Site": site, "Host": "localhost"}
    ) as response:
        assert response.status == 200


async def test_the_page_may_be_linked_to_from_anywhere(service: Service) -> None:
    for path in ("/", "/docs", "/healthz"):
        async with service.http.get(service.url + path, headers={"Sec-Fetch-Site": "cross-site"}) as response:
            assert response.status != 403


async def test_an_allowed_origin_is_admitted_whatever_its_site(with_token: Service) -> None:
    admitted = {"Origin": "https://charts.example", "Sec-Fetch-Site": "cross-site"}
    async with with_token.http.get(with_token.url + "/api/market/whitelist", headers=admitted) as response:
        assert response.status == 200


async def test_an_allowed_origin_reads_and_writes_and_can_read_refusals(with_token: Service) -> None:
    origin = {"Origin": "https://charts.example"}
    url = with_token.url + "/api/market/ingest/candle_closed"
    async with with_token.http.options(
        url,
        headers=origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"},
    ) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    body = {"series_id": BTC, "candle": CANDLE}
    async with with_token.http.post(url, json=body, headers=origin) as response:
        assert response.status == 401
        assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    async with with_token.http.post(url, json=body, headers=origin | {"Authorization": f"Bearer {TOKEN}"}) as response:
        assert response.status == 200
    assert await handshake(with_token, **origin) == 101


async def test_ingest_requires_the_token_and_says_how_to_send_it(with_token: Service) -> None:
    url = with_token.url + "/api/market/ingest/candle_closed"
    body = {"series_id": BTC, "candle": CANDLE}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        async with with_token.http.post(url, json=body, headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert (await response.json())["code"] == "unauthorized"
    _, page = await with_token.get("/api/market/candles", series_id=BTC)
    assert page["candles"] == []
    async with with_token.http.post(url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        assert response.status == 200
    assert (await with_token.get("/healthz"))[0] == 200
    assert (await with_token.get("/readyz"))[0] == 200


async def test_metrics_and_the_debug_api_require_the_token(with_token: Service) -> None:
    for path in ("/metrics", "/api/market/debug/ingest_state", "/api/market/debug/series_health"):
        async with with_token.http.get(with_token.url + path) as response:
            assert (response.status, (await response.json())["code"]) == (401, "unauthorized"), path
        async with with_token.http.get(
            with_token.url + path, params={"series_id": BTC}, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as response:
            assert response.status == 200, path


async def test_the_document_says_of_the_same_routes_that_they_take_the_token(
    service: Service, with_token: Service
) -> None:
    _, document = await with_token.get("/openapi.json")
    paths = document["paths"]
    assert isinstance(paths, dict)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert ("security" in operation) == ("401" in operation["responses"]) == guarded(path), f"{method} {path}"
    _, document = await service.get("/openapi.json")
    assert "HTTPBearer" not in json.dumps(document), "without a token none is taken"


async def test_a_body_is_not_read_before_the_token(with_token: Service) -> None:
    request = (
        b"POST /api/market/ingest/candles_closed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: 9000000\r\n\r\n"
    )
    assert (await raw(with_token, request))[0] == 401


async def test_a_request_without_a_host_is_refused(service: Service) -> None:
    status, answer = await raw(service, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert (status, answer["code"]) == (400, "bad_request")


async def test_a_malformed_request_gets_our_json_error(service: Service) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        status, answer = await raw(service, request)
        assert (status, answer["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: xchunked\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nnonsense\r\n",
    ],
)
async def test_a_body_in_an_unknown_encoding_gets_our_json_error(
    service: Service, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /api/market/ingest/candle_closed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, answer = await raw(service, head + body)
    assert (status, answer["code"]) == (400, "bad_request")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_path_with_a_trailing_slash_is_404(service: Service) -> None:
    for path in ("/api/market/candles/", "/api/market/ingest/candle_closed/", "/api/", "/healthz/"):
        async with service.http.get(service.url + path, allow_redirects=False) as response:
            assert (response.status, (await response.json())["code"]) == (404, "not_found")


@pytest.mark.parametrize("part", ["bytes=99999999-", "bytes=5-1", "x=1", "bytes=" + "0-1," * 1000, "bytes=0-3"])
async def test_range_requests_get_the_whole_page(service: Service, part: str) -> None:
    async with service.http.get(service.url) as response:
        whole = response.status, await response.read()
    async with service.http.get(service.url, headers={"Range": part}) as response:
        assert (response.status, await response.read()) == whole


async def test_disconnects_of_clients_are_no_errors(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    post = b"POST /api/market/ingest/candle_closed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    stream = b"GET /api/market/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    upgrade = (
        b"GET /ws/market HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    port = int(service.url.rpartition(":")[2])
    for sent in (post, stream, upgrade, GET + b"\r\n", post[:-1], upgrade[:-2]) * 5:
        for steps in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            for _ in range(steps):
                await asyncio.sleep(0)
            writer.transport.abort()
    assert (await service.get("/healthz"))[0] == 200
    await until(lambda: service.runtime.hub.clients == 0, "all have left")
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


UPGRADE = b" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET /ws/market" + UPGRADE + b"\r\n", 400, "bad_request"),
        (b"GET /ws/market" + UPGRADE + b"Sec-WebSocket-Key: \xff\xfe\r\n\r\n", 400, "bad_request"),
        (b"GET /ws/market" + UPGRADE.replace(b"13", b"8") + KEY + b"\r\n", 400, "bad_request"),
        (b"GET /ws/market" + UPGRADE + KEY + b"Sec-WebSocket-Protocol: ,;\r\n\r\n", 400, "bad_request"),
        (b"GET /ws/market" + UPGRADE + KEY + b"Content-Length: 5\r\n\r\nabcde", 400, "bad_request"),
        (b"GET /ws/market" + UPGRADE + KEY + b"Transfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (b"POST /ws/market" + UPGRADE + KEY + b"\r\n", 405, "method_not_allowed"),
        (b"GET /ws/market?" + b"x" * 8180 + UPGRADE + KEY + b"\r\n", 414, "too_large"),
        (b"GET /ws/market" + UPGRADE + KEY + b"X: " + b"y" * 9_000 + b"\r\n\r\n", 431, "too_large"),
        (b"GET /ws/market/" + UPGRADE + KEY + b"\r\n", 404, "not_found"),
        (b"GET /api/market/candles" + UPGRADE + KEY + b"\r\n", 404, "not_found"),
        (b"GET /assets/x" + UPGRADE + KEY + b"\r\n", 404, "not_found"),
    ],
)
async def test_a_refused_handshake_gets_our_json_error(
    service: Service, request_: bytes, status: int, code: str
) -> None:
    answered, answer = await raw(service, request_)
    assert (answered, answer["code"]) == (status, code)
    detail = answer["detail"]
    assert isinstance(detail, str)
    assert 0 < len(detail) < 300
    assert service.runtime.bulkheads.counts.total() == 0


async def test_a_browser_with_many_cookies_opens_a_socket(service: Service) -> None:
    assert await handshake(service, Cookie="a=" + "y" * 20_000) == 101


async def test_a_handshake_behind_an_unanswered_request_is_refused_and_keeps_no_event_stream(service: Service) -> None:
    port = int(service.url.rpartition(":")[2])
    stream = b"GET /api/market/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(status_service.MAX_STREAMS + 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(stream)
        async with asyncio.timeout(60):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET /ws/market" + UPGRADE + KEY + b"\r\n")
            assert b" 101 " not in await reader.read()
        writer.close()
    async with service.http.get(service.url + "/api/market/status/stream") as response:
        assert response.status == 200


async def test_a_disconnect_before_the_answer_is_no_defect(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(*serve_arguments("http://127.0.0.1:9", tmp_path / "store.sqlite"), log=log) as service:
        url = await service.address("serves")
        port = int(url.rpartition(":")[2])
        page = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        behind = (b"", b"nonsense\r\n\r\n", b"GET /ws/market" + UPGRADE + KEY + b"\r\n", b"POST / HTTP/1.1\r\nX")
        for number in range(400):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(page + behind[number % len(behind)])
            await asyncio.sleep(number % 20 / 5000)
            writer.transport.abort()
        async with aiohttp.ClientSession() as http, http.get(url + "/metrics") as response:
            metrics = await response.text()
        assert 'klinesync_defects_total{part="request"} 0.0' in metrics
        assert "Traceback" not in log.read_text()
        assert "ERROR" not in log.read_text()


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz?" + b"x" * 8000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET /healthz?" + b"x" * 8300 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (GET + b"".join(b"X-%d: y\r\n" % number for number in range(98)) + b"\r\n", 200),
        (GET + b"".join(b"X-%d: y\r\n" % number for number in range(99)) + b"\r\n", 431),
        (GET + b"X: " + b"y" * 32_000 + b"\r\n\r\n", 200),
        (GET + b"X: " + b"y" * 32_768 + b"\r\n\r\n", 431),
    ],
)
async def test_heads_are_bounded(service: Service, request_: bytes, status: int) -> None:
    answered, answer = await raw(service, request_)
    assert answered == status
    assert answer == {"status": "ok"} if status == 200 else answer["code"] == "too_large"


@pytest.mark.parametrize("piece", [b"x" * 1000, b"X: y\r\n" * 200])
@pytest.mark.parametrize("begin", [b"GET /", GET, GET + b"X: "])
async def test_a_head_that_never_ends_is_cut_off(service: Service, begin: bytes, piece: bytes) -> None:
    port = int(service.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begin)

    async def go_on() -> None:
        async with asyncio.timeout(60):
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await go_on()
    writer.close()


async def test_a_handshakes_head_is_bounded_too(service: Service) -> None:
    request = (
        b"GET /ws/market HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX: "
    )
    assert (await raw(service, request, b"y" * 50_000, b"\r\n\r\n"))[0] == 431


async def test_bodies_and_pipelined_requests_do_not_count_as_heads(service: Service) -> None:
    body = json.dumps({"series_id": BTC, "candles": [CANDLE] * 1000}).encode()
    assert len(body) > http_limits.MAX_HEAD_BYTES
    post = (
        b"POST /api/market/ingest/candles_closed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post + body + post + body)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 999 + GET + b"\r\n")
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == 1002


@asynccontextmanager
async def limited(tmp_path: Path, limits: ConnectionLimits) -> AsyncIterator[Service]:
    """A service with these limits of connections."""
    around = Surroundings(tuning=Tuning(connections=limits))
    async with running_service(tmp_path / "store.sqlite", None, None, around) as running:
        yield running


@pytest.fixture
async def hurried(tmp_path: Path) -> AsyncIterator[Service]:
    """A service that waits for a request's head for a short time."""
    async with limited(tmp_path, ConnectionLimits(head_timeout_s=0.05)) as running:
        yield running


async def test_an_unfinished_request_is_cut_off(hurried: Service) -> None:
    for begin in (b"", b"GET / HTTP/1.1\r\nHost:", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
        port = int(hurried.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        async with asyncio.timeout(60):
            assert b" 408 " in await reader.read()
        writer.close()


async def test_a_socket_is_not_cut_off_for_a_request_that_it_finished(hurried: Service) -> None:
    async with hurried.http.ws_connect(hurried.url + "/ws/market") as socket:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await socket.receive(timeout=0.05)
        await socket.send_json({"type": "ping"})
        assert await socket.receive_json(timeout=10) == {"type": "pong"}


async def test_connections_are_bounded_and_one_that_ends_makes_room(tmp_path: Path) -> None:
    async with limited(tmp_path, ConnectionLimits(connections=2)) as service, aiohttp.ClientSession() as http:
        first = await http.ws_connect(service.url + "/ws/market")
        async with http.ws_connect(service.url + "/ws/market"):
            status, answer = await raw(service, GET + b"\r\n")
            assert (status, answer["code"]) == (503, "too_many_connections")
            await first.close()
            await until(lambda: service.runtime.hub.clients == 1, "the first is gone")
            async with asyncio.timeout(60):
                while (await raw(service, GET + b"\r\n"))[0] != 200:
                    await asyncio.sleep(0.01)


async def test_the_answer_to_a_defect_has_no_internals(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(series_id: str) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr("klinesync.market.http_routes.SeriesId.parse", break_down)
    async with service.http.get(service.url + "/api/market/candles", params={"series_id": BTC}) as response:
        assert response.status == 500
        text = await response.text()
    assert json.loads(text)["code"] == "internal"
    assert "secret" not in text
    assert "Traceback" not in text
