"""StreamState: where the stream of a series stands, in the spellings of the wire."""

from enum import StrEnum


class StreamState(StrEnum):
    """Where the stream of a series stands. REST stands in for a stream that is `STALE` or `REST_FALLBACK`."""

    OFF = "off"  # the series is not followed
    SUBSCRIBED = "subscribed"  # acknowledged by the exchange; no frame has come yet
    LIVE = "live"  # frames come
    STALE = "stale"  # the stream withholds what REST shows
    REST_FALLBACK = "rest_fallback"  # REST has brought what the stream withheld, or is polled in its place
    RECONNECTING = "reconnecting"  # not acknowledged, or the exchange is unreachable
    DELISTED = "delisted"  # the exchange does not trade the symbol
