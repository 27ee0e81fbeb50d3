"""StreamTimings, RestTimings: waits and intervals of the Binance clients that no flag sets. Seconds are monotonic,
unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klinesync.core.backoff import Backoff
from klinesync.exchanges.exchange import Urgency

# Backoff of a connection that ended or could not be made. Retries are counted from 1 after a failure, from 0 after the
# end of a healthy connection.
RECONNECT = Backoff(initial_s=0.25, most_s=30.0, jitter=0.5)
# Backoff of a request without an answer, or with an error of the server.
REPEAT = Backoff(initial_s=0.5, most_s=1.0, jitter=0.5)
# Longest time, in seconds, that a user's request waits for room in the weight budget, or for the end of a cooldown.
READ_PATIENCE_S = 10.0
LONGEST_BLOCK_S: Mapping[Urgency, float] = dict.fromkeys(Urgency, 120.0) | {Urgency.READ: READ_PATIENCE_S}


@dataclass(frozen=True, slots=True)
class StreamTimings:
    """The timings of a stream connection.

    reconnect: backoff of a connection that ended or could not be made.
    answer_timeout_s: longest wait for the answer to a subscription.
    rotate_after_s: shortest and longest life of a socket, drawn anew for each, by either clock: the exchange ends a
        socket after 24 hours of its time.
    rotate_check_s: interval of checks whether a socket is to be replaced.
    overlap_least_s, overlap_most_s: shortest and longest overlap of two sockets; within these it ends when the new
        socket has received data.
    successor_retry_s: interval of attempts to connect the socket that replaces another.
    names_retry_s: interval of requests for the exchange's symbol of a wanted series that is not listed yet.
    """

    reconnect: Backoff = RECONNECT
    answer_timeout_s: float = 10.0
    rotate_after_s: tuple[float, float] = (22 * 3600.0, 23 * 3600.0)
    rotate_check_s: float = 5.0
    overlap_least_s: float = 5.0
    overlap_most_s: float = 90.0
    successor_retry_s: float = 10.0
    names_retry_s: float = 5.0


@dataclass(frozen=True, slots=True)
class RestTimings:
    """The timings of requests.

    ask_time_every_s: shortest time between two requests for a market's time.
    repeat: backoff of a request without an answer, or with an error of the server.
    read_patience_s: longest time that a user's request waits for room in the weight budget.
    longest_block_s: longest wait for the end of a cooldown, by urgency. A request whose cooldown is longer fails at
        once, and the error says how long it is. A repair waits like the others, because no other request could replace
        it.
    """

    ask_time_every_s: float = 1.0
    repeat: Backoff = REPEAT
    read_patience_s: float = READ_PATIENCE_S
    longest_block_s: Mapping[Urgency, float] = field(default_factory=lambda: LONGEST_BLOCK_S)


USUAL_STREAMS = StreamTimings()
USUAL_REST = RestTimings()
