"""MarketWatch: a market of an exchange: its clock, its reachability, and the verification of its frames' stamps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from klinesync.core.errors import UpstreamError
from klinesync.core.events import EventName
from klinesync.exchanges.contact import NO_ANSWER, ExchangeTrouble, MarketContact, StreamStatus
from klinesync.exchanges.exchange import Exchange, KlineEvent
from klinesync.exchanges.reach import ExchangeWatch
from klinesync.exchanges.stamp_check import StampCheck
from klinesync.ingest.questioner import Questioner
from klinesync.ingest.timings import USUAL_TIMINGS, FollowTimings
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import Clock
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Shortest time between two log lines about the clocks of a market, in seconds. The clock of a fast (simulated) exchange
# is corrected often until its speed is known.
CLOCK_LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class MarketChange:
    """A change of a market's state.

    unreachable: whether the market has become unreachable (True) or reachable (False); None: no change.
    answers_again: whether the market answers requests for history again.
    event: name and sentence of an event to note; None: no event.
    """

    unreachable: bool | None
    answers_again: bool
    event: tuple[EventName, str] | None = None


class MarketWatch:
    """One market of an exchange.

    market: name of the market.
    exchange: asked for its time.
    clock: exchange clock of the market.
    pipeline: writes rows that decide between a frame and a stored candle.
    believe: takes a frame whose stamp has been verified, the monotonic time, and when the frame came.
    final_margin_s: finality margin of REST rows, in seconds of the exchange.
    our_clock: clock of this machine, in place of an exchange clock that is unknown.
    bulkheads: contains defects.
    timings: when the exchange is asked for its time, and what silence means.
    """

    def __init__(
        self,
        market: str,
        *,
        exchange: Exchange,
        clock: ExchangeClock,
        pipeline: IngestPipeline,
        believe: Callable[[KlineEvent, float, float], None],
        final_margin_s: float,
        our_clock: Clock,
        bulkheads: Bulkheads,
        timings: FollowTimings = USUAL_TIMINGS,
    ) -> None:
        self.market = market
        self.questioner = Questioner(exchange, pipeline.submit, our_clock.monotonic_s)
        self.check = StampCheck(clock, partial(exchange.now_ms, market), believe, our_clock.monotonic_s)
        self.reach = ExchangeWatch(timings.silence)
        self._exchange = exchange
        self._clock = clock
        self._final_margin_s = final_margin_s
        self._timings = timings
        self._our_clock = our_clock
        self._bulkheads = bulkheads
        self._log_limit = LogLimit(CLOCK_LOG_EVERY_S)
        self.answers_again = asyncio.Event()  # set, and replaced, when the market answers again after trouble
        # Why the market gave no history at the last `look`: the name of an event, and a sentence.
        self._trouble: tuple[EventName, str] | None = None
        self._silent_since: int | None = None  # time of the last frame or answer, UTC seconds, once unreachable
        self._group: asyncio.TaskGroup | None = None

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Start the tasks of the market in `group`."""
        self._group = group
        self.check.abandon()
        name = f"questions {self.market}"
        self._bulkheads.begin(group, self.questioner.run, part=Part.CLOCK, name=name, restart=True)

    # Time.

    def now_ms(self) -> int | None:
        """The exchange's time; None when unknown."""
        return self._clock.estimate_ms(self._our_clock.monotonic_s())

    async def known_ms(self) -> int:
        """The exchange's time; the exchange is asked when the time is unknown. Raises `UpstreamError`."""
        now_ms = self.now_ms()
        return await self._exchange.now_ms(self.market) if now_ms is None else now_ms

    async def fresh_ms(self) -> int:
        """The exchange's time; the exchange is asked when the newest stamp is older than `clock_age_s`, because an
        estimate from an old stamp lags an exchange that runs faster, or went on while this machine slept. The estimate
        when the exchange does not answer. Raises `UpstreamError` when there is none."""
        now_ms = self.now_ms()
        if now_ms is not None and self._clock.age_s(self._our_clock.monotonic_s()) <= self._timings.clock_age_s:
            return now_ms
        try:
            return await self._exchange.now_ms(self.market)
        except UpstreamError:
            if now_ms is None:
                raise
            return now_ms

    def utc_ms(self) -> int:
        """The exchange's time, or that of this machine when unknown, to date a state."""
        now_ms = self.now_ms()
        return int(self._our_clock.wall_s() * 1000) if now_ms is None else now_ms

    @property
    def silence(self) -> str:
        """A sentence about a market that is unreachable."""
        return f"the exchange has given neither frames nor answers for {self._timings.silence.unreachable_after_s:g} s"

    @property
    def margin_s(self) -> float:
        """Finality margin of REST rows of the market, in seconds of the exchange."""
        return max(self._final_margin_s, self._exchange.contact(self.market).final_margin_s or 0.0)

    # Frames.

    def event(self, event: KlineEvent) -> None:
        """A frame has come. It is believed at once, or waits until the exchange's time has been requested."""
        now_s = self._our_clock.monotonic_s()
        self.reach.frame_s = now_s
        if not self.check.check(event, now_s):
            self._ask_time()

    def look(self, now_s: float, streams: int, *, followed: bool) -> MarketChange:
        """The change since the last `look`.

        now_s: monotonic seconds.
        streams: number of followed series.
        followed: whether the symbol of any of them is traded.
        """
        reach = self.reach
        changed = reach.check(now_s, self._exchange.contact(self.market), followed=followed)
        before, self._trouble = self._trouble, self._trouble_now(now_s)
        answers_again = before is not None and self._trouble is None
        same = before is not None and self._trouble is not None and before[0] == self._trouble[0]
        event = None if same else self._trouble
        if answers_again:
            event = ("exchange.answers", "the exchange answers again")
            waited_for, self.answers_again = self.answers_again, asyncio.Event()
            waited_for.set()
        if not changed:
            return MarketChange(None, answers_again, event)
        if reach.unreachable:
            if (silent_from_s := reach.silent_from_s) is not None:
                self._silent_since = int(self.utc_ms() / 1000 - (now_s - silent_from_s))
            log.warning("exchange.unreachable", "%s", self.silence, market=self.market, streams=streams)
        elif followed:
            log.warning(
                "exchange.reachable", "the exchange sends or answers again", market=self.market, streams=streams
            )
        return MarketChange(reach.unreachable, answers_again, event)

    def _trouble_now(self, now_s: float) -> tuple[EventName, str] | None:
        """Why the market gives no history: the name of an event, and a sentence; None when the market does."""
        reach = self.reach
        if reach.refused is not None:
            return "exchange.refuses", reach.refused
        if reach.unreachable or reach.unanswered(now_s):
            return "exchange.unreachable", reach.failure or self.silence
        return None

    def keep_time(self, now_s: float) -> None:
        """Log changes of the market's clocks, and request the exchange's time when no recent frame has told it."""
        for sentence in self._clock.take_news():
            if (more := self._log_limit.allow(self.market, now_s)) is not None:
                log.warning("exchange.clock", "%s", sentence, market=self.market, suppressed=more)
        if self._wants_time(now_s):
            self._ask_time()

    def _wants_time(self, now_s: float) -> bool:
        """Whether to request the exchange's time although no frame waits for it."""
        clock = self._clock
        if clock.age_s(now_s) > self._timings.clock_age_s or self.reach.ask_due(now_s):
            return True
        every_s = self._timings.clock_age_s if clock.difference(now_s) is not None else 0.0
        return clock.wants_answer(now_s) and clock.answer_age_s(now_s) > every_s

    def _ask_time(self) -> None:
        assert self._group is not None, "the supervisor is running"
        if self.check.begin():
            name = f"exchange time {self.market}"
            check = self.check
            self._bulkheads.begin(self._group, check.resolve, part=Part.CLOCK, name=name, mend=check.abandon)

    @property
    def trouble(self) -> ExchangeTrouble | None:
        """Why the market gives no candles; None when it does."""
        reach = self.reach
        if reach.refused is not None:
            return ExchangeTrouble("exchange_refuses", reach.refused)
        if reach.unreachable or reach.unanswered(self._our_clock.monotonic_s()):
            return ExchangeTrouble("exchange_unreachable", reach.failure or NO_ANSWER)
        return None

    def contact(self, streams: Sequence[StreamStatus], *, connected: bool) -> MarketContact:
        """The contact to the market, for health and status.

        streams: of the followed series.
        connected: whether a connection is open.
        """
        now_s, reach, margin_s = self._our_clock.monotonic_s(), self.reach, self.margin_s
        difference = self._clock.difference(now_s)
        return MarketContact(
            self.market,
            streams=tuple(streams),
            connected=connected,
            unreachable=reach.unreachable,
            unreachable_since=self._silent_since if reach.unreachable else None,
            silent_s=None if reach.frame_s is None else now_s - reach.frame_s,
            answers=reach.answers(now_s),
            unanswered=reach.unanswered(now_s),
            refused=reach.refused,
            failure=reach.failure,
            clocks_differ=None if difference is None else str(difference),
            final_margin_s=margin_s,
            final_margin_seen=margin_s > self._final_margin_s,
            cooldown_s=self._exchange.contact(self.market).cooldown_s,
        )
