"""The HTTP session of the client: to the service alone, wherever a redirect points."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp

# Of where a redirect points at most so much is told.
MAX_LOCATION_CHARS = 200


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """A session that follows no redirect: one is an `aiohttp.ClientError`. `timeout_s`: limit of a whole request."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s), trace_configs=[trace])


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    response = redirect.response
    response.close()
    target = response.headers.get("Location", "")[:MAX_LOCATION_CHARS]
    raise aiohttp.ClientError(
        f"it answered {response.status} and points to {target!r}; redirects are not followed, give the address itself"
    )
