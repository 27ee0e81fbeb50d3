"""A REST request to the simulated exchange: its parameters as the exchange reads them, and how it refuses them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from klinesync.sim.tape import Market

_MICRO_FROM = 10**14  # a time argument at or above it is microseconds
NUMBER = re.compile(r"[0-9]{1,20}")
_TIME_ZONE = re.compile(r"([+-]?)(\d\d?)(?::([0-5]\d))?")


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A GET below `/api/v3` or `/fapi/v1`. `path` is what follows that; `micro` when the client asked for
    microseconds by header."""

    market: Market
    path: str
    params: Mapping[str, str]
    address: str
    micro: bool = False
    wants_html: bool = False


class Refused(Exception):
    """A request that the exchange answers with an error."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        self.code = code
        self.status = status
        self.message = message
        super().__init__(message)


def missing(name: str) -> NoReturn:
    """Refuse a request without a parameter."""
    raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def illegal(name: str, legal: str) -> NoReturn:
    """Refuse a parameter with other characters than `legal`, a pattern of the exchange."""
    raise Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")


def limit_of(request: RestRequest, default: int, futures_most: int) -> int:
    """The rows that the request wants. Raises `Refused`."""
    text = request.params.get("limit")
    if text is None:
        return default
    if NUMBER.fullmatch(text) is None:
        illegal("limit", "^[0-9]{1,20}$")
    limit = int(text)
    if limit == 0 or (request.market == "futures" and limit > futures_most):
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return min(limit, 1000) if request.market == "spot" else limit


def time_ms(request: RestRequest, name: str) -> int | None:
    """A time argument in milliseconds; None when it was not sent. Raises `Refused`."""
    text = request.params.get(name)
    if text is None:
        return None
    if not text:
        raise Refused(-1105, f"Parameter '{name}' was empty.")
    if NUMBER.fullmatch(text) is None:
        illegal(name, "^[0-9]{1,20}$")
    value = int(text)
    if request.market == "spot" and value >= _MICRO_FROM:
        # A start inside a millisecond lies behind that millisecond.
        value = -(-value // 1000) if name == "startTime" else value // 1000
    return min(value, 253_402_300_799_000)


def zone_s(text: str) -> int:
    """The offset of a time zone such as `-3:30`, in seconds. Raises `Refused`."""
    match = _TIME_ZONE.fullmatch(text)
    if match is not None:
        seconds = int(match[2]) * 3600 + int(match[3] or 0) * 60
        seconds = -seconds if match[1] == "-" else seconds
        if -12 * 3600 <= seconds <= 14 * 3600:
            return seconds
    raise Refused(-1130, "Data sent for parameter 'timeZone' is not valid.")
