"""The table of venues in the how-to of other exchanges, made from the code."""

from __future__ import annotations

from pathlib import Path

import generated

from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.timings import USUAL_CCXT
from klinesync.exchanges.ccxt.venue_margin import DATE_STEP_MS
from klinesync.exchanges.ccxt.venues import REQUESTS_PER_CANDLE, VENUES, Quiet, Venue, polling
from klinesync.runtime.flags import RuntimeFlags

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "follow-other-exchanges.md"
COLUMNS = (
    "venue",
    "market",
    "series of 1m that fit",
    "requests a minute: at most; of one series",
    "closed after its end: one alone; the last of all that fit",
    "candles kept",
    "a minute without trades",
    "in between shown by",
)
MINUTE = Timeframe.parse("1m")
MARGIN_S: float = RuntimeFlags.model_fields["rest_final_margin_s"].default
QUIET = {Quiet.FLAT: "flat candle", Quiet.OMITTED: "missing", Quiet.LATE: "missing, later a flat candle"}


def table() -> str:
    """The table's text."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for venue in VENUES.values():
        markets: dict[tuple[str, ...], list[str]] = {}  # by what they have in common
        for market in venue.rows:
            markets.setdefault(_cells(venue, market), []).append(market)
        rows += [(venue.name, ", ".join(names), *cells) for cells, names in markets.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """The text of the page, with its table written anew."""
    return generated.with_part(PAGE.read_text(), "venues", table())


def _cells(venue: Venue, market: str) -> tuple[str, ...]:
    cost = polling(venue, market)
    assert cost is not None, "each venue of the table has a rate"
    fit = cost.fit(MINUTE)
    pause_s = min(MINUTE.seconds / USUAL_CCXT.polls_per_candle, USUAL_CCXT.poll_most_s)
    polls = 60.0 / max(USUAL_CCXT.poll_least_s, pause_s)
    own = f"{REQUESTS_PER_CANDLE}" if venue.pushes else f"{REQUESTS_PER_CANDLE} to {polls:.0f}"
    first_s = MARGIN_S + USUAL_CCXT.poll_again_s + (0.0 if venue.tells_time else DATE_STEP_MS / 1000)
    depth = f"{venue.depth[market]:,}" if market in venue.depth else "all"
    return (
        f"{fit}",
        f"{cost.per_minute:.0f}; {own}",
        f"{first_s + cost.request_s:.1f} s; {first_s + fit * cost.request_s:.0f} s",
        depth,
        QUIET[venue.quiet],
        "stream" if venue.pushes else "polls",
    )
