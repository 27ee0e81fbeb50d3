from __future__ import annotations

from collections.abc import Iterable

from klinesync.sim.faults import RateLimit, RestError, RestSlow, RestStale, Rule
from klinesync.sim.limits import Refusal
from klinesync.sim.rest_faults import Failure, RestFaults, Shown
from klinesync.sim.tape import Market

NOW_MS = 1_780_315_217_000  # 17 seconds into a minute


def statuses(faults: RestFaults, times_ms: Iterable[int], market: Market = "spot") -> list[int]:
    """The statuses of requests for the time at those moments."""
    found: list[int] = []
    for now_ms in times_ms:
        refusal = faults.refuse(market, "time", {}, now_ms)
        found.append(200 if refusal is None else refusal.status)
    return found


def test_a_rate_limit_is_a_script_that_each_market_goes_through_by_itself() -> None:
    faults = RestFaults()
    faults.limit(Rule(1, RateLimit(after=2, count=1, ban_s=10)))
    times_ms = [NOW_MS] * 4 + [NOW_MS + 9_999, NOW_MS + 10_000, NOW_MS + 10_001]
    assert statuses(faults, times_ms) == [200, 200, 429, 418, 418, 200, 200]
    assert statuses(faults, [NOW_MS + 20_000] * 3, "futures") == [200, 200, 429]


def test_without_a_ban_a_rate_limit_is_over_after_its_429s() -> None:
    faults = RestFaults()
    faults.limit(Rule(1, RateLimit(count=2)))
    assert statuses(faults, [NOW_MS] * 4) == [429, 429, 200, 200]


def test_a_429_names_the_rest_of_the_minute_unless_it_is_told_otherwise() -> None:
    faults = RestFaults()
    faults.limit(Rule(1, RateLimit()))
    faults.limit(Rule(2, RateLimit(retry_after_s=0)))
    first, second = (faults.refuse("spot", "ping", {}, NOW_MS) for _ in range(2))
    assert isinstance(first, Refusal)
    assert isinstance(second, Refusal)
    assert (first.retry_after_s, second.retry_after_s) == (43, 0)


def test_a_ban_names_the_seconds_that_are_left_of_it() -> None:
    faults = RestFaults()
    faults.limit(Rule(1, RateLimit(ban_s=10)))
    faults.refuse("spot", "ping", {}, NOW_MS)
    waits = [faults.refuse("spot", "ping", {}, NOW_MS + at_ms) for at_ms in (0, 1, 8_999, 9_001)]
    assert [wait.retry_after_s for wait in waits if isinstance(wait, Refusal)] == [10, 10, 2, 1]


def test_a_fault_about_symbols_is_for_the_requests_that_name_one_of_them() -> None:
    faults = RestFaults()
    faults.fail(Rule(1, RestError(status=503, symbols=("ETHUSDT", "BNBUSDT"))))
    asked: list[tuple[Market, dict[str, str], bool]] = [
        ("spot", {"symbol": "ETHUSDT"}, True),
        ("spot", {"symbol": "BTCUSDT"}, False),
        ("spot", {"symbol": "ethusdt"}, False),
        ("futures", {"symbol": "ethusdt"}, True),
        ("futures", {"pair": "BNBUSDT"}, True),
        ("spot", {"symbols": '["BTCUSDT","BNBUSDT"]'}, True),
        ("spot", {"symbols": "[BNBUSDT"}, False),
        ("spot", {}, False),
    ]
    for market, params, fails in asked:
        expected = Failure(503) if fails else None
        assert faults.refuse(market, "ticker/24hr", params, NOW_MS) == expected, params


def test_errors_and_slowness_end_with_their_count_and_keep_to_their_paths() -> None:
    faults = RestFaults()
    error, slow = Rule(1, RestError(count=1, paths=("klines",))), Rule(2, RestSlow(count=1, paths=("time",)))
    faults.fail(error)
    faults.slow(slow)
    assert faults.refuse("spot", "time", {}, NOW_MS) is None
    assert faults.refuse("spot", "klines", {}, NOW_MS) == Failure(500)
    assert faults.refuse("spot", "klines", {}, NOW_MS) is None
    assert faults.delay("spot", "klines", {}) is None
    assert [faults.delay("spot", "time", {}) for _ in range(2)] == [slow, None]
    assert (error.seen, slow.seen) == (1, 1)


def test_klines_are_shown_of_the_moment_that_the_fault_says() -> None:
    faults = RestFaults()
    faults.lag(Rule(1, RestStale(delay_s=90.5, market="spot", open_row=False)))
    assert faults.shown("spot", {"symbol": "BTCUSDT"}, NOW_MS) == Shown(NOW_MS - 90_500, open_row=False)
    assert faults.shown("futures", {"symbol": "BTCUSDT"}, NOW_MS) is None


def test_what_is_lifted_does_nothing_and_leaves_the_others() -> None:
    faults = RestFaults()
    slow = Rule(3, RestSlow())
    faults.fail(Rule(1, RestError()))
    faults.limit(Rule(2, RateLimit()))
    faults.slow(slow)
    faults.lag(Rule(4, RestStale()))
    assert faults.is_slow(slow)
    for fault_id in (2, 3, 4):
        faults.remove(fault_id)
    assert faults.refuse("spot", "ping", {}, NOW_MS) == Failure(500)
    assert not faults.is_slow(slow)
    assert faults.shown("spot", {}, NOW_MS) is None
    assert faults.active
    faults.remove(1)
    assert not faults.active
