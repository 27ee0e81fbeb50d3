"""The events of streams for any schedule of reading the clock."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.sim.exchange import SimExchange, make_exchange
from klinesync.sim.feed import Event, KlineFeed, StreamKey, parse_zone
from klinesync.sim.generator import generated_tapes
from klinesync.sim.recorded import RecordedTape
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Market, Row, rows_of
from support.thorough import examples

NOW_S = 1_780_012_800 + 3 * 86_400 + 17 * 60
KEYS = [
    StreamKey("spot", "btcusdt@kline_1m"),
    StreamKey("spot", "trxusdt@kline_1m"),
    StreamKey("spot", "ethusdt@kline_5m"),
    StreamKey("spot", "ethusdt@kline_1h@+08:00"),
    StreamKey("futures", "btcusdt@kline_1m"),
    StreamKey("futures", "trxusdt@kline_1m"),
    StreamKey("futures", "trxusdt@kline_5m"),
    StreamKey("futures", "ethusdt_perpetual@continuousKline_3m"),
]


def generated() -> SimExchange:
    first_s = NOW_S - 3 * 86_400
    return make_exchange(
        [*generated_tapes("spot", 8, 1, first_s), *generated_tapes("futures", 8, 1, first_s)], 1, 0, "generator"
    )


def check_stream(key: StreamKey, exchange: SimExchange, events: list[Event], from_ms: int, to_ms: int) -> None:
    """One stream's events: closes complete and in order, updates between them growing towards their candle."""
    grid, listing = events[0].stream.grid, events[0].stream.listing
    closes = [event.row for event in events if event.closed]
    truth = listing.candles(grid, grid.floor(from_ms // 1000), grid.next(grid.floor(to_ms // 1000)), to_ms + 10**10)
    ended = [
        row
        for row in truth.rows()
        if (key.market == "spot" or row.trades) and grid.next(row.time) * 1000 + 2006 <= to_ms
    ]
    assert closes[: len(ended)] == ended
    previous: Event | None = None
    for event in events:
        if previous is not None:
            assert event.sent_ms >= previous.sent_ms
            if previous.closed:
                assert event.row.time > previous.row.time
            else:
                assert event.row.time == previous.row.time
                assert event.row.high >= previous.row.high
                assert event.row.low <= previous.row.low
                assert event.row.volume >= previous.row.volume
                assert event.closed or event.row.trades > previous.row.trades
        end_ms = grid.next(event.row.time) * 1000
        assert event.sent_ms > end_ms if event.closed else event.sent_ms < end_ms
        previous = event


@settings(max_examples=examples(30), deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 3000), st.integers(1, 200_000), st.integers(1, 5_000_000)), max_size=40),
    st.integers(1, 40),
)
def test_every_close_is_sent_once_and_in_order_however_the_clock_jumps(steps_ms: list[int], limit: int) -> None:
    exchange = generated()
    feed = KlineFeed(exchange)
    now_ms = from_ms = NOW_S * 1000 + 30_321
    for key in KEYS:
        assert feed.subscribe(key, now_ms) is not None
    events: defaultdict[StreamKey, list[Event]] = defaultdict(list)
    for step_ms in steps_ms:
        now_ms += step_ms
        while (due_ms := feed.next_due_ms()) is not None and due_ms <= now_ms:
            for event in feed.collect(now_ms, limit):
                events[event.stream.key].append(event)
    for key, of_stream in events.items():
        check_stream(key, exchange, of_stream, from_ms, now_ms)
    if now_ms - from_ms > 4 * 3_600_000:
        assert set(events) == set(KEYS)


@pytest.mark.parametrize("cadence_ms", [100, 60_000])
def test_another_cadence_of_spot_streams_is_kept(cadence_ms: int) -> None:
    feed = KlineFeed(generated(), spot_cadence_ms=cadence_ms)
    now_ms = NOW_S * 1000 + 30_321
    feed.subscribe(KEYS[0], now_ms)
    updates: list[int] = []
    while (due_ms := feed.next_due_ms()) is not None and due_ms <= now_ms + 600_000:
        updates += [event.sent_ms for event in feed.collect(due_ms, 1000) if not event.closed]
    pauses = [later - earlier for earlier, later in itertools.pairwise(updates)]
    assert min(pauses) >= cadence_ms
    assert min(pauses) < 2 * cadence_ms


def test_a_stream_that_is_watched_closely_keeps_its_cadence_and_its_timing() -> None:
    exchange = generated()
    feed = KlineFeed(exchange)
    now_ms = NOW_S * 1000 + 30_321
    for key in KEYS:
        feed.subscribe(key, now_ms)
    events: defaultdict[StreamKey, list[Event]] = defaultdict(list)
    while (due_ms := feed.next_due_ms()) is not None and due_ms <= now_ms + 1_800_000:
        for event in feed.collect(due_ms, 1000):
            events[event.stream.key].append(event)
    for key, of_stream in events.items():
        check_stream(key, exchange, of_stream, now_ms, now_ms + 1_800_000)
        cadence_ms = 2000 if key.market == "spot" else 250
        updates = [event.sent_ms for event in of_stream if not event.closed]
        assert all(later - earlier >= cadence_ms for earlier, later in itertools.pairwise(updates))
        grid, listing = of_stream[0].stream.grid, of_stream[0].stream.listing
        for event in of_stream:
            if not event.closed:
                continue
            end_s = grid.next(event.row.time)
            delay_ms = event.sent_ms - end_s * 1000
            if key.market == "spot":
                assert 2 <= delay_ms <= 120
                continue
            first_ms = listing.first_trade_ms(end_s)
            if first_ms is None or first_ms > 2005:
                assert delay_ms in (2004, 2005)
            elif first_ms <= 196:
                assert 200 <= delay_ms <= 800
            else:
                assert first_ms <= delay_ms <= 2005
    quiet = events[StreamKey("futures", "trxusdt@kline_1m")]
    assert all(event.row.trades for event in quiet), "futures send nothing for a minute without trades"
    idle = events[StreamKey("spot", "trxusdt@kline_1m")]
    assert any(event.closed and event.row.trades == 0 for event in idle), "spot sends untraded closes"
    assert any(not event.closed and event.row.trades == 0 for event in idle)


def minute(time: int, market_trades: int) -> Row:
    traded = market_trades > 0
    volume = 1.0 * traded
    return Row(time, 10.0, 10.0, 10.0, 10.0, volume, 10 * volume, market_trades, 0.0, 0.0, 1)


def recorded(market: Market, rows: list[Row]) -> SimExchange:
    symbol = Symbol(market, "XYZUSDT", "XYZ", "USDT", 2, 5)
    return make_exchange([(symbol, RecordedTape(rows_of(rows), 0))], 1, 0, "recorded")


def closes(feed: KlineFeed, to_ms: int) -> list[int]:
    found: list[int] = []
    while (due_ms := feed.next_due_ms()) is not None and due_ms <= to_ms:
        found.extend(event.row.time for event in feed.collect(due_ms, 10) if event.closed)
    return found


def test_a_newcomer_after_the_end_of_a_candle_still_gets_its_late_close() -> None:
    exchange = recorded("futures", [minute(0, 3), minute(60, 0), minute(120, 1)])
    feed = KlineFeed(exchange)
    feed.subscribe(StreamKey("futures", "xyzusdt@kline_1m"), 61_000)
    assert closes(feed, 300_000) == [0, 120]


def test_futures_closes_without_trades_are_a_switch() -> None:
    exchange = recorded("futures", [minute(0, 3), minute(60, 0), minute(120, 1)])
    feed = KlineFeed(exchange, quiet_futures=False)
    feed.subscribe(StreamKey("futures", "xyzusdt@kline_1m"), 1000)
    assert closes(feed, 300_000) == [0, 60, 120]


def test_missing_minutes_are_not_sent_and_the_end_of_the_tape_is_silence() -> None:
    rows = [minute(0, 3), minute(60, 0), minute(300, 2)]
    feed = KlineFeed(recorded("spot", rows))
    feed.subscribe(StreamKey("spot", "xyzusdt@kline_1m"), 1000)
    feed.subscribe(StreamKey("spot", "xyzusdt@kline_3m"), 1000)
    assert sorted(closes(feed, 10**9)) == [0, 0, 60, 180, 300]
    assert feed.next_due_ms() is None


def test_a_newcomer_gets_no_picture_of_the_candle_but_its_next_change() -> None:
    exchange = recorded("spot", [minute(0, 1), minute(60, 0), minute(120, 3)])
    feed = KlineFeed(exchange)
    feed.subscribe(StreamKey("spot", "xyzusdt@kline_3m"), 61_000)
    events: list[Event] = []
    while not events and (due_ms := feed.next_due_ms()) is not None:
        events = feed.collect(due_ms, 10)
    assert events[0].sent_ms > 120_000
    assert events[0].row.trades > 1


def test_a_stream_left_by_everybody_costs_nothing_more() -> None:
    feed = KlineFeed(generated())
    for key in KEYS:
        feed.subscribe(key, NOW_S * 1000)
    for key in KEYS:
        feed.unsubscribe(key)
    assert feed.collect(NOW_S * 1000 + 10**8, 10**6) == []
    assert feed.next_due_ms() is None


def test_names_that_the_exchange_does_not_have_are_no_streams() -> None:
    feed = KlineFeed(generated())
    nowhere: tuple[tuple[Market, str], ...] = (
        ("spot", "nope@kline_1m"),
        ("spot", "BTCUSDT@kline_1m"),
        ("spot", "btcusdt@kline_7m"),
        ("spot", "btcusdt@trade"),
        ("spot", "btcusdt_perpetual@continuousKline_1m"),
        ("futures", "btcusdt@kline_1m@+08:00"),
        ("spot", "0"),
        ("spot", "btcusdt@kline_1m@+15:00"),
        ("spot", "btcusdt@kline_1M@"),
        ("futures", "btcusdt_current_quarter@continuousKline_1m"),
    )
    for market, name in nowhere:
        assert feed.subscribe(StreamKey(market, name), NOW_S * 1000) is None


def test_zones_are_read_between_minus_12_and_plus_14() -> None:
    assert parse_zone("+08:00") == 28_800
    assert parse_zone("-03:30") == -12_600
    assert parse_zone("+14:00") == 50_400
    assert [parse_zone(text) for text in ("+14:01", "-12:01", "08:00", "+8", "+01:75")] == [None] * 5
