"""When to repeat a request that a busy service has refused. Pure: an answer in, a pause out."""

from __future__ import annotations

from math import isfinite

from klinesync.core.backoff import Backoff

# Codes of refusals of a request that was not begun: the same request may be sent again, whatever its method.
REPEATED_CODES = frozenset({"busy", "shutting_down"})
# Repeats of one request; with the backoff below the last repeat comes about a minute after the first request.
MAX_REPEATS = 6
# Before a repeat. A longer Retry-After wins, up to the longest delay.
REPEAT = Backoff(initial_s=1.0, most_s=30.0)


def repeat_after_s(status: int, code: str | None, retry_after: str | None, repeats: int) -> float | None:
    """Seconds until the request is to be sent again; None: the answer stands.

    status: of the answer
    code: the `code` of the refusal; None where the body has none
    retry_after: the `Retry-After` header; None where there is none
    repeats: how many times the request has been repeated already
    """
    if status != 503 or code not in REPEATED_CODES or repeats >= MAX_REPEATS:
        return None
    try:
        named_s = float(retry_after or 0)
    except ValueError:  # a date, which the service never sends
        named_s = 0.0
    return min(max(REPEAT.delay_s(repeats), named_s if isfinite(named_s) else 0.0), REPEAT.most_s)
