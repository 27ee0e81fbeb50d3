"""Subscription against a model: for any commits while a client attaches, catches up and follows, the client's stream is
strictly increasing and complete from `since` on, with every jump declared, and finally equals the store."""

import json
from dataclasses import dataclass, field
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.ws.frames import payload_of
from klinesync.ws.session import CATCH_UP_MAX_CANDLES, Announcement, Subscription

# Changes that are never published.
ROUNDING = 1e-12
SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")


def candle(minute: int, version: float = 0) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, 1.0, float(version))


@dataclass
class Store:
    """The model of the store: commits, and reads of a catch-up."""

    rows: dict[int, Candle] = field(default_factory=dict)
    commits: int = 0

    def commit(self, candles: list[Candle]) -> Announcement | None:
        head = max(self.rows, default=None)
        self.commits += 1
        changed = [one for one in candles if self.rows.get(one.time) != one]
        before = {one.time: self.rows[one.time].volume for one in changed if one.time in self.rows}
        self.rows.update((one.time, one) for one in changed)
        if not changed:
            return None
        behind = frozenset(one.time for one in changed if head is not None and one.time <= head)
        rounded = frozenset(time for time, was in before.items() if isclose(was, self.rows[time].volume)) & behind
        applied = Applied(SERIES, tuple(sorted(changed)), behind - rounded, commit=self.commits, rounded=rounded)
        return Announcement(applied) if applied.told else None

    def catch_up(self, since: int) -> tuple[list[Candle], int | None, int, int]:
        newer = [self.rows[time] for time in sorted(self.rows) if time > since]
        return newer[-CATCH_UP_MAX_CANDLES:], min(self.rows, default=None), len(newer), self.commits


@dataclass
class Viewer:
    """A client: checks its stream, and keeps the candles that it has."""

    last: int | None
    first: int | None = None
    picture: dict[int, float] = field(default_factory=dict)
    before: frozenset[int] = frozenset()
    gaps: list[tuple[int, int]] = field(default_factory=list)
    # No candle that opens before this time is ever sent; None: not known yet.
    oldest: int | None = None
    extended_to: int | None = None

    def see(self, frames: list[bytes], *, batches: bool) -> None:
        for frame in frames:
            message = json.loads(payload_of(frame))
            match message["type"]:
                case "gap":
                    self.gaps.append((message["expected_next_time"], message["actual_time"]))
                case "candles_batch":
                    assert batches
                    assert len(message["candles"]) > 1
                    for item in message["candles"]:
                        if message.get("revised"):
                            self.correct(item)
                        else:
                            self.take(item)
                case "system":
                    assert message["event"] == "history.extended"
                    self.extended_to = message["data"]["first_time"]
                case "candle_closed" if message.get("revised"):
                    self.correct(message["candle"])
                case "candle_closed":
                    self.take(message["candle"])
        assert not self.gaps, "every gap was followed by its candle"

    def correct(self, item: dict[str, float]) -> None:
        time, value = int(item["candle_time"]), item["volume"]
        assert self.last is None or time <= self.last
        assert self.oldest is None or time >= self.oldest, "from before all that was stored"
        # The service cannot know which candles the client had before.
        assert time in self.before or self.picture.get(time) != value, "sent again"
        self.picture[time] = value

    def take(self, item: dict[str, float]) -> None:
        time = int(item["candle_time"])
        self.oldest = time if self.oldest is None else self.oldest
        assert time >= self.oldest
        if self.last is not None:
            assert time > self.last
            if time != self.last + 60:
                assert self.gaps.pop(0) == (self.last + 60, time)
        self.first = time if self.first is None else self.first
        self.last = time
        self.picture[time] = item["volume"]


COMMITS = st.lists(
    st.lists(st.tuples(st.integers(1, 25), st.sampled_from([0, 1, 2, 2 + ROUNDING])), min_size=1, max_size=4),
    min_size=0,
    max_size=6,
)


def commit(store: Store, entries: list[tuple[int, float]]) -> Announcement | None:
    return store.commit([candle(minute, version) for minute, version in sorted(dict(entries).items())])


@given(
    before=COMMITS,
    held_before_read=COMMITS,
    held_after_read=COMMITS,
    live=COMMITS,
    since=st.integers(0, 30),
    batches=st.booleans(),
)
def test_a_client_with_since_ends_with_the_stored_candles(
    before: list[list[tuple[int, float]]],
    held_before_read: list[list[tuple[int, float]]],
    held_after_read: list[list[tuple[int, float]]],
    live: list[list[tuple[int, float]]],
    since: int,
    batches: bool,
) -> None:
    store = Store()
    for entries in before:
        commit(store, entries)
    known = {time: one.volume for time, one in store.rows.items() if time <= since * 60}
    subscription = Subscription(SERIES, since * 60, supports_batch=batches)

    for entries in held_before_read:
        announcement = commit(store, entries)
        assert announcement is None or subscription.announce(announcement) == []
    catch_up = store.catch_up(since * 60)
    first_at_read = catch_up[1]
    for entries in held_after_read:
        announcement = commit(store, entries)
        assert announcement is None or subscription.announce(announcement) == []

    # A since before the first stored candle counts as the time just before that one.
    last = None if first_at_read is None else max(since * 60, first_at_read - 60)
    viewer = Viewer(last, picture=known, before=frozenset(known), oldest=first_at_read)
    viewer.see(subscription.caught_up(*catch_up), batches=batches)
    for entries in live:
        announcement = commit(store, entries)
        if announcement is not None:
            viewer.see(subscription.announce(announcement), batches=batches)
    # The client's `since` claims that it has all candles up to then, also those first stored later.
    oldest = min(store.rows, default=0) if viewer.oldest is None else viewer.oldest
    owed = {time for time in store.rows if (time > since * 60 or time in known) and time >= oldest}
    older = min((time for time in store.rows if time < oldest), default=None)
    # A candle before the first one sent, and up to `since`, is not older history: the client claims to have it.
    has = first_at_read is None and older is not None and older <= since * 60
    assert has or viewer.extended_to == older, "what is older is told of, and paged"
    assert {time: viewer.picture.get(time) for time in owed} == pytest.approx(
        {time: store.rows[time].volume for time in owed}, rel=2 * ROUNDING
    )


@given(before=COMMITS, held=COMMITS, live=COMMITS)
def test_a_client_without_since_gets_only_candles_after_its_subscription(
    before: list[list[tuple[int, float]]], held: list[list[tuple[int, float]]], live: list[list[tuple[int, float]]]
) -> None:
    store = Store()
    for entries in before:
        commit(store, entries)
    head = max(store.rows, default=0)
    subscription = Subscription(SERIES, None, supports_batch=False)
    for entries in held:
        announcement = commit(store, entries)
        assert announcement is None or subscription.announce(announcement) == []
    viewer = Viewer(None)
    viewer.see(subscription.caught_up([], None, 0, store.commits), batches=False)
    for entries in live:
        announcement = commit(store, entries)
        if announcement is not None:
            viewer.see(subscription.announce(announcement), batches=False)
    assert viewer.first is None or viewer.first > head
    newest = max(store.rows, default=0)
    assert viewer.last == (newest if newest > head else viewer.last)


def test_a_long_catch_up_is_truncated_to_the_newest_candles_with_a_gap() -> None:
    store = Store()
    store.commit([candle(minute) for minute in range(1, CATCH_UP_MAX_CANDLES + 11)])
    subscription = Subscription(SERIES, 0, supports_batch=True)
    gap, batch = (json.loads(payload_of(frame)) for frame in subscription.caught_up(*store.catch_up(0)))
    assert gap["reason"] == "truncated"
    assert (gap["expected_next_time"], gap["actual_time"]) == (60, 11 * 60)
    assert [item["candle_time"] for item in batch["candles"]] == [
        minute * 60 for minute in range(11, CATCH_UP_MAX_CANDLES + 11)
    ]


def test_held_candles_before_a_truncated_catch_up_are_truncated_too() -> None:
    store = Store()
    subscription = Subscription(SERIES, 0, supports_batch=False)
    for start in range(1, CATCH_UP_MAX_CANDLES + 500, 500):
        announcement = store.commit([candle(minute) for minute in range(start, start + 500)])
        assert announcement is not None
        subscription.announce(announcement)
    messages = [json.loads(payload_of(frame)) for frame in subscription.caught_up(*store.catch_up(0))]
    times = [message["candle"]["candle_time"] for message in messages if message["type"] == "candle_closed"]
    assert times == sorted(times)
    assert [message["type"] for message in messages].count("gap") == 1


def test_all_up_to_date_subscribers_get_the_same_bytes() -> None:
    store = Store()
    store.commit([candle(1)])
    texts = []
    for _ in range(2):
        subscription = Subscription(SERIES, 60, supports_batch=True)
        subscription.caught_up(*store.catch_up(60))
        texts.append(subscription)
    announcement = store.commit([candle(2), candle(3)])
    assert announcement is not None
    first, second = (subscription.announce(announcement)[0] for subscription in texts)
    assert first is second


@pytest.mark.parametrize("batches", [True, False])
def test_older_history_is_announced_and_not_sent(batches: bool) -> None:
    store = Store()
    store.commit([candle(minute) for minute in range(1000, 1010)])
    subscription = Subscription(SERIES, 1004 * 60, supports_batch=batches)
    subscription.caught_up(*store.catch_up(1004 * 60))
    announcement = store.commit([candle(minute) for minute in range(500, 1000)])
    assert announcement is not None
    (frame,) = subscription.announce(announcement)
    message = json.loads(payload_of(frame))
    assert (message["type"], message["event"]) == ("system", "history.extended")
    assert message["data"] == {"first_time": 500 * 60}
    announcement = store.commit([candle(minute) for minute in range(700, 701)])
    assert announcement is None
    announcement = store.commit([candle(700, 2), candle(1009, 2)])
    assert announcement is not None
    extended, revised = (json.loads(payload_of(one)) for one in subscription.announce(announcement))
    assert extended["data"] == {"first_time": 500 * 60}
    assert (revised["revised"], revised["candle"]["candle_time"]) == (True, 1009 * 60)


def test_several_corrections_at_once_are_one_batch_and_the_same_bytes_for_all() -> None:
    store = Store()
    store.commit([candle(minute) for minute in range(1, 10)])
    subscriptions = []
    for batches in (True, True, False):
        subscription = Subscription(SERIES, 0, supports_batch=batches)
        subscription.caught_up(*store.catch_up(0))
        subscriptions.append(subscription)
    announcement = store.commit([candle(2, 1), candle(5, 1), candle(6, 1)])
    assert announcement is not None
    first, second, singles = (subscription.announce(announcement) for subscription in subscriptions)
    (batch,) = first
    assert batch is second[0]
    message = json.loads(payload_of(batch))
    assert (message["type"], message["revised"]) == ("candles_batch", True)
    assert [item["candle_time"] for item in message["candles"]] == [120, 300, 360]
    assert [json.loads(payload_of(single))["candle"]["candle_time"] for single in singles] == [120, 300, 360]


@pytest.mark.parametrize(
    "what", [{"closed"}, {"forming"}, {"corrections"}, {"closed", "forming"}, {"forming", "corrections"}]
)
def test_a_subscription_gets_only_the_selected_kinds(what: set[str]) -> None:
    store = Store()
    store.commit([candle(1), candle(2), candle(4)])
    subscription = Subscription(SERIES, 0, supports_batch=False, what=frozenset(what))
    frames = subscription.caught_up(*store.catch_up(0))
    for change in ([candle(5)], [candle(2, 1)], [candle(7)]):
        announcement = store.commit(change)
        assert announcement is not None
        frames += subscription.announce(announcement)
    messages = [json.loads(payload_of(frame)) for frame in frames]
    closed = [
        message["candle"]["candle_time"]
        for message in messages
        if message["type"] == "candle_closed"
        if "revised" not in message
    ]
    assert closed == ([60, 120, 240, 300, 420] if "closed" in what else [])
    assert [message["actual_time"] for message in messages if message["type"] == "gap"] == (
        [240, 420] if "closed" in what else []
    )
    assert sum("revised" in message for message in messages) == ("corrections" in what)
    assert subscription.wants_forming(candle(8)) == ("forming" in what)
    assert not subscription.wants_forming(candle(7)), "older than what is closed"


def test_forming_candles_are_sent_while_newer_than_the_closed_ones() -> None:
    subscription = Subscription(SERIES, 60, supports_batch=False)
    subscription.caught_up([candle(2)], 60, 1, 1)
    assert not subscription.wants_forming(candle(2))
    assert subscription.wants_forming(candle(3))


@pytest.mark.parametrize("held", [False, True])
def test_candles_at_the_head_that_were_damaged_at_the_catch_up_are_sent_once_they_are_stored_again(held: bool) -> None:
    store = Store()
    store.commit([candle(minute) for minute in range(1, 11)])
    subscription = Subscription(SERIES, 3 * 60, supports_batch=False)
    viewer = Viewer(3 * 60)
    lacking = ([candle(4), candle(5)], 60, 2, store.commits)  # the candles from 6 on are damaged
    if not held:
        viewer.see(subscription.caught_up(*lacking), batches=False)
    healed = tuple(candle(minute) for minute in range(6, 11))
    applied = Applied(SERIES, healed, frozenset(one.time for one in healed), commit=2)
    viewer.see(subscription.announce(Announcement(applied)), batches=False)
    if held:
        viewer.see(subscription.caught_up(*lacking), batches=False)
    announcement = store.commit([candle(11)])
    assert announcement is not None
    viewer.see(subscription.announce(announcement), batches=False)
    assert sorted(viewer.picture) == list(range(4 * 60, 12 * 60, 60))
