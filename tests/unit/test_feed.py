"""IngestFeed: events in, commands out."""

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.splice import Jump
from klinesync.exchanges.exchange import BOTH_NEIGHBOURS, HistoryPage, Urgency
from klinesync.ingest.feed import (
    FETCH_BACKOFF,
    MAX_HOLD_S,
    MAX_HOLE_FETCHES,
    Command,
    Fetch,
    Hurry,
    IngestFeed,
    Persist,
    Show,
    ShowLater,
)

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")


def candle(minute: int, close: float = 1.0) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, close, 1.0)


def candles(*minutes: int) -> tuple[Candle, ...]:
    return tuple(candle(minute) for minute in minutes)


def page(*minutes: int, empty: tuple[Span, ...] = ()) -> HistoryPage:
    return HistoryPage(list(candles(*minutes)), list(empty))


def close(feed: IngestFeed, minute: int, event_ms: int | None = None, value: float = 1.0) -> list[Command]:
    """A closed candle arrives, sent by the exchange 100 ms after its end."""
    return feed.closed(candle(minute, value), minute * 60_000 + 60_100 if event_ms is None else event_ms)


def feed_after(head: int | None) -> IngestFeed:
    return IngestFeed(SERIES, None if head is None else head * 60, forming_interval_s=0.25)


def live_feed(head: int) -> IngestFeed:
    feed = feed_after(head)
    feed.attached()
    feed.history_ended()
    return feed


def test_an_attached_feed_requests_history_from_its_head_on() -> None:
    assert feed_after(7).attached() == [Fetch(7 * 60, urgency=Urgency.SWEEP)]
    assert feed_after(None).attached() == [Fetch(None, urgency=Urgency.SWEEP)]
    assert live_feed(7).attached() == [Fetch(7 * 60, urgency=Urgency.REPAIR)]


def test_live_candles_are_held_until_history_has_ended() -> None:
    feed = feed_after(1)
    feed.attached()
    assert close(feed, 5) == []
    assert feed.history(page(2, 3)) == [Persist(candles(2, 3))]
    assert feed.history(page(4, 5)) == [Persist(candles(4, 5))]
    assert close(feed, 6) == []
    assert feed.history_ended() == [Persist(candles(6))]
    assert close(feed, 7) == [Persist(candles(7))]


def test_a_duplicate_frame_is_dropped() -> None:
    feed = live_feed(5)
    assert close(feed, 6) == [Persist(candles(6))]
    assert close(feed, 6) == []


def test_other_values_with_the_same_stamp_are_not_dropped() -> None:
    feed = live_feed(5)
    assert close(feed, 6) == [Persist(candles(6))]
    assert close(feed, 6, value=1.5) == [Persist((candle(6, 1.5),))], "the write makes them a question to REST"
    assert close(feed, 6, value=1.5) == []


def test_a_late_close_and_a_revision_are_written() -> None:
    feed = live_feed(5)
    close(feed, 6, event_ms=1000)
    assert close(feed, 4) == [Persist(candles(4))]
    assert close(feed, 6, event_ms=2000, value=1.5) == [Persist((candle(6, 1.5),))]


def test_a_frame_with_an_earlier_stamp_and_other_values_is_written_as_a_question_unless_the_candle_is_held() -> None:
    """The exchange's clock may have been ahead at the later stamp. The write of a frame changes no stored candle."""
    feed = live_feed(5)
    close(feed, 6, event_ms=2000, value=1.5)
    assert close(feed, 6, event_ms=1500) == [Persist(candles(6))]
    assert close(feed, 6, event_ms=1500, value=1.5) == [], "the values are known"
    assert feed.closed(candle(6), 1500, by_rest=True) == [], "an earlier row of REST"
    feed.attached()
    close(feed, 7, event_ms=2000, value=1.5)
    assert close(feed, 7, event_ms=1500) == []
    assert feed.history_ended() == [Persist((candle(7, 1.5),))]


def test_a_stalled_feed_releases_nothing_and_writes_late_candles_afterwards() -> None:
    feed = live_feed(5)
    close(feed, 6)
    feed.stalled()
    assert close(feed, 7) == []
    assert close(feed, 4) == []
    assert feed.attached() == []
    assert feed.restarted(5 * 60) == [Persist(candles(4)), Fetch(5 * 60)]
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7))]


def test_a_candle_that_was_late_before_a_failed_write_may_be_live_after_it() -> None:
    feed = live_feed(5)
    close(feed, 6)
    close(feed, 7)
    feed.stalled()
    close(feed, 6, event_ms=10**9, value=1.5)
    assert feed.restarted(5 * 60) == [Fetch(5 * 60)], "behind 5 nothing is stored, so 6 would be no late one"
    assert feed.history_ended() == [Persist((candle(6, 1.5),))]


def test_a_revision_that_could_not_be_written_is_written_afterwards_unless_a_newer_one_came() -> None:
    feed = live_feed(5)
    close(feed, 4, value=1.5)
    close(feed, 3, value=1.5)
    feed.stalled([candle(4, 1.5), candle(3, 1.5)])
    close(feed, 3, event_ms=10**9, value=1.25)
    assert feed.restarted(5 * 60) == [Persist((candle(3, 1.25),)), Persist((candle(4, 1.5),)), Fetch(5 * 60)]


def test_a_late_close_does_not_overtake_a_page_of_history_that_waits_for_its_commit() -> None:
    feed = feed_after(5)
    feed.attached()
    feed.history(page(5, 6, 7))
    assert close(feed, 7) == []
    assert feed.history_ended() == [Persist(candles(7))]


def test_between_pages_live_candles_wait_a_limited_time_and_late_closes_not_at_all() -> None:
    feed = feed_after(5)
    feed.attached()
    feed.history(page(5, 6, 7))
    close(feed, 7)
    close(feed, 20)
    assert feed.tick(0.0) == []
    assert feed.tick(MAX_HOLD_S) == [], "the page may still wait for its commit"
    assert feed.page_written() == [Persist(candles(7))]
    assert feed.tick(MAX_HOLD_S) == [Persist(candles(20), (Jump(8 * 60, 20 * 60),))]


def test_streamed_candles_of_an_unwritten_page_are_held_until_the_restart() -> None:
    feed = live_feed(5)
    close(feed, 7)
    feed.history(page(5, 6, 7))
    feed.stalled()
    assert feed.restarted(5 * 60) == [Fetch(5 * 60)]
    assert feed.tick(0.0) == []
    assert feed.tick(MAX_HOLD_S) == [Persist(candles(7), (Jump(6 * 60, 7 * 60),))]


def test_a_page_that_is_written_while_the_feed_is_stalled_releases_nothing() -> None:
    feed = feed_after(5)
    feed.attached()
    feed.history(page(5, 6, 7))
    close(feed, 7)
    feed.stalled()
    assert feed.page_written() == []


def test_each_of_two_gaps_is_requested_separately() -> None:
    feed = live_feed(5)
    close(feed, 7)
    close(feed, 9)
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7)), Fetch(7 * 60, 0.5)]
    for _ in range(MAX_HOLE_FETCHES - 1):
        (again,) = feed.history_ended()
        assert isinstance(again, Fetch)
    assert feed.history_ended() == [Persist(candles(9), (Jump(8 * 60, 9 * 60),))]


def test_a_gap_is_requested_before_the_closed_candle_after_it_is_written() -> None:
    feed = live_feed(5)
    assert close(feed, 8) == [Fetch(5 * 60)]
    assert close(feed, 9) == []
    assert feed.history(page(6, 7, 8)) == [Persist(candles(6, 7, 8))]
    assert feed.history_ended() == [Persist(candles(9))]


def test_a_gap_without_a_proof_is_requested_again_with_backoff_and_then_skipped() -> None:
    feed = live_feed(5)
    assert close(feed, 7) == [Fetch(5 * 60)]
    delays = []
    for _ in range(MAX_HOLE_FETCHES):
        (again,) = feed.history_ended()
        assert isinstance(again, Fetch)
        delays.append(again.delay_s)
    assert delays == sorted(delays)
    assert delays[0] > 0
    assert feed.history_ended() == [Persist(candles(7), (Jump(6 * 60, 7 * 60),))]


def test_a_gap_between_rows_of_one_answer_is_proven_empty_and_skipped_at_once() -> None:
    feed = live_feed(5)
    close(feed, 9)
    hole = Span(7 * 60, 8 * 60)
    assert feed.history(page(5, 6, 8, empty=(hole,))) == [
        Persist(candles(6, 8), (Jump(*hole),), (hole,), BOTH_NEIGHBOURS)
    ]
    assert feed.history_ended() == [Persist(candles(9))]


def test_failed_history_is_retried_without_limit() -> None:
    feed = live_feed(5)
    close(feed, 9)
    delays = []
    for _ in range(20):
        (again,) = feed.history_failed()
        assert isinstance(again, Fetch)
        delays.append(again.delay_s)
    assert delays == sorted(delays)
    assert delays[-1] == FETCH_BACKOFF.most_s


def test_while_history_fails_live_candles_at_the_head_are_released_and_those_after_a_gap_wait() -> None:
    feed = feed_after(5)
    feed.attached()
    close(feed, 6)
    close(feed, 8)
    written, again = feed.history_failed()
    assert written == Persist(candles(6))
    assert isinstance(again, Fetch)
    assert close(feed, 9) == []


def test_while_a_first_history_fails_no_live_candle_is_released() -> None:
    feed = feed_after(None)
    feed.attached()
    close(feed, 8)
    (again,) = feed.history_failed()
    assert isinstance(again, Fetch)


def test_live_candles_wait_a_limited_time_for_history_then_the_gap_is_declared() -> None:
    feed = live_feed(5)
    close(feed, 8)
    close(feed, 11)
    assert feed.tick(100.0) == []
    feed.history_failed()
    assert feed.tick(100.0 + MAX_HOLD_S - 1) == []
    (written,) = feed.tick(100.0 + MAX_HOLD_S)
    holes = (Jump(6 * 60, 8 * 60), Jump(9 * 60, 11 * 60))
    assert written == Persist(candles(8, 11), holes)
    assert isinstance(written, Persist)
    assert written.unproven() == [Span(6 * 60, 8 * 60), Span(9 * 60, 11 * 60)]
    assert close(feed, 12) == [Persist(candles(12))], "it goes on"


def test_the_time_limit_of_held_candles_starts_again_with_each_gap() -> None:
    feed = live_feed(5)
    close(feed, 7)
    feed.tick(0.0)
    feed.history(page(6, 7))
    feed.history_ended()
    assert feed.tick(MAX_HOLD_S) == []
    close(feed, 9)
    assert feed.tick(2 * MAX_HOLD_S) == []


def test_an_overdue_candle_is_requested_while_live_candles_are_released() -> None:
    feed = live_feed(5)
    assert feed.overdue(Urgency.FILL) == [Fetch(5 * 60, urgency=Urgency.FILL)]
    assert feed.overdue(Urgency.FILL) == []
    assert close(feed, 6) == [Persist(candles(6))]
    assert feed.history(page(5, 6)) == []
    assert feed.history_ended() == []


def test_live_candles_do_not_overtake_a_page_with_an_overdue_candle() -> None:
    feed = live_feed(5)
    feed.overdue(Urgency.FILL)
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert close(feed, 7) == []
    assert feed.history_ended() == [Persist(candles(7))]


def test_a_gap_before_live_candles_raises_the_urgency_of_the_fetch_in_flight() -> None:
    feed = live_feed(5)
    feed.overdue(Urgency.FILL)
    assert close(feed, 7) == [Hurry(Urgency.REPAIR)]
    assert close(feed, 8) == []
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7, 8))]


def test_late_closes_are_written_while_history_only_waits_to_be_read() -> None:
    feed = live_feed(5)
    close(feed, 8)
    feed.history_failed()
    assert close(feed, 4) == [Persist(candles(4))]


def test_nothing_is_requested_for_a_delisted_symbol_until_it_is_attached() -> None:
    feed = live_feed(5)
    feed.overdue(Urgency.FILL)
    feed.abandoned()
    assert not feed.fetching
    assert feed.attached() == [Fetch(5 * 60)]


def test_candles_that_the_stream_has_sent_since_are_left_out_of_an_audit() -> None:
    feed = live_feed(5)
    close(feed, 6, event_ms=1000)
    close(feed, 7, event_ms=2000)
    assert feed.not_streamed_since(candles(5, 6, 7), 1500) == list(candles(5, 6))


def test_a_reconnect_requests_history_again_with_at_most_one_fetch_in_flight() -> None:
    feed = live_feed(5)
    assert feed.attached() == [Fetch(5 * 60)]
    assert feed.attached() == []
    feed.history(page(6))
    feed.history_ended()
    assert feed.attached() == [Fetch(6 * 60)]


def test_after_a_failed_write_the_feed_begins_again_from_the_stored_head() -> None:
    feed = live_feed(5)
    close(feed, 6)
    assert feed.restarted(5 * 60) == [Fetch(5 * 60)]
    assert close(feed, 7) == []
    assert feed.history(page(6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7))]


def test_forming_candles_are_throttled_and_the_latest_is_shown_when_due() -> None:
    feed = live_feed(5)
    assert feed.forming(candle(6, 1.1), now_s=10.0) == [Show(candle(6, 1.1))]
    assert feed.forming(candle(6, 1.2), now_s=10.1) == [ShowLater(10.25)]
    assert feed.forming(candle(6, 1.3), now_s=10.2) == []
    assert feed.due(10.25) == [Show(candle(6, 1.3))]
    assert feed.forming(candle(6, 1.4), now_s=10.6) == [Show(candle(6, 1.4))]


def test_a_forming_candle_is_dropped_after_its_close() -> None:
    feed = live_feed(5)
    feed.forming(candle(6, 1.1), now_s=10.0)
    feed.forming(candle(6, 1.2), now_s=10.1)
    close(feed, 6)
    assert feed.due(10.25) == []
    assert feed.forming(candle(6), now_s=11.0) == []
    assert feed.forming(candle(7), now_s=11.0) == [Show(candle(7))]


def test_a_newer_forming_candle_keeps_waiting_when_the_candle_before_closes_late() -> None:
    feed = live_feed(5)
    feed.forming(candle(6), now_s=10.0)
    feed.forming(candle(7), now_s=10.1)
    close(feed, 6)
    assert feed.due(10.25) == [Show(candle(7))]
