"""IngestFeed: commands out for what comes in."""

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


def test_an_attached_feed_asks_from_its_head_on() -> None:
    assert feed_after(7).attached() == [Fetch(7 * 60, urgency=Urgency.SWEEP)]
    assert feed_after(None).attached() == [Fetch(None, urgency=Urgency.SWEEP)]
    assert live_feed(7).attached() == [Fetch(7 * 60, urgency=Urgency.REPAIR)]


def test_live_is_held_until_history_has_ended() -> None:
    feed = feed_after(1)
    feed.attached()
    assert close(feed, 5) == []
    assert feed.history(page(2, 3)) == [Persist(candles(2, 3))]
    assert feed.history(page(4, 5)) == [Persist(candles(4, 5))]
    assert close(feed, 6) == []
    assert feed.history_ended() == [Persist(candles(6))]
    assert close(feed, 7) == [Persist(candles(7))]


def test_the_same_frame_again_is_dropped() -> None:
    feed = live_feed(5)
    assert close(feed, 6) == [Persist(candles(6))]
    assert close(feed, 6) == []


def test_other_values_with_the_same_stamp_are_not_dropped() -> None:
    feed = live_feed(5)
    assert close(feed, 6) == [Persist(candles(6))]
    assert close(feed, 6, value=1.5) == [Persist((candle(6, 1.5),))], "the write makes them a question to REST"
    assert close(feed, 6, value=1.5) == []


def test_a_late_close_and_a_revision_are_written_and_an_older_frame_does_not_revert_it() -> None:
    feed = live_feed(5)
    close(feed, 6, event_ms=1000)
    assert close(feed, 4) == [Persist(candles(4))]
    assert close(feed, 6, event_ms=2000, value=1.5) == [Persist((candle(6, 1.5),))]
    assert close(feed, 6, event_ms=1500) == []


def test_while_stalled_nothing_is_let_through_and_what_came_late_is_written_afterwards() -> None:
    feed = live_feed(5)
    close(feed, 6)
    feed.stalled()
    assert close(feed, 7) == []
    assert close(feed, 4) == []
    assert feed.attached() == []
    assert feed.restarted(5 * 60) == [Persist(candles(4)), Fetch(5 * 60)]
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7))]


def test_what_was_late_before_a_failed_write_may_be_live_after_it() -> None:
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


def test_between_pages_live_waits_no_longer_than_it_may_and_late_closes_not_at_all() -> None:
    feed = feed_after(5)
    feed.attached()
    feed.history(page(5, 6, 7))
    close(feed, 7)
    close(feed, 20)
    assert feed.tick(0.0) == []
    assert feed.tick(MAX_HOLD_S) == [], "the page may still wait for its commit"
    assert feed.page_written() == [Persist(candles(7))]
    assert feed.tick(MAX_HOLD_S) == [Persist(candles(20), (Jump(8 * 60, 20 * 60),))]


def test_what_the_stream_told_of_a_page_that_could_not_be_written_is_held_afterwards() -> None:
    feed = live_feed(5)
    close(feed, 7)
    feed.history(page(5, 6, 7))
    feed.stalled()
    assert feed.restarted(5 * 60) == [Fetch(5 * 60)]
    assert feed.tick(0.0) == []
    assert feed.tick(MAX_HOLD_S) == [Persist(candles(7), (Jump(6 * 60, 7 * 60),))]


def test_a_page_that_is_written_while_the_store_fails_lets_nothing_through() -> None:
    feed = feed_after(5)
    feed.attached()
    feed.history(page(5, 6, 7))
    close(feed, 7)
    feed.stalled()
    assert feed.page_written() == []


def test_of_two_holes_each_is_fetched_for_itself() -> None:
    feed = live_feed(5)
    close(feed, 7)
    close(feed, 9)
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert feed.history_ended() == [Persist(candles(7)), Fetch(7 * 60, 0.5)]
    for _ in range(MAX_HOLE_FETCHES - 1):
        (again,) = feed.history_ended()
        assert isinstance(again, Fetch)
    assert feed.history_ended() == [Persist(candles(9), (Jump(8 * 60, 9 * 60),))]


def test_a_hole_is_fetched_before_the_close_behind_it_is_stored() -> None:
    feed = live_feed(5)
    assert close(feed, 8) == [Fetch(5 * 60)]
    assert close(feed, 9) == []
    assert feed.history(page(6, 7, 8)) == [Persist(candles(6, 7, 8))]
    assert feed.history_ended() == [Persist(candles(9))]


def test_a_hole_that_history_neither_fills_nor_shows_is_asked_again_with_growing_delay_and_then_passed() -> None:
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


def test_a_hole_between_rows_of_history_is_the_exchanges_and_passes_at_once() -> None:
    feed = live_feed(5)
    close(feed, 9)
    hole = Span(7 * 60, 8 * 60)
    assert feed.history(page(5, 6, 8, empty=(hole,))) == [
        Persist(candles(6, 8), (Jump(*hole),), (hole,), BOTH_NEIGHBOURS)
    ]
    assert feed.history_ended() == [Persist(candles(9))]


def test_failing_history_is_asked_for_again_without_end() -> None:
    feed = live_feed(5)
    close(feed, 9)
    delays = []
    for _ in range(20):
        (again,) = feed.history_failed()
        assert isinstance(again, Fetch)
        delays.append(again.delay_s)
    assert delays == sorted(delays)
    assert delays[-1] == FETCH_BACKOFF.most_s


def test_while_history_fails_live_that_follows_the_head_passes_and_live_behind_a_hole_waits() -> None:
    feed = feed_after(5)
    feed.attached()
    close(feed, 6)
    close(feed, 8)
    written, again = feed.history_failed()
    assert written == Persist(candles(6))
    assert isinstance(again, Fetch)
    assert close(feed, 9) == []


def test_while_a_first_history_fails_nothing_passes_before_it() -> None:
    feed = feed_after(None)
    feed.attached()
    close(feed, 8)
    (again,) = feed.history_failed()
    assert isinstance(again, Fetch)


def test_live_waits_a_bounded_time_for_history_then_the_hole_is_declared() -> None:
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


def test_the_wait_begins_anew_with_every_hole() -> None:
    feed = live_feed(5)
    close(feed, 7)
    feed.tick(0.0)
    feed.history(page(6, 7))
    feed.history_ended()
    assert feed.tick(MAX_HOLD_S) == []
    close(feed, 9)
    assert feed.tick(2 * MAX_HOLD_S) == []


def test_what_is_overdue_is_asked_for_while_live_passes() -> None:
    feed = live_feed(5)
    assert feed.overdue(Urgency.FILL) == [Fetch(5 * 60, urgency=Urgency.FILL)]
    assert feed.overdue(Urgency.FILL) == []
    assert close(feed, 6) == [Persist(candles(6))]
    assert feed.history(page(5, 6)) == []
    assert feed.history_ended() == []


def test_live_does_not_overtake_a_page_that_brought_what_was_overdue() -> None:
    feed = live_feed(5)
    feed.overdue(Urgency.FILL)
    assert feed.history(page(5, 6)) == [Persist(candles(6))]
    assert close(feed, 7) == []
    assert feed.history_ended() == [Persist(candles(7))]


def test_a_hole_before_live_makes_what_is_fetched_at_leisure_urgent() -> None:
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


def test_nothing_is_asked_of_a_symbol_that_nobody_trades_until_it_is_attached() -> None:
    feed = live_feed(5)
    feed.overdue(Urgency.FILL)
    feed.abandoned()
    assert not feed.fetching
    assert feed.attached() == [Fetch(5 * 60)]


def test_what_the_stream_has_told_since_is_left_out_of_an_audit() -> None:
    feed = live_feed(5)
    close(feed, 6, event_ms=1000)
    close(feed, 7, event_ms=2000)
    assert feed.not_streamed_since(candles(5, 6, 7), 1500) == list(candles(5, 6))


def test_a_reconnect_asks_again_and_one_reading_is_under_way_at_most() -> None:
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


def test_forming_keeps_its_interval_and_the_latest_is_shown_when_it_is_due() -> None:
    feed = live_feed(5)
    assert feed.forming(candle(6, 1.1), now_s=10.0) == [Show(candle(6, 1.1))]
    assert feed.forming(candle(6, 1.2), now_s=10.1) == [ShowLater(10.25)]
    assert feed.forming(candle(6, 1.3), now_s=10.2) == []
    assert feed.due(10.25) == [Show(candle(6, 1.3))]
    assert feed.forming(candle(6, 1.4), now_s=10.6) == [Show(candle(6, 1.4))]


def test_forming_that_a_close_overtook_is_not_shown() -> None:
    feed = live_feed(5)
    feed.forming(candle(6, 1.1), now_s=10.0)
    feed.forming(candle(6, 1.2), now_s=10.1)
    close(feed, 6)
    assert feed.due(10.25) == []
    assert feed.forming(candle(6), now_s=11.0) == []
    assert feed.forming(candle(7), now_s=11.0) == [Show(candle(7))]


def test_a_newer_forming_candle_waits_on_when_the_one_before_it_closes_late() -> None:
    feed = live_feed(5)
    feed.forming(candle(6), now_s=10.0)
    feed.forming(candle(7), now_s=10.1)
    close(feed, 6)
    assert feed.due(10.25) == [Show(candle(7))]
