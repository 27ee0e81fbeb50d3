"""The HTTP session of the client, which talks to the service alone: redirects are refused."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp

# Most characters of a redirect's target in the error.
MAX_LOCATION_CHARS = 200


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """A session that raises `aiohttp.ClientError` at a redirect. `timeout_s`: limit of a whole request, in seconds."""
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
