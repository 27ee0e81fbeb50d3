"""SeriesEvent: what happened to a series, or to all series of a market; and how a log of events changes a store.

Events belong to a scope: a series (`binance:spot:BTC/USDT:1m`) or a market (`binance:spot`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from klinesync.core.series_id import SeriesId

# Names of events. A log may have others, which another version wrote.
EventName = Literal[
    "candles.corrected",
    "connection.failing",
    "connection.lost",
    "connection.made",
    "exchange.answers",
    "exchange.refuses",
    "exchange.unreachable",
    "gap.confirmed_empty",
    "gap.declared",
    "gap.filled",
    "gap.lost",
    "history.empty",
    "history.failed",
    "history.read",
    "series.followed",
    "series.unfollowed",
    "store.damaged",
    "store.failed",
    "store.quarantined",
    "stream.delisted",
    "stream.live",
    "stream.rest_fallback",
    "stream.stale",
    "stream.subscribed",
]


class SeriesEvent(NamedTuple):
    """An event. The same event again, soon after, is no second one: `times` and `at_ms` change.

    event: its name, `stream.stale`.
    detail: a sentence about it.
    at_ms: when it happened last, UTC milliseconds, by the exchange's clock where that is known.
    since_ms: when it happened first.
    times: how many times it happened.
    """

    event: str
    detail: str
    at_ms: int
    since_ms: int
    times: int = 1


class NumberedEvent(NamedTuple):
    """An event, and its number: of two events the one with the greater number happened later, whatever their scopes."""

    number: int
    event: SeriesEvent


class ScopeChange(NamedTuple):
    """What a store changes of one scope: it deletes the events with numbers below `first`, or from `start` on, then
    adds `events`."""

    scope: str
    first: int
    start: int
    events: tuple[NumberedEvent, ...] = ()


class EventBatch(NamedTuple):
    """What a store changes in one transaction. `clear`: it deletes all events of all scopes first."""

    changes: tuple[ScopeChange, ...] = ()
    clear: bool = False

    def __bool__(self) -> bool:
        return self.clear or bool(self.changes)


def market_scope(exchange: str, market: str) -> str:
    """The scope of a market."""
    return f"{exchange}:{market}"


def scopes_of(*series: SeriesId) -> list[str]:
    """The scopes of these series and of their markets, each once."""
    names = [str(one) for one in series]
    names += [market_scope(one.exchange, one.market) for one in series]
    return list(dict.fromkeys(names))
