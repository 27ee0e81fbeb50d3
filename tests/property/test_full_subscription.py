"""Subscriptions with and without order flow, over the same commits of a store.

A client without order flow gets byte for byte the messages of a store without order flow. A client with order flow gets
the same candles, and no message for an enrichment.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Applied, Candle, agree
from klinesync.core.series_id import SeriesId
from klinesync.market_data.read_services import CandleReader, CatchUp
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.ws.frames import payload_of
from klinesync.ws.session import Announcement, Subscription
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
Flow = tuple[float | None, int | None, float | None, float | None]
NONE: Flow = (None, None, None, None)
FLOWS: tuple[Flow, ...] = (NONE, NONE, (8.0, 3, 1.0, 4.0), (8.0, 5, 1.0, 4.0), (8.0, None, 1.0, None))
Entry = tuple[int, int, Flow]
COMMIT = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 1), st.sampled_from(FLOWS)),
    min_size=1,
    max_size=4,
    unique_by=lambda entry: entry[0],
)


def candle(entry: Entry) -> Candle:
    minute, value, flow = entry
    return Candle(60 * minute, 1.0, 2.0, 0.5, 1.0 + value / 2, 8.0, *flow)


async def knows(_: SeriesId) -> bool:
    return True


class Follower:
    """One subscription of a store, and the frames that it was sent."""

    def __init__(self, since: int | None, *, batches: bool, full: bool) -> None:
        self.since = since
        self.full = full
        self.subscription = Subscription(BTC, since, supports_batch=batches, full=full)
        self.frames: list[bytes] = []

    def take(self, applied: Applied) -> None:
        if applied.told:
            self.frames += self.subscription.announce(Announcement(applied, full=self.full))

    def catch_up(self, read: CatchUp) -> None:
        self.frames += self.subscription.caught_up(read.rows, read.first, read.newer, read.commit, read.gaps)


@dataclass(frozen=True)
class Times:
    """When followers attach, when their catch-up is read, and when it is sent: each before the commit of this number.
    Commits published in between are held."""

    attach: int
    read: int
    send: int


async def follow(path: Path, commits: list[list[Candle]], times: Times, followers: list[Follower]) -> list[Candle]:
    """Write the commits to a new store, with these followers, which have one `since`. Returns the final content of the
    store."""
    async with SqliteDatabase(path) as database:
        reader = CandleReader(database, knows)
        for number in range(len(commits) + 1):
            if number == times.read:
                read = await reader.catch_up(BTC, followers[0].since)
            if number == times.send:
                for follower in followers:
                    follower.catch_up(read)
            if number < len(commits):
                rows = commits[number]

                def write(store: CandleStore, rows: list[Candle] = rows) -> Applied:
                    return store.write(BTC, rows, Origin("test", 0))

                applied = await database.write(write)
                for follower in followers:
                    if number >= times.attach:
                        follower.take(applied)
        return await database.read(lambda store: store.newest(BTC, 100))


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    commits=[[(2, 0, NONE)], [(2, 0, (8.0, 3, 1.0, 4.0))], [(2, 0, (8.0, 5, 1.0, 4.0))]],
    attach=0,
    held=(0, 0),
    since=None,
    batches=False,
)
@given(
    commits=st.lists(COMMIT, min_size=1, max_size=7),
    attach=st.integers(0, 4),
    held=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    since=st.none() | st.integers(0, 8).map(lambda minute: minute * 60),
    batches=st.booleans(),
)
async def test_clients_with_and_without_order_flow_see_the_same_candles(
    tmp_path_factory: Any,
    commits: list[list[Entry]],
    attach: int,
    held: tuple[int, int],
    since: int | None,
    batches: bool,
) -> None:
    folder: Path = tmp_path_factory.mktemp("stores")
    times = Times(*(min(time, len(commits)) for time in (attach, attach + held[0], attach + sum(held))))
    full = Follower(since, batches=batches, full=True)
    short, expected = (Follower(since, batches=batches, full=False) for _ in range(2))
    rows = [[candle(entry) for entry in commit] for commit in commits]
    stored = await follow(folder / "nine.sqlite", rows, times, [full, short])
    six = [[Candle(*row.ohlcv) for row in commit] for commit in rows]
    await follow(folder / "six.sqlite", six, times, [expected])
    assert short.frames == expected.frames, "what a client without order flow gets today"
    seen: dict[int, Candle] = {}
    for frame in full.frames:
        message = json.loads(payload_of(frame))
        for item in message.get("candles") or [message[name] for name in ("candle",) if name in message]:
            shown = Candle(**{"time": item.pop("candle_time")} | item)
            sent = seen.get(shown.time)
            # Order flow may be filled in, which is not sent, and revised then, which is.
            stored_before = [row for commit in rows for row in commit if row.time == shown.time]
            revised = any(not agree(row, shown) for row in stored_before)
            assert sent is None or not agree(sent, shown) or revised, "an enrichment, or sent again"
            seen[shown.time] = shown
    known = {row.time: row for row in stored}
    assert all(agree(shown, known[time]) for time, shown in seen.items()), "the picture is what is stored"
    if since is not None and seen:
        assert {time for time in known if time > since and time > min(seen)} <= seen.keys(), "no candle is left out"


@pytest.mark.parametrize(
    ("first", "last", "full", "sent"),
    [
        (FLOWS[2], FLOWS[3], False, 1),
        (FLOWS[2], FLOWS[3], True, 2),
        (NONE, FLOWS[2], True, 1),  # an enrichment
        (FLOWS[2], FLOWS[2], True, 1),
    ],
)
def test_values_that_return_before_the_catch_up_is_sent_are_not_sent_again(
    first: Flow, last: Flow, full: bool, sent: int
) -> None:
    subscription = Subscription(BTC, 0, supports_batch=False, full=full)
    values = [(1, 0, first), (1, 1, NONE), (1, 0, last)]
    for commit, entry in enumerate(values, 1):
        revised = frozenset({60} if commit > 1 else ())
        subscription.announce(Announcement(Applied(BTC, (candle(entry),), revised, commit=commit), full=full))
    assert len(subscription.caught_up([], None, 0, 0)) == sent


def test_each_kind_of_subscriber_shares_its_frames() -> None:
    rows = tuple(candle((minute, 0, FLOWS[2])) for minute in (1, 2))
    announcements = {full: Announcement(Applied(BTC, rows, frozenset()), full=full) for full in (False, True)}
    sent: dict[bool, list[list[bytes]]] = {}
    for full, announcement in announcements.items():
        subscriptions = [Subscription(BTC, None, supports_batch=True, full=full) for _ in range(2)]
        for subscription in subscriptions:
            subscription.caught_up([], 0, 0, 0)
            subscription.announce(Announcement(Applied(BTC, (candle((0, 0, NONE)),), frozenset()), full=full))
        sent[full] = [subscription.announce(announcement) for subscription in subscriptions]
        assert sent[full][0][0] is sent[full][1][0]
    assert sent[False][0] != sent[True][0]
