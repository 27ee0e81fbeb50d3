"""The checkers work: each deliberate break of the service is caught within a few seeds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from random import SystemRandom
from typing import Any

import pytest

from klinesync.core import gaps
from klinesync.core.candle import Applied, Candle
from klinesync.core.derived import fold
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.splice import Jump, Splice
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.exchanges.binance import rest as binance_rest
from klinesync.exchanges.binance.link import Link
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.binance.streams import BinanceConnection
from klinesync.exchanges.binance.weight import WeightBudget
from klinesync.exchanges.exchange import Errand, Exchange, HistoryPage, KlineEvent
from klinesync.factor.flow import CvdFactor, FlowOfDay
from klinesync.factor.graph import FactorGraph, Said, States
from klinesync.factor.plugin import FactorFault, Upstream
from klinesync.history.holes import HoleReader
from klinesync.history.natives import NativeReader
from klinesync.history.pieces import Outcome
from klinesync.ingest.audit import Audit
from klinesync.ingest.feed import Command, IngestFeed, Show
from klinesync.ingest.followed import FollowSettings
from klinesync.ingest.job import Job
from klinesync.ingest.liveness import StreamWatch
from klinesync.ingest.market_watch import MarketWatch
from klinesync.ingest.ports import IngestPorts
from klinesync.ingest.questioner import Questioner
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.market_data.read_services import CandleReader, CatchUp
from klinesync.pipelines import derived_step, ingest_pipeline
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.pipelines.submissions import Submission, Submissions
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.candles import CandleStore
from klinesync.storage.ledger import LedgerStore
from klinesync.storage.records import Ledger
from klinesync.ws import protocol
from klinesync.ws.hub import CandleHub
from klinesync.ws.outbox import Outbox
from klinesync.ws.session import Announcement, Subscription
from sim import service
from sim.runs import known_outcome
from sim.scenario import Scenario, draw_scenario
from sim.world import run_scenario, run_seed

# Most seeds that are tried to show a break.
FEW_SEEDS = 40


@dataclass(frozen=True)
class Break:
    """A defect in the service, and the pattern of the sentences that the checkers must report. `faults` and `scenario`
    show it best; no other part repairs it where `bare`. `seed` is tried first: the seed that showed the defect soonest.
    """

    name: str
    make: Callable[[pytest.MonkeyPatch], None]
    caught: str
    faults: Mapping[str, Any] = field(default_factory=dict)
    scenario: Mapping[str, Any] = field(default_factory=dict)
    bare: bool = False
    seed: int = 0

    def drawn(self) -> Iterator[Scenario]:
        """A few scenarios with these faults. The speed is searched for, since much depends on it."""
        speed = self.scenario.get("speed")
        seeds = chain((self.seed,), (seed for seed in range(100) if seed != self.seed))
        drawn = (one for one in map(draw_scenario, seeds) if speed in (None, one.speed))
        for one in islice(drawn, FEW_SEEDS):
            yield replace(one, **self.scenario, faults=replace(one.faults, **self.faults))


def publish_before_commit(patch: pytest.MonkeyPatch) -> None:
    write = IngestPipeline._write

    async def hasty(self: IngestPipeline, batch: Sequence[Submission]) -> None:
        publish = self._publish
        for submission in batch:
            publish(Applied(submission.series, tuple(submission.candles), frozenset()))
        self._publish = lambda applied: None
        try:
            await write(self, batch)
        finally:
            self._publish = publish

    patch.setattr(IngestPipeline, "_write", hasty)


def publish_what_was_not_committed(patch: pytest.MonkeyPatch) -> None:
    write = IngestPipeline._write

    async def careless(self: IngestPipeline, batch: Sequence[Submission]) -> None:
        def shrug(submissions: Sequence[Submission], error: StoreError) -> None:
            for submission in submissions:
                applied = Applied(submission.series, tuple(submission.candles), frozenset())
                self._publish(applied)
                submission.written.set_result(applied)

        patch.setattr(ingest_pipeline, "fail", shrug)
        await write(self, batch)

    patch.setattr(IngestPipeline, "_write", careless)


def lose_a_batch_on_a_disk_error(patch: pytest.MonkeyPatch) -> None:
    def shrug(submissions: Sequence[Submission], error: StoreError) -> None:
        for submission in submissions:
            submission.written.set_result(Applied(submission.series, (), frozenset()))

    patch.setattr(ingest_pipeline, "fail", shrug)


def never_repeat_a_failed_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Submissions, "break_off", lambda *_: [])
    patch.setattr(Job, "_begin_again", lambda *_: None)


def write_out_of_order(patch: pytest.MonkeyPatch) -> None:
    take = Submissions.take
    patch.setattr(Submissions, "take", lambda self: take(self)[::-1])
    patch.setattr(Splice, "release_run", _released_backwards)


def _released_backwards(self: Splice[Any], *, past_hole: bool = False) -> list[Any]:
    held = self.held()[::-1]
    self._held = {}
    self.holding = False
    through: list[Any] = []
    for item in held:
        through += self._let_through(item)
    return through


def forget_what_is_held(patch: pytest.MonkeyPatch) -> None:
    live = Splice.live

    def forgetful(self: Splice[Any], item: Any) -> list[Any]:
        return [] if self.holding else live(self, item)

    patch.setattr(Splice, "live", forgetful)


def splice_without_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Splice, "hold", lambda self: None)


def swallow_a_jump(patch: pytest.MonkeyPatch) -> None:
    let_through = Splice._let_through

    def silent(self: Splice[Any], item: Any) -> list[Any]:
        return [one for one in let_through(self, item) if not isinstance(one, Jump)]

    patch.setattr(Splice, "_let_through", silent)


def invent_a_jump(patch: pytest.MonkeyPatch) -> None:
    gap = protocol.gap

    def longer(series: SeriesId, jump: Jump, **how: Any) -> bytes:
        return gap(series, Jump(jump.expected - series.timeframe.seconds, jump.actual), **how)

    patch.setattr(protocol, "gap", longer)


def store_forming(patch: pytest.MonkeyPatch) -> None:
    forming = IngestFeed.forming

    def confused(self: IngestFeed, candle: Candle, now_s: float) -> list[Command]:
        return self.closed(candle, 0) if candle.volume else forming(self, candle, now_s)

    patch.setattr(IngestFeed, "forming", confused)


def take_the_open_row_as_closed(patch: pytest.MonkeyPatch) -> None:
    def everything(frame: Timeframe, times: Iterable[int], *_: object) -> int:
        return frame.next(max(times))

    patch.setattr(binance_rest, "final_end", everything)


def ignore_revisions(patch: pytest.MonkeyPatch) -> None:
    closed = IngestFeed.closed

    def stubborn(self: IngestFeed, candle: Candle, event_ms: int, *, by_rest: bool = False) -> list[Command]:
        known = self.head is not None and candle.time <= self.head
        return [] if known else closed(self, candle, event_ms, by_rest=by_rest)

    patch.setattr(IngestFeed, "closed", stubborn)


def let_an_older_frame_revert_a_revision(patch: pytest.MonkeyPatch) -> None:
    closed = IngestFeed.closed
    first: dict[int, Candle] = {}

    def reverting(self: IngestFeed, candle: Candle, event_ms: int, *, by_rest: bool = False) -> list[Command]:
        earlier = first.setdefault(hash((self.series, candle.time)), candle)
        return closed(self, earlier, event_ms, by_rest=by_rest)

    patch.setattr(IngestFeed, "closed", reverting)


def do_not_mark_revisions(patch: pytest.MonkeyPatch) -> None:
    closed = protocol.candle_closed
    patch.setattr(
        protocol, "candle_closed", lambda series, candle, revised=False, full=False: closed(series, candle, full=full)
    )


def publish_a_repeat(patch: pytest.MonkeyPatch) -> None:
    announce = Subscription.announce
    patch.setattr(Subscription, "announce", lambda self, what: announce(self, what) * 2)


def send_what_was_caught_up_again(patch: pytest.MonkeyPatch) -> None:
    announce = Subscription.announce

    def again(self: Subscription, announcement: Announcement) -> list[bytes]:
        return announce(self, announcement) or [announcement.closed(candle) for candle in announcement.candles]

    patch.setattr(Subscription, "announce", again)


def catch_up_from_one_too_late(patch: pytest.MonkeyPatch) -> None:
    catch_up = CandleReader.catch_up

    async def late(self: CandleReader, series: SeriesId, since: int | None) -> CatchUp:
        found = await catch_up(self, series, since)
        return replace(found, rows=found.rows[1:], newer=found.newer - 1) if len(found.rows) > 1 else found

    patch.setattr(CandleReader, "catch_up", late)


def truncate_what_need_not_be(patch: pytest.MonkeyPatch) -> None:
    catch_up = CandleReader.catch_up

    async def short(self: CandleReader, series: SeriesId, since: int | None) -> CatchUp:
        found = await catch_up(self, series, since)
        return replace(found, rows=found.rows[-3:])

    patch.setattr(CandleReader, "catch_up", short)


def drop_closed_candles_of_slow_clients(patch: pytest.MonkeyPatch) -> None:
    put = Outbox.put

    def lossy(self: Outbox, messages: Sequence[bytes]) -> None:
        if len(self._messages) < 3:
            put(self, messages)

    patch.setattr(Outbox, "put", lossy)


def show_forming_behind_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "drop_forming", lambda *_: None)


def show_every_forming(patch: pytest.MonkeyPatch) -> None:
    forming = IngestFeed.forming
    patch.setattr(Subscription, "wants_forming", lambda *_: True)

    def eager(self: IngestFeed, candle: Candle, now_s: float) -> list[Command]:
        earlier = candle._replace(time=candle.time - 2 * self.timeframe.seconds)
        shown = forming(self, candle, now_s)
        return [Show(earlier) if isinstance(one, Show) else one for one in shown]

    patch.setattr(IngestFeed, "forming", eager)


def send_batches_to_all(patch: pytest.MonkeyPatch) -> None:
    subscribe_with(patch, supports_batch=True)


def send_order_flow_to_nobody(patch: pytest.MonkeyPatch) -> None:
    subscribe_with(patch, full=False)


def subscribe_with(patch: pytest.MonkeyPatch, **wanted: bool) -> None:
    """Every subscription gets this `what`, whatever its client asked for."""
    made = Subscription.__init__

    def other(self: Subscription, series: SeriesId, since: int | None, **asked: Any) -> None:
        made(self, series, since, **asked | wanted)

    patch.setattr(Subscription, "__init__", other)


def roll_up_otherwise(patch: pytest.MonkeyPatch) -> None:
    def off(target: Timeframe, parts: Iterable[Candle]) -> list[Candle]:
        return [candle._replace(volume=candle.volume * (1 + 2**-50)) for candle in fold(target, parts)]

    patch.setattr(derived_step, "fold", off)


def store_incomplete_buckets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(derived_step, "complete", lambda target, folded, unproven: list(folded))
    patch.setattr(gaps, "unproven", lambda *_: [])
    advance = derived_step.DerivedStep.advance

    def hasty(self: Any, store: Any, series: SeriesId, applied: Applied, emptied: Any, at: int) -> list[Applied]:
        changes = advance(self, store, series, applied, emptied, at)
        if applied.candles and series.timeframe == self.base:
            target = self.targets[0]
            open_ = target.floor(applied.candles[-1].time)
            window = Span(open_, target.next(open_))
            changes += self._write(store, series, target, window, at)
        return changes

    patch.setattr(derived_step.DerivedStep, "advance", hasty)


def do_not_redo_derived_candles(patch: pytest.MonkeyPatch) -> None:
    advance = derived_step.DerivedStep.advance

    def lazy(self: Any, store: Any, series: SeriesId, applied: Applied, emptied: Any, at: int) -> list[Applied]:
        return [] if applied.revised else advance(self, store, series, applied, emptied, at)

    patch.setattr(derived_step.DerivedStep, "advance", lazy)


def never_confirm_a_hole(patch: pytest.MonkeyPatch) -> None:
    history = BinanceRest.history

    async def blind(
        self: BinanceRest, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        async for page in history(self, series, start, errand, end):
            yield replace(page, empty=[])

    patch.setattr(BinanceRest, "history", blind)


def let_nobody_repair(patch: pytest.MonkeyPatch) -> None:
    """Without healing and audit, so that a break is not repaired."""
    flags_of = service.flags_of

    def bare(*what: Any) -> RuntimeFlags:
        return flags_of(*what).model_copy(update={"enable_market_gap_backfill": False, "audit_interval_s": 0.0})

    patch.setattr(service, "flags_of", bare)


def pass_holes_without_asking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Splice, "follows", lambda *_: True)


def confirm_a_hole_that_is_none(patch: pytest.MonkeyPatch) -> None:
    def confirmed(self: IngestFeed, candle: Candle, event_ms: int, *, by_rest: bool = False) -> list[Command]:
        if self.head is not None and candle.time == self.timeframe.shift(self.head, 2):
            self._splice.last = self._splice.after = self.timeframe.next(self.head)
        return closed(self, candle, event_ms, by_rest=by_rest)

    closed = IngestFeed.closed
    patch.setattr(IngestFeed, "closed", confirmed)


def break_on_an_event(patch: pytest.MonkeyPatch) -> None:
    event = MarketWatch.event

    def fragile(self: MarketWatch, what: KlineEvent) -> None:
        if what.closed and what.candle.time // 60 % 7 == 0:
            raise RuntimeError("broken on purpose")
        event(self, what)

    patch.setattr(MarketWatch, "event", fragile)


def tell_nobody_of_the_stop(patch: pytest.MonkeyPatch) -> None:
    async def silent(self: CandleHub, timeout_s: float) -> None:
        """Do nothing."""

    patch.setattr(CandleHub, "end", silent)


def never_publish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CandleHub, "publish", lambda *_: None)


def never_find_a_stream_stale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamWatch, "check", lambda *_: False)


def let_rest_not_stand_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IngestFeed, "overdue", lambda *_: [])


def believe_every_stamp(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ExchangeClock, "heard", lambda *_: True)
    patch.setattr(ExchangeClock, "is_ahead", lambda *_: False)


def never_ask_about_other_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Questioner, "ask", lambda *_: None)


def hold_live_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IngestFeed, "tick", lambda *_: [])


def hold_live_between_pages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IngestFeed, "page_written", lambda _: [])


def end_the_old_connection_first(patch: pytest.MonkeyPatch) -> None:
    async def hasty(self: BinanceConnection, link: Link, successor: Link) -> None:
        """Do not wait."""

    patch.setattr(BinanceConnection, "_overlap", hasty)
    patch.setattr(BinanceConnection, "_lose", lambda *_: None)


def replace_no_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Link, "is_due", lambda *_: False)


def never_look_again(patch: pytest.MonkeyPatch) -> None:
    async def idle(_: Audit) -> None:
        await asyncio.get_running_loop().create_future()

    patch.setattr(Audit, "run", idle)


def ignore_the_wish_to_be_left_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WeightBudget, "blocked_s", lambda *_: 0.0)


def heal_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HoleReader, "read", _read_nothing)


async def _read_nothing(*_: object) -> Outcome:
    return Outcome((), "nothing was read")


def tell_nobody_of_a_rewind(patch: pytest.MonkeyPatch) -> None:
    rewind = LedgerStep._rewind

    def silent(self: LedgerStep, store: CandleStore, series: SeriesId, ledger: Ledger, time: int) -> Ledger:
        rewound = rewind(self, store, series, ledger, time)._replace(epoch=ledger.epoch)
        store.ledger.put(series, rewound)
        return rewound

    patch.setattr(LedgerStep, "_rewind", silent)


def keep_the_events_of_what_changed(patch: pytest.MonkeyPatch) -> None:
    rewind = LedgerStore.rewind
    patch.setattr(LedgerStore, "rewind", lambda self, series, time: rewind(self, series, series.timeframe.next(time)))


def skip_what_a_factor_fails_at(patch: pytest.MonkeyPatch) -> None:
    advance_many = FactorGraph.advance_many

    def skipping(
        self: FactorGraph, states: States, candles: Sequence[Candle], outside: Sequence[Upstream] | None = None
    ) -> tuple[States, list[Said]]:
        try:
            return advance_many(self, states, candles, outside)
        except FactorFault as fault:
            left = [at for at, candle in enumerate(candles) if candle.time != fault.candle_time]
            beside = None if outside is None else [outside[at] for at in left]
            return skipping(self, states, [candles[at] for at in left], beside)

    patch.setattr(FactorGraph, "advance_many", skipping)


def advance_ledgers_after_publishing(patch: pytest.MonkeyPatch) -> None:
    advance, write = IngestPipeline._advance_ledgers, IngestPipeline._write
    later: list[tuple[Sequence[Applied], float]] = []

    async def twice(self: IngestPipeline, batch: Sequence[Submission]) -> None:
        await write(self, batch)
        owed = later.copy()
        later.clear()
        for what in owed:
            await self._database.write(lambda store, what=what: advance(self, store, *what))  # type: ignore[misc]

    patch.setattr(IngestPipeline, "_advance_ledgers", lambda self, store, *what: later.append(what))
    patch.setattr(IngestPipeline, "_write", twice)


def skip_what_waits_for_a_long_advance(patch: pytest.MonkeyPatch) -> None:
    follow = LedgerStep._follow

    def hasty(self: LedgerStep, store: CandleStore, series: SeriesId, *what: Any) -> None:
        self._behind.pop(series, None)
        if (entry := self.states.get(series)) is not None:
            entry.at_head = True
        follow(self, store, series, *what)

    patch.setattr(LedgerStep, "_follow", hasty)


def sum_over_midnight(patch: pytest.MonkeyPatch) -> None:
    advance = CvdFactor.advance

    def endless(self: CvdFactor, state: FlowOfDay, candle: Candle, upstream: Upstream) -> object:
        day = candle.time // DAY_S
        return advance(self, state if state.day < 0 else FlowOfDay(day, state.total), candle, upstream)

    patch.setattr(CvdFactor, "advance", endless)


def leave_ledgers_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LedgerStep, "due", lambda *_: None)
    patch.setattr(LedgerStep, "next_due_s", lambda _: None)


def fetch_no_own_candles(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NativeReader, "read", _read_nothing)


# The service at the speed of a real exchange.
AT_PACE = {"speed": 1.0}
NO_AUDIT = {"audit_interval_s": 0.0}

BREAKS = (
    Break("published before the commit", publish_before_commit, "shown before it is stored"),
    Break("published though the commit failed", publish_what_was_not_committed, "shown before it is stored", seed=9),
    Break(
        "a batch lost on a disk error",
        lose_a_batch_on_a_disk_error,
        "is missing|not in the ledger|the head is|not stored",
        {"disk_full": 0.9},
        seed=2,
    ),
    Break(
        "a failed write never repeated",
        never_repeat_a_failed_write,
        "is missing|the head is|not in the ledger|not stored",
        {"disk_full": 0.9},
    ),
    Break(
        "written out of order",
        write_out_of_order,
        "is missing|never shown|is at|is not behind|undeclared|should not",
        bare=True,
    ),
    Break(
        "live is not held",
        forget_what_is_held,
        "never shown|undeclared|gap|is at|is missing|not stored",
        bare=True,
        seed=4,
    ),
    Break("spliced without hold", splice_without_hold, "never shown|is missing|is not behind|gap|ahead of", seed=7),
    Break("a jump swallowed", swallow_a_jump, "undeclared jump"),
    Break("a jump too long declared", invent_a_jump, "gap from|gap .* to"),
    Break("forming stored", store_forming, "never called it final"),
    Break("an open REST row taken as closed", take_the_open_row_as_closed, "never called it final"),
    Break("revisions ignored", ignore_revisions, "is the truth|is missing", {"revise": 0.06}, bare=True),
    Break("a revision reverted", let_an_older_frame_revert_a_revision, "is the truth|never called it final"),
    Break("revisions not marked", do_not_mark_revisions, "is not behind"),
    Break("published twice", publish_a_repeat, "is not behind"),
    Break("sent again after the catch-up", send_what_was_caught_up_again, "is not behind|ahead of|undeclared", seed=2),
    Break("caught up from one too late", catch_up_from_one_too_late, "never shown|undeclared|gap"),
    Break("truncated without need", truncate_what_need_not_be, "truncated"),
    Break(
        "closed candles dropped for slow clients",
        drop_closed_candles_of_slow_clients,
        "undeclared|shown|is at|answer|ahead of",
        seed=2,
    ),
    Break("forming behind closed", show_every_forming, "forming candle at", seed=1),
    Break("waiting forming not overtaken", show_forming_behind_closed, "forming candle at", seed=17),
    Break("batches to who supports none", send_batches_to_all, "supports none"),
    Break("order flow sent to nobody", send_order_flow_to_nobody, "with order flow: True"),
    Break("another roll-up", roll_up_otherwise, "is the roll-up"),
    Break("incomplete buckets stored", store_incomplete_buckets, "is the roll-up|shown", seed=3),
    Break("derived candles not redone", do_not_redo_derived_candles, "is the roll-up"),
    Break("holes never confirmed", never_confirm_a_hole, "should not", seed=2),
    Break("holes passed without asking", pass_holes_without_asking, "is missing", bare=True),
    # The audit would find it.
    Break("a lost candle taken for no hole", confirm_a_hole_that_is_none, "is missing|should not", scenario=NO_AUDIT),
    Break("a task that breaks", break_on_an_event, "ended by itself|is given up"),
    Break("a stop that nobody is told of", tell_nobody_of_the_stop, "the stop was told|did not stop"),
    Break("nothing published", never_publish, "is at|shown"),
    Break("never stale", never_find_a_stream_stale, "its stream brings nothing", {"silent": 0.5}),
    Break("REST does not stand in", let_rest_not_stand_in, "the head is|its stream", {"silent": 0.5}),
    Break("other values never asked about", never_ask_about_other_values, "is the truth", {"revise": 0.06}, bare=True),
    Break("stamps from the future believed", believe_every_stamp, "never (told it|called it final)", {"hostile": 0.3}),
    Break(
        "live held for ever",
        hold_live_for_ever,
        "ago: not stored",
        {"ban": 0.05, "lose_closed": 0.2, "clocks": 0.0},
        AT_PACE,
    ),
    Break(
        "live held between pages",
        hold_live_between_pages,
        "ago: not stored",
        {"weight": 60, "crashes": 4},
        AT_PACE | {"rest_page": 7, "first_history_candles": 300, "history_minutes": 400},
        seed=11,
    ),
    Break("the old connection ended first", end_the_old_connection_first, "is given up", {"shutdown": 0.1}),
    Break("connections not replaced", replace_no_connection, "carried by no connection", {"lifetime": 10}, AT_PACE),
    Break(
        "no audit",
        never_look_again,
        "is the truth",
        {"revise": 0.06, "disconnect": 0.1, "lose_closed": 0.3},
        {"audit_interval_s": 5.0},
    ),
    Break(
        "a cooldown ignored",
        ignore_the_wish_to_be_left_alone,
        "during a cooldown",
        {"rest_limit": 0.1},
    ),
    Break("a rewind that nobody is told of", tell_nobody_of_a_rewind, "the epoch is", {"revise": 0.06}),
    Break(
        "events of a corrected candle kept",
        keep_the_events_of_what_changed,
        "is what the candles give|ledger is behind|an event behind the factors' head",
        {"revise": 0.06},
        seed=17,
    ),
    Break(
        "what a factor fails at is skipped",
        skip_what_a_factor_fails_at,
        "is what the candles give",
        {"factor_fails": 0.05},
    ),
    Break("ledgers advanced after publishing", advance_ledgers_after_publishing, "is shown, and its ledger"),
    Break(
        "what waits for a long advance is skipped",
        skip_what_waits_for_a_long_advance,
        "is what the candles give",
        scenario={"advance_max_candles": 5},
        seed=2,
    ),
    Break("sums over midnight", sum_over_midnight, "cvd is"),
    Break("ledgers left behind", leave_ledgers_behind, "ledger is behind", scenario={"advance_max_candles": 5}),
    Break(
        "own candles not fetched",
        fetch_no_own_candles,
        "own candle",
        scenario={"native_candles": 20, "derived_base_candles": 1, "history_minutes": 200},
    ),
    Break(
        "nothing healed", heal_nothing, "should not|is missing", {"ban": 0.05, "lose_closed": 0.2}, AT_PACE | NO_AUDIT
    ),
)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_a_break_is_caught(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken.bare:
        let_nobody_repair(monkeypatch)
    broken.make(monkeypatch)
    others: list[str] = []
    for scenario in broken.drawn():
        wrong = run_scenario(scenario).wrong
        if re.search(broken.caught, "\n".join(wrong)):
            break
        others += wrong[:1]
    else:
        pytest.fail(f"nobody noticed in {FEW_SEEDS} seeds: {broken.name}; what was said instead: {others}")
    if not broken.bare:
        monkeypatch.undo()
        assert known_outcome(scenario).wrong == (), "it is the break that is noticed"


def test_randomness_outside_the_seed_changes_the_transcript(monkeypatch: pytest.MonkeyPatch) -> None:
    made = IngestSupervisor.__init__

    def unseeded(self: IngestSupervisor, exchange: Exchange, ports: IngestPorts, settings: FollowSettings) -> None:
        made(self, exchange, replace(ports, rng=SystemRandom()), settings)

    before = [known_outcome(draw_scenario(seed)).transcript for seed in range(3)]
    monkeypatch.setattr(IngestSupervisor, "__init__", unseeded)
    assert [run_seed(seed).transcript for seed in range(3)] != before
