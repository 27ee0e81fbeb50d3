"""The proxy of each request, by the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadFlag
from klinesync.runtime.proxies import FLAG, Proxies, Proxy

PROXY = {"HTTPS_PROXY": "http://proxy.example:3128", "HTTP_PROXY": "proxy.example:8080"}
TUNNEL = Proxy("http://proxy.example:3128")
PLAIN = Proxy("http://proxy.example:8080")


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://fapi.binance.com/fapi/v1/time", TUNNEL),
        ("wss://stream.binance.com:9443/stream", TUNNEL),
        ("http://exchange.example/api/v3/time", PLAIN),
        ("ws://exchange.example/stream", PLAIN),
        ("ftp://exchange.example/", None),
    ],
)
def test_streams_use_the_proxy_of_their_http_scheme(url: str, proxy: Proxy | None) -> None:
    assert Proxies(PROXY).proxy_for(url) == proxy


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "[::1]", "sim.localhost", "localhost."])
def test_loopback_goes_through_no_proxy(host: str) -> None:
    proxies = Proxies(PROXY)
    for scheme in ("http", "https", "ws", "wss"):
        assert proxies.proxy_for(f"{scheme}://{host}:8443/x") is None


def test_the_variable_in_lower_case_wins_and_an_empty_one_is_ignored() -> None:
    both = PROXY | {"https_proxy": "http://other.example:1"}
    assert Proxies(both).proxy_for("https://a.example") == Proxy("http://other.example:1")
    assert Proxies({"HTTPS_PROXY": " "}).proxy_for("https://a.example") is None
    assert Proxies({}).proxy_for("https://a.example") is None


@pytest.mark.parametrize(
    ("exceptions", "direct", "proxied"),
    [
        ("binance.com", ["binance.com", "api.binance.com"], ["binance.com.example", "notbinance.com"]),
        (".binance.com", ["api.binance.com"], ["binance.us"]),
        ("*.binance.com", ["api.binance.com"], ["binance.us"]),
        ("api.binance.com:443", ["api.binance.com"], ["api.binance.com:9443"]),
        (" a.example , B.example", ["a.example", "b.example"], ["c.example"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.1.2.3", "a.example"]),
        ("[2001:db8::1]:443,2001:db8::2", ["[2001:db8::1]", "[2001:db8::2]"], ["[2001:db8::3]"]),
        ("*", ["a.example"], []),
        (",,", [], ["a.example"]),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(
    exceptions: str, direct: list[str], proxied: list[str]
) -> None:
    proxies = Proxies(PROXY | {"NO_PROXY": exceptions})
    assert [proxies.proxy_for(f"https://{host}/") for host in direct] == [None] * len(direct)
    assert [proxies.proxy_for(f"https://{host}/") for host in proxied] == [TUNNEL] * len(proxied)


def test_credentials_are_not_in_the_address() -> None:
    proxy = Proxies({"HTTPS_PROXY": "http://me:p%40ss@proxy.example:3128/"}).proxy_for("https://a.example")
    assert proxy == Proxy("http://proxy.example:3128", ("me", "p@ss"))
    assert proxy.with_login == "http://me:p%40ss@proxy.example:3128"


@pytest.mark.parametrize("value", ["socks5://proxy.example:1080", "http://", "http://proxy.example:port"])
def test_an_unsupported_proxy_stops_the_start_with_the_name_of_the_flag(value: str) -> None:
    with pytest.raises(BadFlag, match=FLAG) as refused:
        Proxies({"HTTPS_PROXY": value})
    assert "HTTPS_PROXY" in str(refused.value)
    assert "secret" not in str(refused.value)


@given(st.dictionaries(st.sampled_from(["HTTPS_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]), st.text()), st.text())
def test_any_environment_is_read_or_refused_with_the_flag(environment: dict[str, str], host: str) -> None:
    try:
        proxies = Proxies(environment)
    except BadFlag:
        return
    proxies.proxy_for("https://api.exchange.example/x")
