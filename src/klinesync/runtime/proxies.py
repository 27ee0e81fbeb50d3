"""Proxies: the proxy of each request, by `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import quote, unquote, urlsplit

from klinesync.core.errors import BadFlag

FLAG = "enable_environment_proxies"
# By scheme of the request: the variables of its proxy. The spelling in lower case wins, as for curl.
_VARIABLES = {
    "http": ("http_proxy", "HTTP_PROXY"),
    "ws": ("http_proxy", "HTTP_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY"),
    "wss": ("https_proxy", "HTTPS_PROXY"),
}
_EXCEPT = ("no_proxy", "NO_PROXY")
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. `url` has no credentials, so that it may be logged; `login`: user and password; None without any."""

    url: str
    login: tuple[str, str] | None = None

    @property
    def with_login(self) -> str:
        """The address with credentials, for libraries that expect them in the address. Not for logs."""
        if self.login is None:
            return self.url
        user, password = (quote(part, safe="") for part in self.login)
        scheme, _, address = self.url.partition("://")
        return f"{scheme}://{user}:{password}@{address}"


class Proxies:
    """The proxies of an environment.

    environment: the variables of the process; empty when proxies are switched off.

    Raises `BadFlag` for a proxy that is neither http:// nor https://.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = environment or {}
        self._by_scheme: dict[str, Proxy] = {}
        for scheme, names in _VARIABLES.items():
            name = next((name for name in names if environment.get(name, "").strip()), None)
            if name is not None:
                self._by_scheme[scheme] = _parse(name, environment[name].strip())
        exceptions = next((environment[name] for name in _EXCEPT if environment.get(name)), "")
        self._exceptions = [text for part in exceptions.split(",") if (text := part.strip().lower())]

    @property
    def named(self) -> bool:
        """Whether the environment names any proxy."""
        return bool(self._by_scheme)

    def proxy_for(self, url: str) -> Proxy | None:
        """The proxy for a request of `url`; None: connect directly, as always to loopback addresses."""
        parts = urlsplit(url)
        proxy = self._by_scheme.get(parts.scheme)
        host = (parts.hostname or "").rstrip(".")
        if proxy is None or not host or is_loopback_host(host):
            return None
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        return None if any(_matches(text, host, port) for text in self._exceptions) else proxy


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(name: str, value: str) -> Proxy:
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadFlag(FLAG, f"the proxy of {name} is no address such as http://host:port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problem = f"a {parts.scheme}:// proxy" if parts.hostname else "no address such as http://host:port"
        raise BadFlag(FLAG, f"{name} is {problem}; use an http:// or https:// proxy, or switch {FLAG} off")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    address = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    if parts.username is None:
        return Proxy(address)
    return Proxy(address, (unquote(parts.username), unquote(parts.password or "")))


def _matches(text: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, a name with its subdomains, an address or a network; each with
    `:port` for that port alone."""
    if text == "*":
        return True
    name, colon, suffix = text.rpartition(":")
    if colon and suffix.isdecimal() and (":" not in name or name.startswith("[")):
        if int(suffix) != port:
            return False
        text = name
    text = text.strip("[]").removeprefix("*").lstrip(".")
    if not text:
        return False
    try:
        return ip_address(host) in ip_network(text, strict=False)
    except ValueError:
        return host == text or host.endswith(f".{text}")
