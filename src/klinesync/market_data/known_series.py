"""KnownSeries: asks exchanges whether they list a series, with a timeout.

An exchange may accept connections and never answer. Readers and subscribers are then served stored candles after the
timeout. The request goes on in the background for later readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from klinesync.core.errors import UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic

# Shortest timeout, in seconds: the answer of this request may come soon even if that of the oldest is late.
LEAST_TIMEOUT_S = 0.05


@dataclass(frozen=True, slots=True)
class KnownLimits:
    """The limits of requests whether an exchange lists a series.

    timeout_s: timeout of readers for the lists of a market, in seconds, from the oldest request in flight for the
        market: a client with many series of a market that hangs waits once. The longest lists, of 10 MB, take some
        seconds.
    requests: most requests in flight.
    """

    timeout_s: float = 5.0
    requests: int = 1000


USUAL_KNOWN = KnownLimits()


@dataclass(slots=True, eq=False)
class _Request:
    begun_s: float
    answer: asyncio.Future[bool]


class KnownSeries:
    """Whether exchanges list series. Each series has at most one request in flight.

    knows: asks the exchange; may raise `UpstreamError` and `UnknownSeries`.
    bulkheads: contains defects.
    monotonic: monotonic seconds.
    limits: timeout, and most requests in flight.
    """

    def __init__(
        self,
        knows: Callable[[SeriesId], Awaitable[bool]],
        bulkheads: Bulkheads,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        limits: KnownLimits = USUAL_KNOWN,
    ) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._knows = knows
        self._bulkheads = bulkheads
        self._requests: dict[SeriesId, _Request] = {}

    async def known(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series. Raises `UpstreamError` when it cannot be asked, or does not answer
        within the timeout, and what `knows` raises."""
        now_s = self._monotonic()
        request = self._requests.get(series) or self._begin(series, now_s)
        oldest_s = min(
            request.begun_s
            for other, request in self._requests.items()
            if (other.exchange, other.market) == (series.exchange, series.market)
        )
        await asyncio.wait([request.answer], timeout=max(LEAST_TIMEOUT_S, oldest_s + self._limits.timeout_s - now_s))
        if not request.answer.done():
            raise UpstreamError(f"{series.exchange} has not told yet what its {series.market} market lists")
        return request.answer.result()

    def _begin(self, series: SeriesId, now_s: float) -> _Request:
        if len(self._requests) >= self._limits.requests:
            raise UpstreamError(f"{series}: {self._limits.requests} series are being asked for already")
        loop = asyncio.get_running_loop()
        request = self._requests[series] = _Request(now_s, loop.create_future())
        work = partial(self._ask, series, request.answer)
        self._bulkheads.begin(loop, work, part=Part.LISTINGS, name=f"known {series}")
        return request

    async def _ask(self, series: SeriesId, answer: asyncio.Future[bool]) -> None:
        try:
            answer.set_result(await self._knows(series))
        except (UpstreamError, UnknownSeries) as error:
            answer.set_exception(error)
        finally:
            del self._requests[series]
            if not answer.done():  # a defect, or the end of the service
                answer.set_exception(UpstreamError(f"{series}: the question whether it is listed broke off"))
            answer.exception()  # the reader may have gone
