"""CcxtTimings, TurnTimings: waits, intervals and limits of the ccxt client that no flag sets. Seconds are monotonic."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.exchanges.exchange import LISTINGS_TTL_S
from klinesync.exchanges.whole_lists import USUAL_LISTS, ListTimings

# Backoff after a refusal without Retry-After.
REFUSED = Backoff(initial_s=5.0, most_s=300.0)
# Backoff after the failures in a row that are more than `HARMLESS_FAILURES`.
TROUBLE = Backoff(initial_s=1.0, most_s=30.0)
# Backoff of a live series that begins again. Retries are counted from 1 after a failure, from 0 where the series had
# been well for the longest delay.
BEGIN_AGAIN = Backoff(initial_s=0.5, most_s=30.0, jitter=0.5)


@dataclass(frozen=True, slots=True)
class TurnTimings:
    """When requests of one venue go.

    refused: backoff after a refusal without Retry-After.
    trouble: backoff after failures in a row.
    held_most_s: longest pause that a request waits out in the queue; one that a user waits for waits for none.
    burst_s: what may be spent ahead where a budget is paced, in seconds of the budget: the closes of a minute come at
        once.
    max_waiting: most requests that wait; past that the least urgent one is refused.
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
    ask_date_every_s: where the exchange cannot be asked for its time, shortest time between two requests for rows in
        place of it: any answer counts, though it told nothing new, as where a series is quiet and has no `Date`.
    confirm_s: time after which a candle that was told as closed is looked at again, where no poll comes before.
    listings_ttl_s: age of a list of symbols at which it is requested again.
    unlisted_ttl_s: the same when the list does not have a symbol. ccxt's lists are large.
    polls_per_candle: polls of a candle in progress in its length.
    poll_least_s, poll_most_s: shortest and longest time between two such polls of one series.
    poll_again_s: shortest time between a poll for a candle that is due, and the poll before.
    look_most_s: interval at which the next due candle is worked out anew: what is known of the exchange's time may have
        changed.
    silent_pause_s: for how long a series is polled whose stream pushes nothing while REST shows traded candles.
    begin_again: backoff of a live series that begins again.
    turns: when requests go.
    lists: when lists of symbols are believed, and requested again.
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
