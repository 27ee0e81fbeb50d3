"""IngestFeed: commands out for what comes in."""

from klinesync.core.candle import Candle
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.core.splice import Jump
from klinesync.ingest.feed import (
    MAX_HOLE_FETCHES,
    MAX_RETRY_DELAY_S,
    Command,
    Fetch,
    IngestFeed,
    Persist,
    Show,
    ShowLater,
)
from klinesync.runtime.sources import HistoryPage

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
    assert feed_after(7).attached() == [Fetch(7 * 60)]
    assert feed_after(None).attached() == [Fetch(None)]


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
    assert feed.history(page(5, 6, 8, empty=(hole,))) == [Persist(candles(6, 8), (Jump(*hole),), (hole,))]
    assert feed.history_ended() == [Persist(candles(9))]


def test_failing_history_is_asked_for_again_without_end_and_live_stays_held() -> None:
    feed = feed_after(5)
    feed.attached()
    close(feed, 9)
    delays = []
    for _ in range(20):
        (again,) = feed.history_failed()
        assert isinstance(again, Fetch)
        delays.append(again.delay_s)
    assert delays == sorted(delays)
    assert delays[-1] == MAX_RETRY_DELAY_S
    assert feed.history_failed(retry_after_s=90.0) == [Fetch(5 * 60, 90.0)]


def test_a_reconnect_asks_again_and_one_reading_is_under_way_at_most() -> None:
    feed = feed_after(5)
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
