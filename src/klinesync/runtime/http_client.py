"""HttpClient: HTTP and WebSocket requests to exchanges and archives. No redirects, no cookies; proxies by flag."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace, TracebackType
from typing import Protocol, Self

import aiohttp

from klinesync import __version__
from klinesync.runtime.proxies import Proxies

# Longest part of a redirect's target in a sentence, in characters.
MAX_LOCATION_CHARS = 200
# A body is read in pieces of at most this size, in bytes.
READ_CHUNK_BYTES = 64 << 10


class Body(Protocol):
    """The body of an answer, as it arrives."""

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Pieces of at most `n` bytes."""
        ...


class Response(Protocol):
    """The answer to one request."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, by name."""
        ...

    @property
    def content(self) -> Body:
        """The body."""
        ...


class Message(Protocol):
    """One WebSocket message."""

    @property
    def type(self) -> aiohttp.WSMsgType:
        """Text, binary …"""
        ...

    @property
    def data(self) -> object:
        """A string, where the type is text."""
        ...


class WebSocket(Protocol):
    """One WebSocket connection. Iteration gives the messages, and ends with the connection."""

    @property
    def close_code(self) -> int | None:
        """The close code of an ended connection; None while it is open."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Message: ...

    async def send_str(self, data: str) -> None:
        """Send a text message. Raises `ConnectionError` and `aiohttp.ClientError` on a connection that ended."""
        ...

    async def close(self) -> object:
        """Close the connection; returns when it is closed."""
        ...


class Http(Protocol):
    """HTTP and WebSocket as clients of exchanges use them. Implemented by `HttpClient`, and by doubles in tests."""

    def get(self, url: str, params: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Response]:
        """One GET. A redirect is an answer with its status, see `location`. Raises `aiohttp.ClientError` and
        TimeoutError on entry."""
        ...

    async def ws_connect(self, url: str, *, heartbeat: float, max_msg_size: int, close_timeout_s: float) -> WebSocket:
        """One WebSocket. Raises `aiohttp.ClientError`, `Redirected` among them, OSError and TimeoutError.

        url: `ws://` or `wss://`.
        heartbeat: interval of pings, in seconds; a ping without a pong ends the connection.
        max_msg_size: longest message, in bytes; a longer one ends the connection.
        close_timeout_s: longest wait of `close` for the other side, in seconds.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Redirected(aiohttp.ClientError):
    """A server answered with a redirect. Redirects are not followed: requests go to the configured host alone."""


class HttpClient:
    """An `aiohttp.ClientSession` without redirects and cookies, opened by the first request. `async with` closes it.

    timeout: limits of a request; none by default.
    proxies: the proxies of requests; none by default.
    auto_decompress: whether compressed bodies are decompressed; True by default.
    """

    def __init__(
        self,
        timeout: aiohttp.ClientTimeout | None = None,
        proxies: Proxies | None = None,
        *,
        auto_decompress: bool = True,
    ) -> None:
        self._timeout = timeout or aiohttp.ClientTimeout()
        self._proxies = proxies or Proxies()
        self._auto_decompress = auto_decompress
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def get(
        self, url: str, params: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """One GET. A redirect is an answer with its status, see `location`. Raises `aiohttp.ClientError` and
        TimeoutError on entry."""
        proxy, headers, proxy_headers = self._way(url)
        return self._opened.get(
            url, params=params, allow_redirects=False, headers=headers, proxy=proxy, proxy_headers=proxy_headers
        )

    async def ws_connect(
        self, url: str, *, heartbeat: float, max_msg_size: int, close_timeout_s: float
    ) -> aiohttp.ClientWebSocketResponse:
        """One WebSocket. Raises `aiohttp.ClientError`, `Redirected` among them, OSError and TimeoutError."""
        proxy, headers, proxy_headers = self._way(url)
        return await self._opened.ws_connect(
            url,
            heartbeat=heartbeat,
            max_msg_size=max_msg_size,
            timeout=aiohttp.ClientWSTimeout(ws_close=close_timeout_s),
            headers=headers,
            proxy=proxy,
            proxy_headers=proxy_headers,
        )

    @property
    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(_refuse_redirect)
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                headers={"User-Agent": f"klinesync/{__version__}"},
                auto_decompress=self._auto_decompress,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        return self._session

    def _way(self, url: str) -> tuple[str | None, dict[str, str] | None, dict[str, str] | None]:
        """The proxy's address, the headers of the request for the proxy, and the headers of the CONNECT before it."""
        proxy = self._proxies.proxy_for(url)
        if proxy is None:
            return None, None, None
        if proxy.login is None:
            return proxy.url, None, None
        login = {"Proxy-Authorization": aiohttp.encode_basic_auth(*proxy.login)}
        tunnelled = url.startswith(("https://", "wss://"))
        return proxy.url, None if tunnelled else login, login if tunnelled else None


async def read_body(response: Response, most_bytes: int) -> bytes:
    """The body of an answer. Of a body longer than `most_bytes` a part is returned that is longer than `most_bytes`
    too."""
    parts, size = [], 0
    async for part in response.content.iter_chunked(READ_CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            break
    return b"".join(parts)


def location(response: Response) -> str:
    """The target of a redirect as a part of a sentence; empty for any other answer."""
    if not 300 <= response.status < 400:
        return ""
    target = response.headers.get("Location", "")[:MAX_LOCATION_CHARS]
    return f" and points to {target!r}; redirects are not followed" if target else "; redirects are not followed"


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    response = redirect.response
    response.close()
    raise Redirected(f"{redirect.url} answered {response.status}{location(response)}")
