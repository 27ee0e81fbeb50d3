"""BackfillBoard: reports and messages about readings of history, by values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryWatch
from klinesync.history import board as board_module
from klinesync.history.board import UNBEGUN, BackfillBoard, BackfillReport

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
MONTHS = SeriesId.parse("binance:spot:BTC/USDT:1M")


class Wall:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Told:
    """What was passed on."""

    def __init__(self) -> None:
        self.said: list[tuple[SeriesId, str, Mapping[str, object]]] = []

    def __call__(self, series: SeriesId, message: str, data: Mapping[str, object]) -> None:
        self.said.append((series, message, data))


@pytest.fixture
def wall() -> Wall:
    return Wall()


def test_a_series_without_a_reading_has_an_idle_report(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.advanced(BTC, 600, 5)
    tail.ended(BTC)
    assert board.report(BTC, 120) == BackfillReport()


def test_a_reading_reports_its_progress_to_its_end(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.began(BTC, Span(600, 6600), "tail")
    report = board.report(BTC, 120)
    assert (report.state, report.progress_pct, report.reason, report.recent) == ("running", 0.0, "tail", True)
    assert (report.started_at, report.updated_at) == (1_700_000_000, 1_700_000_000)
    assert (report.start_missing_seconds, report.start_missing_candles) == (6000, 100)
    assert (report.current_missing_seconds, report.current_missing_candles) == (6000, 100)
    wall.now_s += 10
    tail.advanced(BTC, 2100, 24)
    report = board.report(BTC, 120)
    assert (report.progress_pct, report.updated_at, report.note) == (25.0, 1_700_000_010, "24 candles came")
    assert (report.current_missing_seconds, report.current_missing_candles) == (4500, 75)
    wall.now_s += 10
    tail.ended(BTC)
    report = board.report(BTC, 120)
    assert (report.state, report.progress_pct, report.error, report.recent) == ("succeeded", 100.0, None, True)
    assert (report.start_missing_candles, report.current_missing_candles) == (100, 0)
    wall.now_s += 120
    assert board.report(BTC, 120).recent
    wall.now_s += 1
    assert not board.report(BTC, 120).recent
    assert board.report(ETH, 120).state == "idle"


def test_a_failed_reading_reports_its_error_and_the_missing_candles(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.began(BTC, Span(0, 600), "tail")
    tail.advanced(BTC, 300, 5)
    tail.ended(BTC, "the exchange does not answer")
    report = board.report(BTC, 120)
    assert (report.state, report.error) == ("failed", "the exchange does not answer")
    assert (report.progress_pct, report.current_missing_candles) == (50.0, 5)


def test_progress_never_goes_back_or_beyond_the_end(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.began(BTC, Span(600, 1200), "tail")
    for upto, progress in ((0, 0.0), (930, 50.0), (660, 50.0), (6000, 100.0)):
        tail.advanced(BTC, upto, 0)
        assert board.report(BTC, 0).progress_pct == progress


def test_an_empty_span_is_no_division_by_zero(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.began(BTC, Span(600, 540), "tail")
    report = board.report(BTC, 120)
    assert (report.progress_pct, report.start_missing_seconds, report.current_missing_candles) == (100.0, 0, 0)


def test_months_are_counted_by_the_calendar(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    tail.began(MONTHS, Span(1_704_067_200, 1_735_689_600), "tail")  # 2024
    tail.advanced(MONTHS, 1_711_929_600, 3)  # to April
    report = board.report(MONTHS, 120)
    assert (report.start_missing_candles, report.current_missing_candles, report.progress_pct) == (12, 9, 25.0)


def test_two_readers_of_one_series_do_not_disturb_each_other(wall: Wall) -> None:
    board = BackfillBoard(wall)
    tail = board.watch()
    gaps: HistoryWatch = board.watch()
    tail.began(BTC, Span(6000, 12000), "tail")
    gaps.began(BTC, Span(0, 600), "declared gap")
    gaps.advanced(BTC, 300, 5)
    assert board.report(BTC, 120).progress_pct == 50.0
    gaps.ended(BTC, "no answer")
    report = board.report(BTC, 120)
    assert (report.state, report.reason, report.progress_pct) == ("running", "tail", 0.0)
    tail.ended(BTC)
    assert board.report(BTC, 120).reason == "declared gap", "of those that are over the one that began last"


def test_the_oldest_finished_readings_are_evicted_and_running_ones_are_not(wall: Wall) -> None:
    board = BackfillBoard(wall, max_finished=3)
    tail = board.watch()
    tail.began(BTC, Span(0, 600), "tail")
    others = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(5)]
    for series in (*others, others[2]):
        tail.began(series, Span(0, 600), "tail")
        tail.ended(series)
    assert [board.report(series, 120).state for series in others] == ["idle", "idle", *["succeeded"] * 3]
    assert board.report(BTC, 120).state == "running"


def test_only_a_long_reading_is_published_repeatedly_and_at_its_end(wall: Wall) -> None:
    told = Told()
    board = BackfillBoard(wall, told)
    tail = board.watch()
    tail.began(BTC, Span(0, 60_000), "tail")
    wall.now_s += 0.5
    tail.advanced(BTC, 6000, 100)
    tail.ended(BTC)
    assert told.said == []
    tail.began(BTC, Span(0, 60_000), "tail")
    for _ in range(10):
        wall.now_s += 0.25
        tail.advanced(BTC, int((wall.now_s - 1_700_000_000.5) * 12000), int((wall.now_s - 1_700_000_000.5) * 180))
    tail.ended(BTC)
    series, message, data = told.said[0]
    assert (series, message) == (BTC, "history is read: 20 %, about 4 s left")
    assert data == {
        "state": "running",
        "reason": "tail",
        "progress_pct": 20.0,
        "candles": 180,
        "missing_candles": 800,
        "candles_per_s": 180.0,
        "left_s": 4,
    }
    assert [data["progress_pct"] for _, _, data in told.said] == [20.0, 40.0, 100.0]
    assert [data["state"] for _, _, data in told.said] == ["running", "running", "succeeded"]
    tail.began(BTC, Span(0, 60_000), "tail")
    wall.now_s += 3
    tail.advanced(BTC, 600, 10)
    tail.ended(BTC, "the exchange does not answer")
    assert told.said[-1][1] == "history cannot be read: the exchange does not answer"


def test_a_reading_of_many_candles_is_published_from_its_beginning(wall: Wall) -> None:
    told = Told()
    board = BackfillBoard(wall, told)
    deep = board.watch()
    deep.began(BTC, Span(0, 60 * board_module.PUBLISH_CANDLES), "backfill")
    for upto in range(0, 60_000, 600):
        deep.advanced(BTC, upto, upto // 60)
    deep.ended(BTC)
    assert [(data["progress_pct"], data["state"]) for _, _, data in told.said] == [
        (0.0, "running"),
        (100.0, "succeeded"),
    ]


def test_health_has_the_rate_and_the_remaining_time(wall: Wall) -> None:
    board = BackfillBoard(wall)
    deep = board.watch()
    deep.began(BTC, Span(0, 60_000), "backfill")
    wall.now_s += 10
    deep.advanced(BTC, 15_000, 250)
    report = board.report(BTC, 120)
    assert (report.candles, report.candles_per_s, report.left_s) == (250, 25.0, 30)
    deep.ended(BTC)
    assert board.report(BTC, 120).left_s is None


def test_each_reading_that_ends_is_noted_with_its_span_reason_and_candles() -> None:
    wall = Wall()
    noted: list[object] = []
    board = BackfillBoard(wall, note=lambda *reading: noted.append(reading))
    watch = board.watch()
    watch.began(BTC, Span(0, 600), "gap")
    watch.advanced(BTC, 300, 4)
    watch.ended(BTC)
    watch.began(BTC, Span(0, 600), "tail")
    watch.ended(BTC, "no answer")
    watch.ended(BTC)
    watch.ended(BTC, "no route")
    assert noted == [
        (BTC, Span(0, 600), "gap", 4, None),
        (BTC, Span(0, 600), "tail", 0, "no answer"),
        (BTC, None, UNBEGUN, 0, "no route"),
    ]
