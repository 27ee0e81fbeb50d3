"""The output of `klinesync watch` for each update: a board on a terminal, lines elsewhere, JSON on request."""

import json
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.client.board import (
    HELD_CANDLES,
    NOTICE_S,
    Board,
    Column,
    Health,
    Unanswered,
    fitting,
    notice,
)
from klinesync.client.figures import change, duration, number, places, sparkline
from klinesync.client.updates import CaughtUp, ClosedCandle, Connected, Disconnected, FormingCandle, Gap, System, Update
from klinesync.client.watch import as_json, line
from klinesync.core.candle import MAX_VALUE, Candle
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
closed = partial(ClosedCandle, series=SERIES)
forming = partial(FormingCandle, series=SERIES)
connected = partial(Connected, series=SERIES)
caught_up = partial(CaughtUp, series=SERIES)
disconnected = partial(Disconnected, series=SERIES)
system = partial(System, series=SERIES)
gap_ = partial(Gap, series=SERIES)
START = 1_700_000_040
NOW = 1000.0  # on the monotonic clock
CLOSED = closed(Candle(START, 1.0, 2.0, 0.5, 1.5, 10.0))
STALE = system("stream.stale", "no frames for 15 s", {"since": 1_700_000_100})


def candle(at: int, close: float = 1.5) -> Candle:
    return Candle(START + 60 * at, 1.0, 2.0, 0.5, close, 10.0)


def shown(board: Board, width: int = 120, height: int = 40, now_s: float = NOW) -> list[str]:
    return [text.plain for text in board.lines(width, height, now_s)]


def taken(*updates: Update) -> Board:
    board = Board(SERIES)
    for update in updates:
        board.take(update, NOW)
    return board


def test_a_system_message_is_a_line_with_its_sentence() -> None:
    assert line(STALE) == "stream.stale: no frames for 15 s"
    assert line(system("resync", "", {})) == "resync"
    assert json.loads(as_json(STALE)) == {
        "type": "system",
        "event": "stream.stale",
        "message": "no frames for 15 s",
        "data": {"since": 1_700_000_100},
    }


def test_each_update_is_a_json_object_in_one_line() -> None:
    happened: list[Update] = [
        connected(START, "live"),
        CLOSED,
        forming(candle(1)),
        gap_(START, START + 60, "healing"),
        STALE,
        disconnected("two\nlines"),
    ]
    texts = [as_json(update) for update in happened]
    assert not [text for text in texts if "\n" in text]
    assert [json.loads(text)["type"] for text in texts] == [
        "connected",
        "closed",
        "forming",
        "gap",
        "system",
        "disconnected",
    ]


def test_the_forming_candle_is_on_top_and_marked_until_it_closes() -> None:
    board = taken(connected(None, "live"), CLOSED, forming(candle(1, close=1.25)))
    names, first, second = shown(board)[-3:]
    assert names.split() == ["UTC", "open", "high", "low", "close", "volume", "change"]
    assert first.split() == [">", "2023-11-14", "22:15", "1.00", "2.00", "0.50", "1.25", "10", "+25.00%", "forming"]
    assert second.split() == ["2023-11-14", "22:14", "1.00", "2.00", "0.50", "1.50", "10", "+50.00%"]
    board.take(closed(candle(1)), NOW)
    assert "forming" not in "".join(shown(board))
    board.take(forming(candle(1)), NOW)  # from before it closed
    assert "forming" not in "".join(shown(board))


def test_a_correction_replaces_the_candle_and_is_marked() -> None:
    board = taken(CLOSED, closed(candle(1)), closed(candle(0, close=1.75), revised=True))
    rows = shown(board)[-2:]
    assert "revised" not in rows[0]
    assert rows[1].split()[-4:] == ["1.75", "10", "+75.00%", "revised"]


def test_a_hole_is_a_line_between_its_neighbours_until_it_is_filled() -> None:
    board = taken(CLOSED, gap_(START + 60, START + 180, "confirmed_empty"), closed(candle(3)))
    assert shown(board)[-2].strip() == "2 candles missing (confirmed empty)"
    board.take(closed(candle(1), revised=True), NOW)
    board.take(closed(candle(2), revised=True), NOW)
    assert "missing" not in "".join(shown(board))


def test_a_notice_ends_when_its_cause_does() -> None:
    progress = system("backfill.progress", "40 %", {"state": "running"})
    board = taken(connected(START, "live"), CLOSED, STALE, progress)
    assert shown(board)[:3] == [
        f"{SERIES}  stale for 0 s",
        "stream.stale: no frames for 15 s",
        "backfill.progress: 40 %",
    ]
    board.take(system("stream.live", "frames again", {}), NOW)
    assert shown(board)[:3] == [f"{SERIES}  live", "backfill.progress: 40 %", ""]
    board.take(system("backfill.progress", "gave up", {"state": "failed"}), NOW)
    assert shown(board)[:2] == [f"{SERIES}  live", ""]
    board.take(STALE, NOW)
    board.take(disconnected("the service shuts down"), NOW)
    assert shown(board)[:3] == [f"{SERIES}  not connected, trying again", "the service shuts down", ""]
    board.take(connected(START, "live"), NOW)
    assert shown(board)[:2] == [f"{SERIES}  live", ""]


@pytest.mark.parametrize(
    "event",
    [
        system("factor.rebuild", "computed anew: up to date", {"state": "done"}),
        system("factor.rebuild", "computed anew: up to date", {"epoch": 3}),  # an older service
        system("history.extended", "older candles are there", {"first_time": 60}),
        system("slow", "half of what may wait does wait", {}),
        system("resync", "", {}),
        system("new.kind", "whatever comes next", {}),
    ],
    ids=lambda event: event.event,
)
def test_an_event_without_an_end_is_shown_for_notice_s(event: System) -> None:
    board = taken(connected(START, "live"), CLOSED, event)
    assert notice(event) in shown(board, now_s=NOW + NOTICE_S - 1)
    assert notice(event) not in shown(board, now_s=NOW + NOTICE_S)


def test_a_rebuild_is_shown_until_it_is_done() -> None:
    board = taken(connected(START, "live"), CLOSED, system("factor.rebuild", "40 %", {"state": "running"}))
    assert "factor.rebuild: 40 %" in shown(board, now_s=NOW + 3600)
    board.take(system("factor.rebuild", "up to date", {"state": "done"}), NOW + 3600)
    assert "factor.rebuild: 40 %" not in shown(board, now_s=NOW + 3600)
    assert not [text for text in shown(board, now_s=NOW + 3700) if "factor" in text]


def test_health_ends_a_notice_whose_end_was_missed() -> None:
    progress = system("backfill.progress", "40 %", {"state": "running"})
    board = taken(connected(START, "live"), CLOSED, STALE, progress)
    board.judge(Health("yellow", "backfill_running", "stale", backfill="running", backfill_pct=40.0), NOW)
    assert len(board.notices) == 2
    board.judge(Health("green", "up_to_date", "live", backfill="succeeded"), NOW)
    assert not board.notices
    assert shown(board)[:3] == [f"{SERIES}  live", "● green: up to date", ""]


@pytest.mark.parametrize(
    ("stream", "words", "colour"),
    [
        ("live", "live", "green"),
        ("subscribed", "subscribed, no frame yet", "yellow"),
        ("stale", "stale", "yellow"),
        ("rest_fallback", "stale, read over REST", "yellow"),
        ("reconnecting", "reconnecting", "yellow"),
        ("delisted", "delisted", "yellow"),
        ("off", "not followed", "default"),
        ("new_state", "new state", "yellow"),
        ("", "connected", "default"),
    ],
)
def test_the_lamp_is_the_state_of_the_stream_and_not_of_the_connection(stream: str, words: str, colour: str) -> None:
    (title, *_) = taken(connected(START, stream)).lines(100, 40, NOW)
    assert title.plain == f"{SERIES}  {words}"
    assert [str(span.style) for span in title.spans] == [f"not bold {colour}"]


def test_the_age_of_the_data_grows_until_live_data_come() -> None:
    board = taken(connected(START, "live"), CLOSED)
    assert shown(board, now_s=NOW + 50)[0] == f"{SERIES}  live", "history is no live data"
    board.take(caught_up(START), NOW)
    board.take(forming(candle(1)), NOW + 10)
    assert shown(board, now_s=NOW + 12.5)[0] == f"{SERIES}  live, data 2 s old"
    board.take(closed(candle(0), revised=True), NOW + 100)
    assert shown(board, now_s=NOW + 140)[0] == f"{SERIES}  live, data 2 min old", "a correction is no live data"
    board.take(system("stream.reconnecting", "the connection is gone", {}), NOW + 140)
    assert shown(board, now_s=NOW + 200)[:2] == [
        f"{SERIES}  reconnecting for 60 s, data 3 min old",
        "stream.reconnecting: the connection is gone",
    ]
    board.take(disconnected("the service shuts down"), NOW + 200)
    assert shown(board, now_s=NOW + 7300)[0] == f"{SERIES}  not connected, trying again, data 2 h old"
    board.take(connected(START, "live"), NOW + 7300)
    board.take(caught_up(START), NOW + 7300)
    board.take(closed(candle(1)), NOW + 7300)
    assert shown(board, now_s=NOW + 7300)[0] == f"{SERIES}  live, data 0 s old"


def test_the_first_frame_makes_a_subscribed_stream_live() -> None:
    board = taken(connected(START, "subscribed"), CLOSED, caught_up(START))
    assert shown(board)[0] == f"{SERIES}  subscribed, no frame yet"
    board.take(forming(candle(1)), NOW)
    assert shown(board)[0] == f"{SERIES}  live, data 0 s old"


def test_before_live_data_the_age_comes_from_health() -> None:
    board = taken(connected(START, "reconnecting"), CLOSED)
    board.judge(Health("red", "lagging_no_recent_backfill", "reconnecting", "refused", 300.0, 330.0), NOW)
    assert shown(board)[:3] == [
        f"{SERIES}  reconnecting for 5 min, data 5 min old",
        "● red: lagging no recent backfill",
        "refused",
    ]


def test_without_an_answer_about_health_the_state_is_unknown() -> None:
    board = taken(connected(START, "live"), CLOSED)
    board.judge(Unanswered("no answer in time"), NOW)
    assert shown(board)[:2] == [
        f"{SERIES}  state unknown",
        "the health of the series is unknown: no answer in time",
    ]
    board.judge(Health("green", "up_to_date", "live"), NOW)
    assert shown(board)[:2] == [f"{SERIES}  live", "● green: up to date"]


@pytest.mark.parametrize("status", ["green", "yellow", "red"])
def test_health_has_its_colour_and_its_reason(status: str) -> None:
    board = taken(connected(START, "live"), CLOSED)
    health = Health(status, "backfill_running", "rest_fallback", "no frames", backfill="running", backfill_pct=40.0)
    board.judge(health, NOW)
    title, judged, detail = board.lines(100, 40, NOW)[:3]
    assert title.plain == f"{SERIES}  stale, read over REST"
    assert judged.plain == f"● {status}: backfill running, 40 %"
    assert judged.style == status
    assert detail.plain == "no frames"
    board.take(disconnected("gone"), NOW)
    board.judge(Health("green", "up_to_date", "live"), NOW)  # requested while the connection is still being made
    assert "green" not in "".join(shown(board))
    assert shown(board)[0] == f"{SERIES}  not connected, trying again"
    board.take(connected(START, "live"), NOW)
    assert shown(board)[1] == "● green: up to date"


def test_a_service_without_health_has_no_health_line() -> None:
    board = taken(connected(START, "live"), CLOSED, closed(candle(1)))
    board.judge(None, NOW)
    assert shown(board)[0] == f"{SERIES}  live"
    assert shown(board)[1].endswith("1.5 to 1.5")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (0.9, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-05, "0.00001"),
        (0.00001234, "0.00001234"),
        (111603.68, "111603.68"),
        (123456.12345678, "123456.12345678"),
        (sum([0.1] * 1440), "144"),
        (sum([1111.1] * 1440), "1599984"),
        (1e16, "10000000000000000"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (5.0, "5"),
    ],
)
def test_numbers_are_shown_as_quoted(value: float, text: str) -> None:
    assert number(value) == text


@given(st.integers(-(10**13), 10**13), st.integers(0, 8))
def test_a_quoted_number_is_shown_exactly(digits: int, point: int) -> None:
    value = digits / 10**point
    assert float(number(value)) == value
    assert places(value) <= point


def test_all_prices_have_the_places_of_the_finest() -> None:
    board = taken(closed(Candle(START, 3, 3, 3, 3, 7)), closed(Candle(START + 60, 3, 0.1 + 0.2 + 3, 3, 3, 7.5)))
    assert shown(board)[-1].split()[2:] == ["3.0", "3.0", "3.0", "3.0", "7.0", "0.00%"]


def test_change_is_from_open_to_close() -> None:
    assert change(candle(0, close=0.5)) == "-50.00%"
    assert change(candle(0, close=0.9999999)) == "0.00%"
    assert change(Candle(START, 0.0, 1.0, 0.0, 1.0, 1.0)) == ""


def test_the_sparkline_runs_from_the_oldest_to_the_newest() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▅▅"
    board = taken(closed(candle(0, close=1.0)), closed(candle(1, close=2.0)), forming(candle(2)))
    assert shown(board)[1] == "▁█▅  1.0 to 2.0"
    assert "▁" not in "".join(text.plain for text in board.lines(100, 40, NOW, ascii_only=True))


def test_candles_in_json_have_their_order_flow_only_with_full() -> None:
    candle = Candle(60, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 3)
    for update in (closed(candle), forming(candle)):
        short, full = (json.loads(as_json(update, full=full)) for full in (False, True))
        assert json.loads(as_json(update)) == short
        assert not {"quote_volume", "trades"} & short.keys()
        flow = {"quote_volume": 15.0, "trades": 3, "taker_buy_volume": None, "taker_buy_quote_volume": None}
        assert full == short | flow


def test_json_lines_are_ascii_whatever_a_message_says() -> None:
    told = as_json(system("stream.stale", "\x1b[2J\u202e\u2028", {"of": "日本", "count": 10**40}))
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["data"] == {"of": "日本", "count": 10**40}


def test_control_characters_of_a_message_are_escaped() -> None:
    text = line(system("stream.stale", "a\x1b[2J\nb", {}))
    assert text == "stream.stale: a\\x1b[2J\\nb"
    assert line(disconnected("\x1b[2J")) == "not connected: \\x1b[2J"
    board = taken(disconnected("\x1b[31m\nred"))
    assert not [letter for text in shown(board) for letter in text if printable(letter) != letter]


def test_narrow_terminals_keep_time_and_close_and_drop_high_and_low_together() -> None:
    columns = [
        Column("", [">"]),
        Column("UTC", ["2023-11-14 22:14"], short=["22:14"]),
        *(Column(name, ["111111.11"]) for name in ("open", "high", "low", "close", "volume", "change")),
        Column("", ["forming"], left=True),
    ]
    names = {width: [column.name for column in fitting(columns, width)] for width in range(20, 120)}
    assert names[119] == ["", "UTC", "open", "high", "low", "close", "volume", "change", ""]
    assert names[20] == ["", "UTC", "close"]
    assert all(("high" in kept) == ("low" in kept) for kept in names.values())
    assert all(len(names[width]) <= len(names[width + 1]) for width in range(20, 119))


def test_the_board_holds_a_bounded_number_of_candles() -> None:
    board = Board(SERIES)
    for at in range(3 * HELD_CANDLES):
        board.take(gap_(START, START + 60 * at, "unknown"), NOW)
        board.take(closed(candle(at), revised=at % 2 == 0), NOW)
    assert len(board.closed) == HELD_CANDLES
    assert len(board.revised) == HELD_CANDLES // 2
    assert len(board._gaps) == HELD_CANDLES


values = st.floats(0, MAX_VALUE) | st.integers(0, 10**9).map(lambda cents: cents / 100)
candles = st.builds(Candle, st.integers(0, 90).map(lambda at: START + 60 * at), values, values, values, values, values)
texts = st.text(max_size=300)
updates = st.one_of(
    st.builds(caught_up, st.none()),
    st.builds(connected, st.none() | st.just(START), texts),
    st.builds(closed, candles, st.booleans()),
    st.builds(forming, candles),
    st.builds(gap_, st.just(START), st.integers(0, 90).map(lambda at: START + 60 * at), st.just("unknown")),
    st.builds(system, st.sampled_from(["stream.stale", "factor.rebuild", "new.kind"]), texts, st.just({})),
    st.builds(disconnected, texts),
)


healths = st.one_of(
    st.none(),
    st.just(Health("red", "missing_head", "off", "a detail", 5.0, 1e9)),
    st.just(Unanswered("no answer in time")),
)


@given(st.lists(updates, max_size=60), healths, st.integers(1, 200), st.integers(1, 60), st.booleans())
def test_the_board_fits_the_terminal_after_any_updates(
    happened: list[Update], health: Health | Unanswered | None, width: int, height: int, ascii_only: bool
) -> None:
    board = taken(*happened)
    board.judge(health, NOW)
    lines = board.lines(width, height, NOW, ascii_only=ascii_only)
    assert len(lines) <= height
    assert max((text.cell_len for text in lines), default=0) <= width
    assert not [letter for text in lines for letter in text.plain if printable(letter) != letter]


def test_the_client_for_strategies_does_not_import_the_board() -> None:
    code = "import sys, klinesync.client.follow; print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
