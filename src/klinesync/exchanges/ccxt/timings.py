"""CcxtTimings, TurnTimings: waits, intervals and limits of the ccxt client that no flag sets. Seconds are monotonic."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.exchanges.exchange import LISTINGS_TTL_S
from klinesync.exchanges.whole_lists import USUAL_LISTS, ListTimings

# Backoff after a refusal without Retry-After.
REFUSED = Backoff(initial_s=5.0, most_s=300.0)
# Backoff after consecutive failures beyond `HARMLESS_FAILURES`.
TROUBLE = Backoff(initial_s=1.0, most_s=30.0)
# Backoff of a live series that is restarted. Retries are counted from 1 after a failure, from 0 where the series ran
# for longer than the longest delay.
BEGIN_AGAIN = Backoff(initial_s=0.5, most_s=30.0, jitter=0.5)


@dataclass(frozen=True, slots=True)
class TurnTimings:
    """Backoff and limits of the requests to one venue.

    refused: backoff after a refusal without Retry-After.
    trouble: backoff after consecutive failures.
    held_most_s: longest cooldown or backoff that a queued request waits for; a user's request waits for none.
    burst_s: largest debt of a paced budget at which a request may be sent, in seconds of the budget: the closes of a
        minute are requested together.
    max_waiting: most queued requests; beyond that the least urgent one is refused.
    """

    refused: Backoff = REFUSED
    trouble: Backoff = TROUBLE
    held_most_s: float = TROUBLE.most_s
    burst_s: float = 10.0
    max_waiting: int = 5000


USUAL_TURNS = TurnTimings()


@dataclass(frozen=True, slots=True)
class CcxtTimings:
    """The timings of one exchange of ccxt.

    ask_time_every_s: shortest time between two requests for a market's time.
    ask_date_every_s: where the exchange has no request for its time, shortest time between two requests for rows in
        place of it. Every answer counts, also one without news: a quiet series without a `Date`.
    confirm_s: time after which a candle that was published as closed is requested again, unless a poll comes before.
    listings_ttl_s: age of a list of symbols at which it is requested again.
    unlisted_ttl_s: the same when the list lacks a symbol. ccxt's lists are large.
    polls_per_candle: polls of a forming candle within its length.
    poll_least_s, poll_most_s: shortest and longest time between two such polls of one series.
    poll_again_s: shortest time between the poll for a due candle and the poll before.
    look_most_s: longest interval at which the due time of the next candle is computed anew, because the estimate of the
        exchange's time may have changed.
    silent_pause_s: time for which a series is polled whose stream pushes nothing while REST shows traded candles.
    begin_again: backoff of a live series that is restarted.
    turns: backoff and limits of requests.
    lists: when lists of symbols are believed and requested again.
    """

    ask_time_every_s: float = 1.0
    ask_date_every_s: float = 5.0
    confirm_s: float = 8.0
    listings_ttl_s: float = LISTINGS_TTL_S
    unlisted_ttl_s: float = 300.0
    polls_per_candle: float = 20.0
    poll_least_s: float = 2.0
    poll_most_s: float = 60.0
    poll_again_s: float = 0.25
    look_most_s: float = 5.0
    silent_pause_s: float = 300.0
    begin_again: Backoff = BEGIN_AGAIN
    turns: TurnTimings = USUAL_TURNS
    lists: ListTimings = USUAL_LISTS


USUAL_CCXT = CcxtTimings()
