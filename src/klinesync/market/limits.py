"""ConnectionLimits, BodyLimits: the limits of connections to the server, and of the bodies of requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of connections, WebSockets included.

    connections: most connections, if the system allows as many. Each needs memory and a file descriptor.
    head_timeout_s: longest time for a request's head, in seconds, from its first byte or from the connect.
    close_timeout_s: longest time for the closing handshake, in seconds; then the connection is cut off.
    ping_interval_s, ping_timeout_s: interval of pings, and the longest wait for a pong, in seconds; without a pong the
        connection is half open. The wait is long, because a ping is queued behind unread data of a slow client.
    """

    connections: int = 20_000
    head_timeout_s: float = 20.0
    close_timeout_s: float = 5.0
    ping_interval_s: float = 20.0
    ping_timeout_s: float = 40.0


USUAL_CONNECTIONS = ConnectionLimits()


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The limits of bodies in flight.

    bytes_in_flight: most bytes of all bodies, which are held from the first byte to the answer.
    stall_timeout_s: longest pause between two bytes, in seconds.
    bytes_per_s, speed_window_s: minimum speed, in bytes a second over a window in seconds. A phone on a slow line is
        ten times as fast.
    patience_s: age, in seconds, from which an arriving body may be refused to make room in a full budget, the slowest
        body first.
    """

    bytes_in_flight: int = 64 << 20
    stall_timeout_s: float = 20.0
    bytes_per_s: int = 500
    speed_window_s: float = 30.0
    patience_s: float = 5.0


USUAL_BODIES = BodyLimits()
