from __future__ import annotations

from klinesync.sim.heartbeat import Heartbeat
from klinesync.sim.limits import MessageLimit, WeightLimit

NOON_MS = 1_780_315_200_000


def test_weight_is_counted_by_the_clock_minute_and_by_address() -> None:
    limit = WeightLimit("futures")
    assert limit.charge("a", 2400, NOON_MS + 59_000) is None
    assert limit.used("a", NOON_MS + 59_999) == 2400
    assert limit.used("b", NOON_MS + 59_999) == 0
    assert limit.used("a", NOON_MS + 60_000) == 0
    assert limit.charge("a", 5, NOON_MS + 60_000) is None
    assert limit.charge("b", 7, NOON_MS + 60_000) is None
    assert limit.total(NOON_MS + 60_000) == 12


def test_too_much_weight_is_429_until_the_minute_ends() -> None:
    limit = WeightLimit("spot")
    assert limit.charge("a", 6000, NOON_MS + 10_000) is None
    refusal = limit.charge("a", 1, NOON_MS + 10_000)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_s) == (429, 50)
    assert refusal.message == (
        "Too much request weight used; current limit is 6000 request weight per 1 MINUTE. "
        "Please use WebSocket Streams for live updates to avoid polling the API."
    )
    assert limit.charge("b", 1, NOON_MS + 10_000) is None
    assert limit.charge("a", 1, NOON_MS + 60_000) is None


def test_going_on_after_429_is_a_ban_and_the_next_one_is_longer() -> None:
    limit = WeightLimit("spot")
    now_ms = NOON_MS
    lengths: list[int] = []
    for _ in range(3):
        refusal = None
        while refusal is None or refusal.status == 429:
            refusal = limit.charge("a", 1000, now_ms)
        assert refusal.status == 418
        assert f"IP banned until {now_ms + refusal.retry_after_s * 1000}." in refusal.message
        lengths.append(refusal.retry_after_s)
        still = limit.charge("a", 1, now_ms + refusal.retry_after_s * 1000 - 1)
        assert still is not None
        assert (still.status, still.retry_after_s) == (418, 1)
        now_ms += refusal.retry_after_s * 1000
        assert limit.charge("a", 1, now_ms) is None
    assert lengths == [120, 240, 480]


def test_so_many_messages_a_second_and_not_one_more() -> None:
    limit = MessageLimit(5)
    assert [limit.count(100.0 + at / 10) for at in range(6)] == [True] * 5 + [False]
    limit = MessageLimit(5)
    assert all(limit.count(100.0 + at / 2) for at in range(40))


def test_a_ping_goes_out_every_twenty_seconds_on_spot_and_three_minutes_on_futures() -> None:
    spot, futures = Heartbeat("spot", 0.0), Heartbeat("futures", 0.0)
    assert spot.ping(19.9, b"1") is None
    assert spot.ping(20.0, b"1") == b"1"
    assert spot.ping(39.9, b"2") is None
    assert spot.ping(40.0, b"2") == b"2"
    assert futures.ping(179.9, b"1") is None
    assert futures.ping(180.0, b"1") == b"1"


def test_only_an_answer_to_a_ping_keeps_a_connection_alive() -> None:
    heartbeat = Heartbeat("spot", 0.0)
    for at in (20, 40, 60, 80):
        assert heartbeat.ping(at, str(at).encode()) is not None
    assert not heartbeat.pong(b"unasked")
    assert not heartbeat.is_dead(80.0)
    assert heartbeat.is_dead(80.1)
    assert heartbeat.pong(b"60")
    assert not heartbeat.is_dead(200.0)


def test_a_client_that_never_answers_is_dead_a_minute_or_ten_after_the_ping() -> None:
    futures = Heartbeat("futures", 0.0)
    futures.ping(180.0, b"x")
    assert not futures.is_dead(780.0)
    assert futures.is_dead(780.1)
