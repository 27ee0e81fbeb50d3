"""HttpClient: HTTP and WebSocket requests to exchanges and archives. No redirects, no cookies; proxies by flag."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace, TracebackType
from typing import Self

import aiohttp

from klinesync import __version__
from klinesync.runtime.proxies import Proxies

# Of where a redirect points at most so much is told.
MAX_LOCATION_CHARS = 200


class Redirected(aiohttp.ClientError):
    """A server pointed elsewhere. Redirects are not followed: nobody but the configured host is asked."""


class HttpClient:
    """One `aiohttp.ClientSession` under our rules. `async with` opens and closes it.

    timeout: limits of a request; by default none.
    proxies: which requests go through which proxy; by default none does.
    auto_decompress: off for files that are wanted as they are.
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
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            headers={"User-Agent": f"klinesync/{__version__}"},
            auto_decompress=self._auto_decompress,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

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
        assert self._session is not None, "the client is open"
        return self._session

    def _way(self, url: str) -> tuple[str | None, dict[str, str] | None, dict[str, str] | None]:
        """The proxy's address, what the request itself tells the proxy, and what the CONNECT before a request tells."""
        proxy = self._proxies.proxy_for(url)
        if proxy is None:
            return None, None, None
        if proxy.login is None:
            return proxy.url, None, None
        login = {"Proxy-Authorization": aiohttp.encode_basic_auth(*proxy.login)}
        tunnelled = url.startswith(("https://", "wss://"))
        return proxy.url, None if tunnelled else login, login if tunnelled else None


def location(response: aiohttp.ClientResponse) -> str:
    """Where a redirect points, as a part of a sentence: empty for any other answer."""
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
