"""StreamState: the state of the upstream stream of a series, in the spellings of the wire."""

from enum import StrEnum


class StreamState(StrEnum):
    """The state of the upstream stream of a series. REST replaces a stream that is `STALE` or `REST_FALLBACK`."""

    OFF = "off"  # the series is not followed
    SUBSCRIBED = "subscribed"  # acknowledged by the exchange; no frame has come yet
    LIVE = "live"  # frames come
    STALE = "stale"  # the stream withholds what REST shows
    REST_FALLBACK = "rest_fallback"  # REST has brought what the stream withheld, or is polled in its place
    RECONNECTING = "reconnecting"  # not acknowledged, or the exchange is unreachable
    DELISTED = "delisted"  # the exchange does not trade the symbol
