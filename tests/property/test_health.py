"""Health: each status and reason by values, and properties for any facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.gaps import SETTLED, Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, widened
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import ExchangeTrouble, StreamStatus
from klinesync.history.board import BackfillReport
from klinesync.market_data.health import STATUS, Facts, Health, MissingCandles, assess
from support.timeframes import TIMEFRAMES

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
START = 1_700_000_040  # at a whole minute
GRACE_S = 5.0
LIVE = StreamStatus(StreamState.LIVE, START)
IDLE = BackfillReport()
RUNNING = BackfillReport(state="running", recent=True)
ENDED = BackfillReport(state="succeeded", recent=True)
FAILED = BackfillReport(state="failed", error="no answer")
CANDLES = 100  # stored: minutes 0 to 99


def minutes(first: int, end: int) -> Span:
    return Span(START + 60 * first, START + 60 * end)


def gap(first: int, end: int, state: GapState = GapState.UNKNOWN) -> Gap:
    span = minutes(first, end)
    return Gap(*span, state, "proof", 1) if state in SETTLED else Gap(*span, state)


def facts(after_s: int = 30, **changes: object) -> Facts:
    """Minutes 0 to 99 are stored; now is that many seconds after the close of minute 99."""
    known = Facts(
        series=BTC,
        now_time=START + 60 * CANDLES + after_s,
        stored=minutes(0, CANDLES),
        gaps=(),
        working_on=(),
        sweeping=False,
        backfill=IDLE,
        stream=LIVE,
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def health(after_s: int = 30, **changes: object) -> Health:
    return assess(facts(after_s, **changes), GRACE_S)


def judged(after_s: int, changes: dict[str, object]) -> Health:
    return assess(replace(facts(after_s), **changes), GRACE_S)  # type: ignore[arg-type]


def test_candles_that_rest_has_proved_empty_are_not_missing() -> None:
    assert health(400).status_reason == "lagging_no_recent_backfill"
    quiet = health(400, stream=replace(LIVE, quiet=minutes(CANDLES, CANDLES + 7)))
    assert (quiet.status, quiet.missing_candles) == ("green", 0)
    one = health(400, stream=replace(LIVE, quiet=minutes(CANDLES + 1, CANDLES + 7)))
    assert one.missing_candles == 1, "a candle that was told, and is not stored yet"


@pytest.mark.parametrize("reason", ["exchange_refuses", "exchange_unreachable"])
def test_missing_candles_are_explained_by_the_exchanges_trouble(
    reason: Literal["exchange_refuses", "exchange_unreachable"],
) -> None:
    trouble = ExchangeTrouble(reason, "it answered 451: restricted location")
    for missing in (
        {"stored": None},
        {"stored": None, "sweeping": True},
        {"now_time": START + 60 * CANDLES + 400, "backfill": RUNNING},
        {"gaps": [gap(10, 20)], "working_on": [minutes(10, 20)]},
    ):
        found = health(trouble=trouble, **missing)
        assert (found.status, found.status_reason, found.detail) == ("red", reason, trouble.detail)
    whole = health(trouble=trouble)
    assert (whole.status_reason, whole.detail) == ("up_to_date", None), "nothing is missing"
    damaged = health(trouble=trouble, stored=None, damaged=True)
    assert (damaged.status_reason, damaged.detail) == ("store_damaged", None)


def test_the_head_is_the_latest_closed_time() -> None:
    assert health() == Health(
        series_id=str(BTC),
        timeframe_seconds=60,
        now_time=START + 6030,
        expected_latest_closed_time=START + 5940,
        head_time=START + 5940,
        lag_seconds=30,
        missing_seconds=0,
        missing_candles=0,
        status="green",
        status_reason="up_to_date",
        backfill=IDLE,
        stream=LIVE,
        gaps=MissingCandles(0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    ("after_s", "reason", "missing"),
    [
        (-1, "head_ahead_of_closed_window", 0),
        (0, "up_to_date", 0),  # the candle arrives before it is expected
        (4, "up_to_date", 0),
        (5, "up_to_date", 0),
        (64, "up_to_date", 0),  # the next minute closed four seconds ago
        (65, "lagging_no_recent_backfill", 1),
        (124, "lagging_no_recent_backfill", 1),
        (125, "lagging_no_recent_backfill", 2),
    ],
)
def test_a_candle_is_expected_a_moment_after_its_close(after_s: int, reason: str, missing: int) -> None:
    found = health(after_s)
    assert (found.status_reason, found.missing_candles, found.missing_seconds) == (reason, missing, 60 * missing)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, "red", "lagging_no_recent_backfill"),
        ({"backfill": FAILED}, "red", "lagging_no_recent_backfill"),
        ({"backfill": RUNNING}, "yellow", "backfill_running"),
        ({"backfill": ENDED}, "yellow", "backfill_recent"),
        ({"backfill": replace(FAILED, recent=True)}, "yellow", "backfill_recent"),
        ({"sweeping": True}, "yellow", "backfill_running"),
        ({"working_on": [minutes(100, 110)]}, "yellow", "backfill_running"),  # holes of its base
        ({"working_on": [minutes(101, 110)]}, "red", "lagging_no_recent_backfill"),
        ({"stream": StreamStatus(StreamState.REST_FALLBACK)}, "red", "lagging_no_recent_backfill"),
        ({"stream": StreamStatus(StreamState.DELISTED, START)}, "green", "up_to_date"),
        ({"stream": StreamStatus(StreamState.DELISTED, START), "backfill": RUNNING}, "yellow", "backfill_running"),
        ({"gaps": [gap(100, 110, GapState.CONFIRMED_EMPTY)]}, "green", "up_to_date"),
    ],
)
def test_the_reason_of_a_series_that_lags(changes: dict[str, object], status: str, reason: str) -> None:
    found = judged(605, changes)
    assert (found.status, found.status_reason) == (status, reason)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, "red", "missing_head"),
        ({"backfill": FAILED}, "red", "missing_head"),
        ({"stream": StreamStatus(StreamState.DELISTED)}, "red", "missing_head"),
        ({"backfill": RUNNING}, "yellow", "backfill_running"),
        ({"backfill": ENDED}, "yellow", "backfill_recent"),
        ({"sweeping": True}, "yellow", "backfill_running"),
        ({"working_on": [minutes(0, 10)]}, "yellow", "backfill_running"),
    ],
)
def test_the_reason_of_a_series_without_candles(changes: dict[str, object], status: str, reason: str) -> None:
    found = judged(30, {"stored": None} | changes)
    assert (found.status, found.status_reason) == (status, reason)
    assert (found.head_time, found.lag_seconds, found.missing_seconds, found.missing_candles) == (None,) * 4


@pytest.mark.parametrize(
    ("changes", "reason", "counts"),
    [
        ({"gaps": [gap(10, 20)]}, "interior_gap", (10, 0, 0, 0)),
        ({"gaps": [gap(10, 20)], "working_on": [minutes(0, 20)]}, "gap_healing", (0, 10, 0, 0)),
        ({"gaps": [gap(10, 20)], "working_on": [minutes(0, 15)]}, "interior_gap", (5, 5, 0, 0)),
        ({"gaps": [gap(10, 20), gap(30, 31)], "working_on": [minutes(10, 20)]}, "interior_gap", (1, 10, 0, 0)),
        ({"gaps": [gap(10, 20, GapState.CONFIRMED_EMPTY)]}, "up_to_date", (0, 0, 10, 0)),
        ({"gaps": [gap(10, 20, GapState.CONFIRMED_EMPTY), gap(50, 51)]}, "interior_gap", (1, 0, 10, 0)),
        ({"gaps": [gap(10, 20)], "backfill": ENDED}, "interior_gap", (10, 0, 0, 0)),
        ({"gaps": [gap(10, 20)], "stream": StreamStatus(StreamState.DELISTED)}, "interior_gap", (10, 0, 0, 0)),
        ({"gaps": [gap(10, 20, GapState.LOST)]}, "gap_lost", (0, 0, 0, 10)),
        ({"gaps": [gap(10, 20, GapState.LOST), gap(50, 51)]}, "interior_gap", (1, 0, 0, 10)),
        (
            {"gaps": [gap(10, 20, GapState.LOST), gap(50, 51)], "working_on": [minutes(50, 51)]},
            "gap_healing",
            (0, 1, 0, 10),
        ),
    ],
)
def test_the_reason_of_a_gap_before_the_head(
    changes: dict[str, object], reason: str, counts: tuple[int, int, int, int]
) -> None:
    found = judged(30, changes)
    assert (found.status_reason, found.gaps) == (reason, MissingCandles(*counts))


@pytest.mark.parametrize(
    ("after_s", "changes", "reason"),
    [
        (605, {"gaps": [gap(10, 20)]}, "lagging_no_recent_backfill"),
        (605, {"gaps": [gap(10, 20)], "backfill": RUNNING}, "interior_gap"),
        (605, {"gaps": [gap(10, 20)], "backfill": RUNNING, "working_on": [minutes(10, 20)]}, "backfill_running"),
        (605, {"gaps": [gap(10, 20)], "backfill": ENDED, "working_on": [minutes(10, 20)]}, "backfill_recent"),
        (-1, {"gaps": [gap(10, 20)]}, "interior_gap"),
        (-1, {"gaps": [gap(10, 20)], "working_on": [minutes(10, 20)]}, "head_ahead_of_closed_window"),
    ],
)
def test_of_several_reasons_the_worst_is_shown(after_s: int, changes: dict[str, object], reason: str) -> None:
    assert judged(after_s, changes).status_reason == reason


def test_a_delisted_series_expects_no_candles() -> None:
    found = health(
        10_000_000, stream=StreamStatus(StreamState.DELISTED, START, detail="BTCUSDT is not traded any more")
    )
    assert (found.expected_latest_closed_time, found.missing_candles) == (found.head_time, 0)
    assert (found.stream.state, found.stream.detail) == ("delisted", "BTCUSDT is not traded any more")
    assert found.lag_seconds == 10_000_000


def test_months_are_counted_by_the_calendar() -> None:
    series = BTC.with_timeframe(Timeframe.parse("1M"))
    january, april, june = 1_704_067_200, 1_711_929_600, 1_717_200_000  # of 2024
    found = assess(
        facts(series=series, stored=Span(january, april), now_time=june + 4, backfill=RUNNING), grace_s=GRACE_S
    )
    assert (found.missing_candles, found.timeframe_seconds) == (1, 30 * 86_400)
    later = assess(facts(series=series, stored=Span(january, april), now_time=june + 5), grace_s=GRACE_S)
    assert (later.missing_candles, later.expected_latest_closed_time) == (2, 1_714_521_600)
    assert later.missing_seconds == june - april


def test_spans_of_the_base_are_widened_to_the_buckets_that_hold_them() -> None:
    hour = Timeframe.parse("1h")
    assert widened(hour, []) == []
    assert widened(hour, [Span(60, 120), Span(3000, 3660), Span(7200, 7260), Span(18_000, 21_600)]) == [
        Span(0, 10_800),
        Span(18_000, 21_600),
    ]
    assert widened(BTC.timeframe, [Span(60, 120), Span(180, 240)]) == [Span(60, 120), Span(180, 240)]


# --- properties for any facts

LENGTH = 60
FRAMES = TIMEFRAMES
STATES: list[Literal["idle", "running", "succeeded", "failed"]] = ["idle", "running", "succeeded", "failed"]
RANK = {"green": 0, "yellow": 1, "red": 2}


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    frame = draw(FRAMES)
    origin = frame.floor(START)
    stored_end = draw(st.integers(0, LENGTH))

    def at(candles: int) -> int:
        return frame.shift(origin, candles)

    def spans(end: int) -> list[tuple[int, int]]:
        edges = sorted(draw(st.sets(st.integers(1, max(1, end - 1)), max_size=8)))
        return list(zip(edges[::2], edges[1::2], strict=False))

    ledger = [
        Gap(at(first), at(end), state, *(("proof", 1) if state in SETTLED else (None, None)))
        for first, end in (spans(stored_end - 1) if stored_end > 3 else [])
        for state in [draw(st.sampled_from(list(GapState)))]
    ]
    state = draw(st.sampled_from(STATES))
    recent = draw(st.booleans()) if state in ("succeeded", "failed") else state == "running"
    return Facts(
        series=BTC.with_timeframe(frame),
        now_time=at(draw(st.integers(1, LENGTH + 20))) + draw(st.integers(0, 90)),
        stored=Span(at(0), at(stored_end)) if stored_end else None,
        gaps=ledger,
        working_on=[Span(at(first), at(end)) for first, end in spans(LENGTH + 20)],
        sweeping=draw(st.booleans()),
        backfill=BackfillReport(state=state, recent=recent),
        stream=StreamStatus(draw(st.sampled_from(StreamState))),
    )


@given(any_facts())
def test_the_status_follows_from_the_reason_and_the_numbers_agree(known: Facts) -> None:
    found = assess(known, GRACE_S)
    assert found.status == STATUS[found.status_reason]
    assert (found.status_reason == "missing_head") <= (known.stored is None)
    frame = known.series.timeframe
    missing = sum(frame.count(*one.span) for one in known.gaps)
    assert found.gaps.unknown + found.gaps.healing + found.gaps.confirmed_empty + found.gaps.lost == missing
    assert min(found.gaps.unknown, found.gaps.healing, found.gaps.confirmed_empty, found.gaps.lost) >= 0
    assert frame.next(found.expected_latest_closed_time) <= known.now_time - GRACE_S or known.stream.state == "delisted"
    if known.stored is None:
        return
    assert found.missing_candles is not None
    assert found.head_time is not None
    if found.status == "green":
        assert found.missing_candles == found.gaps.unknown == found.gaps.healing == found.gaps.lost == 0
        assert found.head_time >= found.expected_latest_closed_time
    if found.status_reason.startswith(("backfill", "lagging")):
        assert found.missing_candles == frame.count(
            frame.next(found.head_time), frame.next(found.expected_latest_closed_time)
        )
        assert found.missing_candles > 0
    if found.status_reason in ("interior_gap", "gap_healing"):
        assert (found.gaps.unknown > 0) == (found.status_reason == "interior_gap")


@given(any_facts())
def test_reading_more_spans_is_never_worse(known: Facts) -> None:
    before = RANK[assess(known, GRACE_S).status]
    everything = [Span(0, known.now_time + 10 * 365 * 86_400)]
    for better in (
        replace(known, working_on=everything),
        replace(known, sweeping=True),
        replace(known, backfill=RUNNING),
    ):
        assert RANK[assess(better, GRACE_S).status] <= before or before == 0
    # A running reading does not change green.
    if before == 0 and known.stream.state != "delisted":
        assert assess(replace(known, backfill=RUNNING, working_on=everything), GRACE_S).status == "green"


@given(any_facts(), st.integers(0, 7))
def test_knowing_more_of_a_hole_is_never_worse(known: Facts, which: int) -> None:
    if not known.gaps:
        return
    which %= len(known.gaps)
    confirmed = known.gaps[which]._replace(state=GapState.CONFIRMED_EMPTY, proof="proof", time=1)
    before = RANK[assess(known, GRACE_S).status]
    rest = [*known.gaps[:which], *known.gaps[which + 1 :]]
    assert RANK[assess(replace(known, gaps=rest), GRACE_S).status] <= before
    settled = [*known.gaps[:which], confirmed, *known.gaps[which + 1 :]]
    assert RANK[assess(replace(known, gaps=settled), GRACE_S).status] <= before


@given(any_facts(), st.integers(0, 10**7))
def test_time_alone_heals_only_a_head_that_is_ahead(known: Facts, later_s: int) -> None:
    before = assess(known, GRACE_S)
    after = assess(replace(known, now_time=known.now_time + later_s), GRACE_S)
    assert RANK[after.status] >= RANK[before.status] or before.status_reason == "head_ahead_of_closed_window"
    assert (after.missing_candles or 0) >= (before.missing_candles or 0)
    assert (after.lag_seconds or 0) >= (before.lag_seconds or 0)
