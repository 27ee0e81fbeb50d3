"""KnownSeries: whether an exchange lists a series, asked with patience.

An exchange may take connections and never answer. Who reads or subscribes is then served what is stored, after a short
wait; the question goes on meanwhile, and later readers profit from its answer.
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

# How long readers wait for the lists of one market, in seconds, counted from the oldest question that is pending there:
# a client that asks for many series of a market that hangs waits once. The longest lists, of 10 MB, take some seconds.
PATIENCE_S = 5.0
# A question is waited for at least this long, in seconds: another one's answer may be late while this one's is at hand.
PATIENCE_LEAST_S = 0.05
# Questions that are pending at once.
MAX_QUESTIONS = 1000


@dataclass(slots=True, eq=False)
class _Question:
    begun_s: float
    answer: asyncio.Future[bool]


class KnownSeries:
    """Asks `knows`, which may raise `UpstreamError` and `UnknownSeries`; one question a series at a time."""

    def __init__(
        self,
        knows: Callable[[SeriesId], Awaitable[bool]],
        bulkheads: Bulkheads,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self._monotonic = monotonic
        self._knows = knows
        self._bulkheads = bulkheads
        self._questions: dict[SeriesId, _Question] = {}

    async def known(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series. Raises `UpstreamError` when it cannot be asked, or does not answer
        within `PATIENCE_S`, and what `knows` raises."""
        now_s = self._monotonic()
        question = self._questions.get(series) or self._begin(series, now_s)
        oldest_s = min(
            other.begun_s
            for one, other in self._questions.items()
            if (one.exchange, one.market) == (series.exchange, series.market)
        )
        await asyncio.wait([question.answer], timeout=max(PATIENCE_LEAST_S, oldest_s + PATIENCE_S - now_s))
        if not question.answer.done():
            raise UpstreamError(f"{series.exchange} has not told yet what its {series.market} market lists")
        return question.answer.result()

    def _begin(self, series: SeriesId, now_s: float) -> _Question:
        if len(self._questions) >= MAX_QUESTIONS:
            raise UpstreamError(f"{series}: {MAX_QUESTIONS} series are being asked for already")
        loop = asyncio.get_running_loop()
        question = self._questions[series] = _Question(now_s, loop.create_future())
        work = partial(self._ask, series, question.answer)
        self._bulkheads.begin(loop, work, part=Part.LISTINGS, name=f"known {series}")
        return question

    async def _ask(self, series: SeriesId, answer: asyncio.Future[bool]) -> None:
        try:
            answer.set_result(await self._knows(series))
        except (UpstreamError, UnknownSeries) as error:
            answer.set_exception(error)
        finally:
            del self._questions[series]
            if not answer.done():  # a defect, or the end of the service
                answer.set_exception(UpstreamError(f"{series}: the question whether it is listed broke off"))
            answer.exception()  # perhaps nobody waits any more
