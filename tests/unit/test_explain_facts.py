"""Needs and gaps of `explain`, as values."""

from __future__ import annotations

from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Urgency
from klinesync.history.missing import Need, Reason
from klinesync.history.queue import HistoryQueue, NeedStatus
from klinesync.market_data.explain import gap_facts, need_facts

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
HOUR = SeriesId.parse("binance:spot:BTC/USDT:1h")
NOW = 1_764_489_600


def status(start: int, *, next_try_s: float | None, attempts: int = 0) -> NeedStatus:
    need = Need(BTC, Span(start, start + 60), Reason.GAP, "declared gap", Urgency.FILL)
    return NeedStatus(need, next_try_s is None, attempts, next_try_s, "no answer" if attempts else None)


def test_needs_are_listed_in_the_order_of_their_requests_by_the_exchanges_time() -> None:
    statuses = [status(60, next_try_s=130.5, attempts=2), status(120, next_try_s=0.0), status(180, next_try_s=None)]
    told = need_facts(statuses, now_s=100.0, now_time=NOW)
    assert [(need.start_time, need.next_try_at_ms) for need in told] == [
        (180, None),
        (120, NOW * 1000),  # due: it is requested when its turn comes
        (60, NOW * 1000 + 30_500),
    ]
    last = told[-1]
    assert (last.series_id, last.end_time, last.reason, last.asked_by) == (str(BTC), 120, "gap", "declared gap")
    assert (last.urgency, last.attempts, last.last_answer) == ("fill", 2, "no answer")


def test_needs_of_the_queue_are_listed() -> None:
    queue = HistoryQueue()
    queue.submit(Need(BTC, Span(0, 600), Reason.OLDER, "read", Urgency.READ), 50.0)
    [need] = need_facts(queue.needs_of(BTC), 50.0, NOW)
    assert (need.start_time, need.end_time, need.reason, need.attempts) == (0, 600, "older", 0)
    assert need.next_try_at_ms == NOW * 1000


def test_an_unknown_gap_that_is_requested_is_healing_on_the_grid_of_the_series() -> None:
    ledger = [
        Gap(0, 3600, GapState.UNKNOWN),
        Gap(3600, 7200, GapState.HEALING),
        Gap(7200, 10800, GapState.CONFIRMED_EMPTY, "no trades", 5),
    ]
    told = gap_facts(HOUR, ledger, [Span(60, 120), Span(7260, 7320)])
    assert [(gap.start_time, gap.state, gap.missing_candles, gap.proof, gap.since) for gap in told] == [
        (0, GapState.HEALING, 1, None, None),
        (3600, GapState.UNKNOWN, 1, None, None),
        (7200, GapState.CONFIRMED_EMPTY, 1, "no trades", 5),
    ]
