"""Access by host, origin and token."""

import pytest

from klinesync.core.errors import BadFlag
from klinesync.market.guard import Guard, Origin, RequestHead, bears, guarded

TOKEN = "a-token-of-some-length"


def refused(
    guard: Guard,
    host: str | None = "127.0.0.1:8000",
    *,
    origin: str | None = None,
    authorization: str | None = None,
    method: str = "GET",
    kind: str = "http",
    path: str = "/api/market/candles",
    address: str | None = "127.0.0.1",
) -> int | None:
    def sent(value: str | None) -> list[bytes]:
        return [] if value is None else [value.encode()]

    refusal = guard.refuses(RequestHead(kind, method, path, address, sent(host), sent(origin), sent(authorization)))
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:8000", "[::1]", "127.8.8.8"]
)
def test_loopback_is_ours_on_any_port(host: str) -> None:
    assert refused(Guard(), host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.5:8000",
        "0.0.0.0:8000",
        "localhost@evil.example",
        "evil.example/127.0.0.1",
        "127.0.0.1#",
        "[::1",
        "127.0.0.1:x",
        "",
        "ｌocalhost",
    ],
)
def test_a_name_that_is_not_ours_is_refused(host: str) -> None:
    assert refused(Guard(), host) == 403


def test_a_request_names_its_host_once() -> None:
    assert refused(Guard(), None) == 400
    two = Guard().refuses(RequestHead("http", "GET", "/", None, [b"localhost", b"localhost"]))
    assert two is not None
    assert two.status == 400


def test_the_listening_address_and_names_of_allowed_origins_are_ours() -> None:
    guard = Guard.of("192.168.1.5", ["https://Charts.Example"], TOKEN)
    assert refused(guard, "192.168.1.5:8000") is None
    assert refused(guard, "charts.example") is None
    assert refused(guard, "192.168.1.6:8000") == 403


def test_on_a_wildcard_only_the_local_address_of_the_connection_is_ours() -> None:
    guard = Guard.of("0.0.0.0", [], TOKEN)
    assert refused(guard, "192.168.1.5:8000", address="192.168.1.5") is None
    assert refused(guard, "192.168.1.6:8000", address="192.168.1.5") == 403
    assert refused(guard, "evil.example", address="192.168.1.5") == 403
    assert refused(Guard(), "192.168.1.5:8000", address="192.168.1.5") == 403, "it listens on loopback alone"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:5173", "garbage", "file://", ""])
def test_a_foreign_origin_may_neither_write_nor_open_a_socket(origin: str) -> None:
    assert refused(Guard(), origin=origin, method="POST") == 403
    assert refused(Guard(), origin=origin, method="DELETE") == 403
    assert refused(Guard(), origin=origin, kind="websocket") == 403
    assert refused(Guard(), origin=origin) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("http://localhost", "localhost"),
        ("https://localhost", "localhost"),
        ("https://localhost", "localhost:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_services_own_page_may_do_everything(origin: str, host: str) -> None:
    assert refused(Guard(), host, origin=origin, kind="websocket") is None
    assert refused(Guard(), host, origin=origin, method="POST") is None


def test_an_allowed_origin_may_do_everything_and_only_with_its_scheme_and_port() -> None:
    guard = Guard.of("127.0.0.1", ["https://charts.example", "http://127.0.0.1:5173"], None)
    assert refused(guard, origin="https://charts.example", kind="websocket") is None
    assert refused(guard, origin="https://charts.example:443", method="POST") is None
    assert refused(guard, origin="http://127.0.0.1:5173", kind="websocket") is None
    assert refused(guard, origin="http://charts.example", kind="websocket") == 403
    assert refused(guard, origin="https://charts.example:8443", kind="websocket") == 403


def test_two_origins_are_refused() -> None:
    head = RequestHead("websocket", "GET", "/", None, [b"localhost"], [b"http://localhost", b"http://localhost"])
    refusal = Guard().refuses(head)
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize(
    "path", ["/api/market/ingest/candle_closed", "/api/market/debug/ingest_state", "/metrics", "/api/market/ingest"]
)
def test_writes_debug_and_metrics_require_the_token_when_one_is_set(path: str) -> None:
    guard = Guard(token=TOKEN)
    assert refused(guard, path=path, method="POST") == 401
    for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \xff", ""):
        assert refused(guard, path=path, authorization=wrong) == 401, wrong
    assert refused(guard, path=path, authorization=f"Bearer {TOKEN}") is None
    assert refused(guard, path=path, authorization=f"bearer  {TOKEN}") is None
    assert refused(Guard(), path=path, method="POST") is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/api/market/candles", "/ws/market", "/metricsx"])
def test_other_paths_require_no_token(path: str) -> None:
    assert not guarded(path)
    assert refused(Guard(token=TOKEN), path=path) is None


def test_a_token_that_is_sent_twice_is_refused() -> None:
    head = RequestHead("http", "GET", "/metrics", None, [b"localhost"], [], [b"Bearer " + TOKEN.encode()] * 2)
    refusal = Guard(token=TOKEN).refuses(head)
    assert refusal is not None
    assert refusal.status == 401


def test_a_token_may_be_any_text() -> None:
    assert bears("Bearer schlüssel".encode(), "schlüssel")
    assert not bears(b"Bearer schl", "schlüssel")


def test_beyond_loopback_a_token_is_required() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "charts.example"):
        with pytest.raises(BadFlag, match="api_token: is required"):
            Guard.of(host, [], None)
        Guard.of(host, [], TOKEN)
    for host in ("127.0.0.1", "::1", "localhost"):
        Guard.of(host, [], None)


@pytest.mark.parametrize(
    "text", ["*", "charts.example", "ftp://charts.example", "https://", "https://x/path", "https://a@x", "https://x:y"]
)
def test_a_malformed_allowed_origin_stops_the_start(text: str) -> None:
    with pytest.raises(BadFlag, match="allowed_origins"):
        Guard.of("127.0.0.1", [text], None)


@pytest.mark.parametrize("text", ["http://localhost:5173", "https://charts.example", "http://[::1]:8000"])
def test_an_origin_is_written_as_browsers_write_it(text: str) -> None:
    assert str(Origin.parse(text)) == text
    assert str(Origin.parse("https://CHARTS.example:443")) == "https://charts.example"
