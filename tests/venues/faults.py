"""Faults of a venue's REST and stream, as values that a test sets at run time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ask(Enum):
    """The kind of a request."""

    TIME = "time"
    MARKETS = "markets"
    ROWS = "rows"
    TICKERS = "tickers"


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP status in place of an answer. `body` as text; `retry_after` is the header, None: without it.

    A body of JSON has ccxt look for the venue's own code in place of the status.
    """

    status: int
    body: str = "trouble"
    content_type: str = "text/plain"
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """Status 200 with an invalid body."""

    body: str
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer, for as long as the client waits."""


@dataclass(frozen=True, slots=True)
class Drip:
    """The true answer, one byte per so many seconds."""

    every_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Cut:
    """The first half of the true answer."""


Fault = Status | Body | Hang | Drip | Cut

HTML = Body("<html><body><h1>Checking your browser</h1></body></html>", "text/html")
EMPTY_OBJECT = Body("{}")
SERVER_ERROR = Status(500)
UNAVAILABLE = Status(503)
FORBIDDEN = Status(403, "Forbidden")
# okx sends plain text.
TOO_MANY = Status(429, "Too Many Requests")
# With okx's code in JSON.
TOO_MANY_CODE = Status(429, '{"code":"50011","msg":"Too Many Requests"}', "application/json")


def too_many(retry_after: str) -> Status:
    """A 429 with `Retry-After`."""
    return Status(429, TOO_MANY.body, retry_after=retry_after)


class StreamFault(Enum):
    """The fault of the stream. REFUSED: the handshake is refused. SILENT: subscriptions are acknowledged, and no candle
    arrives. FROZEN: the candle that was pushed last is repeated. WRONG: candles have other values than REST."""

    REFUSED = "refused"
    SILENT = "silent"
    FROZEN = "frozen"
    WRONG = "wrong"


class DateHeader(Enum):
    """Whether answers have a `Date` header."""

    ON = "on"
    OFF = "off"
