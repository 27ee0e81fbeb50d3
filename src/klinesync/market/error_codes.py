"""The codes of HTTP errors, the HTTP status of each error class, and the answer to a refused request. The reference
page of errors is tested against both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klinesync.core.errors import KlinesyncError, Rejected, StoreError, UnknownSeries, UpstreamError
from klinesync.market_data.event_streams import RateLimited
from klinesync.market_data.factor_services import LedgerOutOfSync

# Codes of refusals without an error class: of the server, its limits and the guard.
FrontDoorCode = Literal[
    "bad_request",
    "busy",
    "forbidden",
    "ingest_failed:candles",
    "internal",
    "method_not_allowed",
    "not_found",
    "shutting_down",
    "too_large",
    "too_many_connections",
    "too_slow",
    "unauthorized",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a refused request or handshake.

    status: of HTTP.
    code: for programs.
    detail: a sentence for people.
    headers: in addition to type and length of the body; none by default.
    """

    status: int
    code: FrontDoorCode
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


SHUTTING_DOWN = Refusal(503, "shutting_down", "the service stops", ((b"connection", b"close"),))

# The HTTP status of an error class and its subclasses; the first entry that fits counts.
HTTP_STATUSES: tuple[tuple[type[KlinesyncError], int], ...] = (
    (UnknownSeries, 404),
    (RateLimited, 429),
    (Rejected, 422),
    (LedgerOutOfSync, 409),
    (UpstreamError, 502),
    (StoreError, 503),
)


def http_status(error: type[KlinesyncError]) -> int | None:
    """The HTTP status of an error class; None when the error is a defect of the service."""
    return next((status for kind, status in HTTP_STATUSES if issubclass(error, kind)), None)
