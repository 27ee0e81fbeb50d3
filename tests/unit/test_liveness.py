"""StreamWatch: the candles that a stream owes, and the states of a stream that does not deliver them."""

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.ingest.liveness import MAX_DETAIL_CHARS, StreamWatch
from klinesync.ingest.timings import RESUBSCRIBE, USUAL_TIMINGS

MINUTE = Timeframe.parse("1m")
STALE_S = 15.0


def candle(minute: int, volume: float = 1.0) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, volume)


def ms(minute: int, after_s: float = 0.0) -> int:
    """`after_s` after the close of that minute."""
    return (minute + 1) * 60_000 + int(after_s * 1000)


def attached(minute: int = 0) -> StreamWatch:
    watch = StreamWatch(MINUTE, STALE_S)
    watch.attached(minute * 60_000)
    return watch


def stale_one() -> StreamWatch:
    watch = attached()
    watch.shown([candle(1)], ms(1, 3), 100.0)
    assert watch.check(ms(1, STALE_S), 120.0)
    return watch


def test_an_acknowledgement_is_no_data() -> None:
    watch = attached()
    assert watch.state == "subscribed"
    watch.frame(candle(1), ms(0, 5), closed=False)
    assert watch.state == "live"
    assert watch.status.last_frame_at == ms(0, 5) // 1000


def test_a_traded_candle_that_rest_shows_and_the_stream_does_not_bring_makes_it_stale() -> None:
    watch = attached()
    watch.frame(candle(1), ms(0, 5), closed=False)
    watch.shown([candle(1)], ms(1, 3), 100.0)
    assert not watch.check(ms(1, STALE_S) - 1, 200.0), "it has its time"
    assert watch.check(ms(1, STALE_S), 200.0)
    assert watch.state == "stale"
    day = "1970-01-01"
    assert watch.status.detail == (
        f"REST shows the candle of {day} 00:01 UTC with trades; the stream last brought data at {day} 00:01:05 UTC"
    )
    assert not watch.check(ms(1, STALE_S), 201.0), "it is told once"


def test_a_frame_that_may_be_in_flight_is_waited_for() -> None:
    watch = attached()
    watch.shown([candle(1)], ms(1, 100), 100.0)
    assert not watch.check(ms(1, 100), 100.0 + USUAL_TIMINGS.in_flight_s / 2)
    assert watch.check(ms(1, 100), 100.0 + USUAL_TIMINGS.in_flight_s)


def test_a_late_close_within_the_limit_keeps_the_stream_live() -> None:
    watch = attached()
    watch.shown([candle(1)], ms(1, 3), 100.0)
    watch.frame(candle(1), ms(1, 5), closed=True)
    assert not watch.check(ms(1, 60), 200.0)
    assert watch.state == "live"


def test_forming_candles_do_not_replace_an_owed_close() -> None:
    watch = attached()
    watch.shown([candle(1)], ms(1, 3), 100.0)
    watch.frame(candle(2), ms(1, 5), closed=False)
    assert watch.check(ms(1, 60), 200.0)


def test_minutes_without_trades_are_not_owed() -> None:
    watch = attached()
    watch.shown([candle(1, 0.0), candle(2, 0.0)], ms(2, 3), 100.0)
    assert not watch.check(ms(2, 3600), 4000.0)
    assert watch.state == "subscribed"


def test_candles_that_closed_before_the_stream_was_attached_are_not_owed() -> None:
    watch = attached(5)
    watch.shown([candle(1), candle(3)], ms(4, 3), 100.0)
    assert not watch.check(ms(4, 3600), 4000.0)


def test_a_stream_that_was_attached_before_the_time_was_known_owes_what_closes_from_then_on() -> None:
    watch = StreamWatch(MINUTE, STALE_S)
    watch.attached(None)
    watch.shown([candle(1), candle(2)], ms(2, 3), 100.0)
    assert not watch.check(ms(2, 60), 200.0)
    watch.shown([candle(3)], ms(3, 3), 260.0)
    assert watch.check(ms(3, 60), 300.0)


def test_a_stream_owes_what_closes_once_the_time_is_known_though_rest_shows_it_late() -> None:
    watch = StreamWatch(MINUTE, STALE_S)
    watch.attached(None)
    assert not watch.check(ms(1), 100.0), "the time is known now"
    watch.shown([candle(0), candle(1), candle(2)], ms(3, 3), 220.0)
    assert watch.check(ms(3, 60), 300.0)


def test_rest_replaces_a_stale_stream_until_a_close_in_time_makes_it_live() -> None:
    watch = stale_one()
    watch.shown([candle(2)], ms(2, 3), 200.0)
    assert watch.state == "rest_fallback"
    assert not watch.frame(candle(3), ms(3, STALE_S + 1), closed=True), "too late to be relied on"
    assert not watch.frame(candle(4), ms(3, 20), closed=False)
    assert watch.is_stale
    assert watch.frame(candle(4), ms(4, 1), closed=True)
    assert watch.state == "live"
    assert watch.status.detail is None


def test_a_stale_stream_stays_stale_over_a_reconnect() -> None:
    watch = stale_one()
    watch.lost(ms(2))
    watch.attached(ms(2, 5))
    assert watch.state == "stale"


def test_a_lost_connection_is_named_until_it_is_subscribed_again() -> None:
    watch = attached()
    watch.lost(ms(2))
    assert watch.state == "reconnecting"
    assert watch.status.since == ms(2) // 1000
    watch.shown([candle(2)], ms(2, 3), 100.0)
    assert not watch.check(ms(2, 60), 200.0), "nothing is owed by a stream that is not there"
    watch.attached(ms(3))
    assert watch.state == "subscribed"


def test_a_frame_from_before_a_lost_connection_does_not_make_a_stream_live() -> None:
    watch = attached()
    watch.lost(ms(2))
    watch.frame(candle(1), ms(2), closed=True, connected=False)
    assert watch.state == "reconnecting"
    watch.frame(candle(2), ms(2, 5), closed=False)
    assert watch.state == "live", "one of the next connection does"
    stale = stale_one()
    assert not stale.frame(candle(4), ms(4, 1), closed=True, connected=False)
    assert stale.state == "stale"


def test_a_stream_whose_client_polls_rest_is_not_live_until_frames_come_again() -> None:
    watch = attached()
    watch.frame(candle(1), ms(0, 5), closed=False)
    watch.stands_in(ms(1), "the handshake is refused")
    for time_ms, closed in ((ms(1, 3), True), (ms(1, 5), False)):
        assert not watch.frame(candle(1), time_ms, closed=closed)
        assert (watch.state, watch.status.detail) == ("rest_fallback", "the handshake is refused")
    assert not watch.retry(1e9), "the source tries again by itself"
    watch.unreachable(ms(2), "nothing is heard")
    assert watch.state == "reconnecting"
    watch.reachable(ms(2, 9))
    assert watch.state == "rest_fallback"
    watch.stands_in(ms(3), None)
    assert watch.state == "subscribed"
    watch.frame(candle(4), ms(3, 5), closed=False)
    assert (watch.state, watch.status.detail) == ("live", None)


def test_a_polled_stream_is_reconnecting_when_rest_fails_too() -> None:
    watch = attached()
    watch.stands_in(ms(1), "the handshake is refused")
    watch.quiet = Span(120, 180)
    watch.lost(ms(2))
    assert (watch.state, watch.status.quiet) == ("reconnecting", None)
    watch.attached(ms(3))
    watch.frame(candle(3), ms(3), closed=False)
    assert watch.state == "live"


def test_a_candle_ends_a_proven_empty_span() -> None:
    watch = attached()
    watch.quiet = Span(120, 300)
    watch.frame(candle(1), ms(1, 3), closed=True)
    assert watch.status.quiet == Span(120, 300), "that candle lies before it"
    watch.frame(candle(3), ms(3, 3), closed=True)
    assert watch.status.quiet is None


def test_a_stream_is_reconnecting_since_it_was_requested() -> None:
    status = StreamWatch(MINUTE, STALE_S, 90_000).status
    assert (status.state, status.since) == ("reconnecting", 90)


def test_a_symbol_that_is_not_traded_owes_nothing() -> None:
    watch = attached()
    watch.shown([candle(1)], ms(1, 3), 100.0)
    watch.delisted(ms(1, 5), "its status is BREAK")
    assert not watch.check(ms(1, 60), 200.0)
    watch.lost(ms(2))
    watch.attached(ms(2))
    assert watch.state == "delisted"
    watch.listed(ms(9), "it is traded again")
    assert watch.state == "subscribed"
    assert watch.status.detail == "it is traded again"


def test_a_stale_stream_is_subscribed_again_with_backoff() -> None:
    watch = stale_one()
    now_s, waits = 120.0, []
    for _ in range(12):
        before_s = now_s
        while not watch.retry(now_s):
            now_s += 1.0
        waits.append(now_s - before_s)
    assert waits[0] == RESUBSCRIBE.initial_s
    assert waits == sorted(waits)
    assert waits[-1] == RESUBSCRIBE.most_s


def test_a_renewed_connection_counts_as_a_retry_of_each_of_its_streams() -> None:
    watch = stale_one()
    watch.retried(120.0)
    assert not watch.retry(120.0 + RESUBSCRIBE.initial_s)
    assert watch.retry(120.0 + RESUBSCRIBE.delay_s(1))
    for _ in range(2000):
        watch.retried(200.0)
    assert not watch.retry(200.0 + RESUBSCRIBE.most_s - 1)
    assert watch.retry(200.0 + RESUBSCRIBE.most_s), "after weeks too"


@given(
    st.lists(
        st.tuples(st.sampled_from(["closed", "forming", "rest", "untraded", "lost", "attached"]), st.integers(0, 40)),
        max_size=60,
    )
)
def test_a_stream_that_brings_every_close_in_time_is_never_stale(steps: list[tuple[str, int]]) -> None:
    """For any rows of REST and any lost connections: while attached, the stream delivers each close after 2 s."""
    watch = attached()
    there = True
    for minute, (step, after_s) in enumerate(steps):
        if step == "lost":
            watch.lost(ms(minute, -after_s))
            there = False
        elif step == "attached":
            watch.attached(ms(minute, -after_s))
            there = True
        if step == "forming" and there:
            watch.frame(candle(minute), ms(minute, -1), closed=False)
        watch.shown([candle(minute, 0.0 if step == "untraded" else 1.0)], ms(minute, 1), minute * 60.0)
        if there and step != "untraded":
            watch.frame(candle(minute), ms(minute, 2), closed=True)
        assert not watch.check(ms(minute, 40), minute * 60.0 + 40)


def test_the_reason_of_a_failed_subscription_is_shown_until_it_succeeds() -> None:
    watch = StreamWatch(MINUTE, STALE_S)
    watch.failing("SUBSCRIBE was answered with 2 Invalid\nrequest")
    assert (watch.status.state, watch.status.detail) == (
        "reconnecting",
        "SUBSCRIBE was answered with 2 Invalid\\nrequest",
    )
    watch.attached(60_000)
    assert watch.status.detail is None
    watch.failing("too late")
    assert watch.status.detail is None
    watch.lost(60_000)
    watch.failing("connection refused")
    watch.frame(candle(1), ms(0, 5), closed=False)
    assert (watch.state, watch.detail) == ("live", None), "a frame overtakes the acknowledgement"


def test_the_detail_of_a_stale_stream_is_not_overwritten() -> None:
    watch = stale_one()
    watch.failing("connection refused")
    assert watch.detail is not None
    assert watch.detail.startswith("REST shows")


def test_the_detail_of_a_stream_has_a_length_limit() -> None:
    watch = StreamWatch(MINUTE, STALE_S)
    watch.failing("x" * 100_000)
    assert watch.detail == "x" * MAX_DETAIL_CHARS
