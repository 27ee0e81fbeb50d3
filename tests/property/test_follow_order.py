"""The order of a follower's updates: of one series for any messages, of several series for any order of arrival."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from klinesync.client.merge import MERGE_WAIT_S, Merge
from klinesync.client.messages import (
    BatchMessage,
    CaughtUpMessage,
    ClosedMessage,
    FormingMessage,
    GapMessage,
    SubscribedMessage,
)
from klinesync.client.progress import FollowMessage, Progress
from klinesync.client.tables import WireCandle
from klinesync.client.updates import CaughtUp, ClosedCandle, Connected, Disconnected, FormingCandle, Gap, System, Update
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

SERIES = [SeriesId.parse(f"binance:spot:{asset}/USDT:1m") for asset in ("BTC", "ETH", "SOL")]
BTC = SERIES[0]


def out(time: int) -> WireCandle:
    return WireCandle(time, 1.0, 2.0, 0.5, 1.5, 1.0)


opens = st.integers(1, 40).map(lambda at: 60 * at)
candles = opens.map(out)
messages = st.one_of(
    st.builds(SubscribedMessage, st.none() | opens, st.just("live")),
    st.builds(CaughtUpMessage, st.none() | opens),
    st.builds(ClosedMessage, candles, st.booleans()),
    st.builds(BatchMessage, st.lists(candles, max_size=5), st.booleans()),
    st.builds(FormingMessage, candles),
    st.builds(GapMessage, opens, opens),
)


@given(st.none() | st.integers(0, 3000), st.lists(st.lists(messages, max_size=20), max_size=4))
def test_closed_candles_are_strictly_increasing_after_since_for_any_messages(
    since: int | None, connections: Sequence[Sequence[FollowMessage]]
) -> None:
    progress = Progress(BTC, since)
    newest = floor = since
    for connection in connections:
        assert progress.subscription()["since"] == newest
        seams = 0
        for message in connection:
            if isinstance(message, SubscribedMessage) and progress.ahead(message):
                newest = floor = message.head_time
                progress.subscription()
                continue
            for update in progress.take(message):
                match update:
                    case Connected(head):
                        newest = floor = head if floor is None else floor
                        newest = progress.resume
                    case ClosedCandle(candle, revised=True):
                        assert floor is not None
                        assert candle.time > floor
                    case ClosedCandle(candle):
                        assert newest is None or candle.time > newest
                        floor = candle.time - 1 if floor is None else floor
                        newest = candle.time
                    case FormingCandle(candle):
                        assert newest is None or candle.time > newest
                    case Gap(_, actual):
                        assert newest is None or actual > newest
                    case CaughtUp():
                        seams += 1
            assert progress.resume == newest
        assert seams <= sum(isinstance(message, SubscribedMessage) for message in connection)


class Arrivals:
    """The updates of each series: connected, history, caught up, and a live candle."""

    def __init__(self, histories: Sequence[Sequence[int]], live_from: int) -> None:
        self.live_from = live_from
        self.left: dict[SeriesId, list[Update]] = {}
        for series, times in zip(SERIES, histories, strict=True):
            history = [ClosedCandle(Candle(time, 1, 2, 0.5, 1.5, 1), series=series) for time in sorted(times)]
            live = ClosedCandle(Candle(live_from, 1, 2, 0.5, 1.5, 1), series=series)
            first, seam = Connected(None, "live", series=series), CaughtUp(None, series=series)
            self.left[series] = [first, *history, seam, live]

    def next(self, choice: int) -> Update | None:
        waiting = [series for series in SERIES if self.left[series]]
        return self.left[waiting[choice % len(waiting)]].pop(0) if waiting else None


@given(
    st.lists(st.sets(opens, max_size=12), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=60, max_size=60),
    st.integers(0, 2),
)
def test_history_of_several_series_comes_in_the_order_of_time_and_each_series_in_its_own(
    histories: list[set[int]], choices: list[int], hurry: int
) -> None:
    arrivals = Arrivals([list(times) for times in histories], live_from=60 * 100)
    expected = {series: list(left) for series, left in arrivals.left.items()}
    merge, got = Merge(SERIES), list[Update]()
    for choice in choices:
        update = arrivals.next(choice)
        if update is not None:
            merge.put(update)
        for _ in range(hurry):  # the program may be slow as well
            taken = merge.take()
            got += [taken] if taken is not None else []
    while (taken := merge.take()) is not None:
        got.append(taken)
    for series in SERIES:
        assert [update for update in got if update.series == series] == expected[series]
    closed = [update for update in got if isinstance(update, ClosedCandle)]
    keys = [(update.candle.time, SERIES.index(update.series)) for update in closed if update.candle.time < 6000]
    assert keys == sorted(keys)
    assert [update.candle.time for update in closed] == sorted(update.candle.time for update in closed)


def put(merge: Merge, *updates: Update) -> list[Update]:
    for update in updates:
        merge.put(update)
    got: list[Update] = []
    while (update := merge.take()) is not None:  # type: ignore[assignment]
        got.append(update)
    return got


def closed(series: SeriesId, time: int) -> ClosedCandle:
    return ClosedCandle(Candle(time, 1, 2, 0.5, 1.5, 1), series=series)


def test_after_the_catch_up_live_candles_wait_for_no_series() -> None:
    merge = Merge(SERIES[:2])
    assert len(put(merge, *(CaughtUp(60, series=series) for series in SERIES[:2]))) == 2
    assert put(merge, closed(SERIES[0], 600)) == [closed(SERIES[0], 600)]
    assert put(merge, closed(SERIES[1], 120)) == [closed(SERIES[1], 120)]


def test_other_series_do_not_wait_for_a_disconnected_one() -> None:
    merge = Merge(SERIES[:2])
    assert put(merge, closed(SERIES[0], 60)) == []
    gone = Disconnected("gone", series=SERIES[1])
    assert put(merge, gone) == [gone, closed(SERIES[0], 60)]


def test_other_series_wait_a_bounded_time_for_a_slow_history() -> None:
    merge = Merge(SERIES[:2])
    assert merge.patience_s is None
    assert put(merge, closed(SERIES[0], 60)) == []
    assert merge.patience_s == MERGE_WAIT_S
    merge.waited(MERGE_WAIT_S / 2)
    assert put(merge, closed(SERIES[0], 120)) == []
    merge.waited(MERGE_WAIT_S / 2)
    assert put(merge) == [closed(SERIES[0], 60), closed(SERIES[0], 120)]
    seam = CaughtUp(120, series=SERIES[0])
    assert put(merge, seam, closed(SERIES[1], 60)) == [seam, closed(SERIES[1], 60)]


def test_updates_without_a_time_are_not_held() -> None:
    merge = Merge(SERIES[:2])
    told = System("factor.lagging", "", {}, series=SERIES[0])
    assert put(merge, told, closed(SERIES[0], 60)) == [told]
