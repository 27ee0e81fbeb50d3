"""Guard: access by `Host`, browser origin and bearer token.

Every page that a browser on the machine shows can reach a service on loopback. The page can post to the service, open a
WebSocket, or make its own name resolve to 127.0.0.1 (DNS rebinding) and then read everything. Therefore `Host` must be
ours, and a foreign `Origin` may neither write nor open a socket; answers to foreign reads have no CORS headers, so the
browser withholds them from the page. A read without `Origin` (an image, a link) may still cause requests to an
exchange, so below `/api` a request that the browser marks as foreign with `Sec-Fetch-Site` is refused too.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from klinesync.core.errors import BadFlag
from klinesync.market.error_codes import Refusal

# Paths that require the token when one is set: writes, debug and metrics. Never /healthz or /readyz.
GUARDED_PATHS = ("/api/market/ingest/", "/api/market/debug/", "/metrics")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PORTS = {"http": 80, "https": 443}
# Values of `Sec-Fetch-Site` for requests of pages of another site, or of another origin of this site.
FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})
# Addresses that stand for every address of the machine.
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, not bound to

_HOST = re.compile(rb"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")


class Host(NamedTuple):
    """The `Host` of a request, in lower case and without brackets; `port` is None where the header has none."""

    name: str
    port: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """A browser origin: scheme, host and port. `port` is never None: the default port of the scheme is filled in."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """`http://host:port` or `https://host`, without a path. Raises ValueError with the reason."""
        scheme, separator, host = text.lower().partition("://")
        named = parse_host(host.encode())
        if not separator or scheme not in DEFAULT_PORTS or named is None:
            raise ValueError(f"{text[:100]!r} is no origin; it is written http://host:port or https://host")
        return cls(scheme, named.name, named.port or DEFAULT_PORTS[scheme])

    def __str__(self) -> str:
        """The origin as browsers write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The parts of a request that the guard checks.

    kind: `http` or `websocket`.
    method: of the request.
    path: of the request.
    address: local address of the connection; None when unknown.
    hosts, origins, authorizations, fetch_sites: values of these headers, each as often as sent.
    """

    kind: str
    method: str
    path: str
    address: str | None
    hosts: Sequence[bytes] = ()
    origins: Sequence[bytes] = ()
    authorizations: Sequence[bytes] = ()
    fetch_sites: Sequence[bytes] = ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides about requests.

    host: the address that the service listens on.
    origins: foreign origins that may connect.
    token: required for `GUARDED_PATHS`; None: no token is required.
    """

    host: str = "127.0.0.1"
    origins: tuple[Origin, ...] = ()
    token: str | None = None

    @classmethod
    def of(cls, host: str, allowed_origins: Iterable[str], api_token: str | None) -> Guard:
        """The guard of these flags.

        host: address that the service listens on.
        allowed_origins: foreign origins that may connect.
        api_token: None without one.

        Raises `BadFlag` for a malformed origin, and for a service beyond loopback without a token.
        """
        check_exposure(host, api_token)
        try:
            return cls(host, tuple(map(Origin.parse, allowed_origins)), api_token)
        except ValueError as error:
            raise BadFlag("allowed_origins", str(error)) from None

    def refuses(self, head: RequestHead) -> Refusal | None:
        """The refusal of a request; None when it is admitted."""
        if len(head.hosts) != 1:
            return Refusal(400, "bad_request", "a request has exactly one Host header")
        host = parse_host(head.hosts[0])
        if host is None or not self._ours(host.name, head.address):
            sentence = "Host is not a name of this service; allowed_origins takes further names"
            return Refusal(403, "forbidden", sentence)
        if (head.kind == "websocket" or head.method not in SAFE_METHODS) and not self._may_write(head, host):
            return Refusal(403, "forbidden", "Origin is neither this service's nor one of allowed_origins")
        # Without an Origin the page is unknown.
        foreign = any(site.strip().lower() in FOREIGN_SITES for site in head.fetch_sites)
        if foreign and below_api(head.path) and not (head.origins and self._may_write(head, host)):
            return Refusal(
                403, "forbidden", "the request comes from a page of another site; allowed_origins admits its Origin"
            )
        if self.token is not None and guarded(head.path) and head.method != "OPTIONS":
            given = head.authorizations[0] if len(head.authorizations) == 1 else b""
            if not bears(given, self.token):
                sentence = "the service's api_token is required: Authorization: Bearer …"
                return Refusal(401, "unauthorized", sentence, ((b"www-authenticate", b"Bearer"),))
        return None

    def foreign_origin(self, head: RequestHead) -> str | None:
        """The browser origin of a request when it is neither ours nor allowed, in the form of the flag; otherwise
        None."""
        host = parse_host(head.hosts[0]) if len(head.hosts) == 1 else None
        if host is None or not self._ours(host.name, head.address) or self._may_write(head, host):
            return None
        return readable_origin(head.origins)

    def _ours(self, name: str, address: str | None) -> bool:
        if is_loopback(name) or name == self.host.lower() or any(name == origin.host for origin in self.origins):
            return True
        return self.host in WILDCARDS and address is not None and name == address

    def _may_write(self, head: RequestHead, host: Host) -> bool:
        """Whether the origin is ours, allowed, or missing, as in requests of clients other than browsers."""
        if not head.origins:
            return True
        if len(head.origins) > 1:
            return False
        try:
            origin = Origin.parse(head.origins[0].decode("latin-1"))
        except ValueError:  # `null` too
            return False
        # The scheme of the request is not compared, because it is wrong behind a proxy that terminates TLS.
        own = Origin(origin.scheme, host.name, host.port or DEFAULT_PORTS[origin.scheme])
        return origin == own or origin in self.origins


def check_exposure(host: str, api_token: str | None) -> None:
    """Raises `BadFlag` when other machines could reach the service without a token."""
    if not is_loopback(host) and api_token is None:
        raise BadFlag("api_token", f"is required to listen on {host}, which is not loopback")


def guarded(path: str) -> bool:
    """Whether the path requires the token."""
    return any(path == prefix.rstrip("/") or path.startswith(f"{prefix.rstrip('/')}/") for prefix in GUARDED_PATHS)


def below_api(path: str) -> bool:
    """Whether the path belongs to the API; links to the page's files are allowed from everywhere."""
    return path == "/api" or path.startswith("/api/")


def bears(authorization: bytes, token: str) -> bool:
    """Whether the header has the token. The comparison takes the same time for any wrong token."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


def readable_origin(headers: Sequence[bytes]) -> str | None:
    """The origin of a request, in the form of the flag; None for several headers, or a malformed one."""
    try:
        return str(Origin.parse(headers[0].decode("latin-1"))) if len(headers) == 1 else None
    except ValueError:
        return None


def parse_host(header: bytes) -> Host | None:
    """The name or address, and the port, of a `Host` header; None for an invalid one."""
    match = _HOST.fullmatch(header.lower())
    if match is None:
        return None
    name, port = match.groups()
    return Host(name.strip(b"[]").decode("ascii"), None if port is None else int(port))
