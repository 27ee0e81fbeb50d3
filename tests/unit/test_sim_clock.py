from __future__ import annotations

import pytest

from klinesync.sim.clock import BadClock, ExchangeClock


def test_the_clock_runs_at_its_speed_and_a_change_of_speed_does_not_jump() -> None:
    clock = ExchangeClock(1_000_000, 50.0, 60.0)
    assert clock.now_ms(50.0) == 1_000_000
    assert clock.now_ms(51.5) == 1_090_000
    clock.set_speed(0.5, 51.5)
    assert clock.now_ms(51.5) == 1_090_000
    assert clock.now_ms(53.5) == 1_091_000


def test_a_paused_clock_stands_and_can_still_be_advanced() -> None:
    clock = ExchangeClock(0, 0.0, 1.0)
    clock.pause(True, 2.0)
    assert clock.paused
    assert clock.now_ms(100.0) == 2000
    assert clock.mono_s_at(3000) is None
    clock.advance(60, 100.0)
    assert clock.now_ms(200.0) == 62_000
    clock.pause(False, 200.0)
    assert clock.now_ms(201.0) == 63_000


def test_it_tells_when_it_will_show_a_time() -> None:
    clock = ExchangeClock(10_000, 5.0, 20.0)
    mono_s = clock.mono_s_at(70_000)
    assert mono_s == 8.0
    assert clock.now_ms(mono_s) == 70_000


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_speed_that_is_no_positive_number_is_refused_and_changes_nothing(speed: float) -> None:
    with pytest.raises(BadClock, match="speed is"):
        ExchangeClock(0, 0.0, speed)
    clock = ExchangeClock(0, 0.0, 2.0)
    with pytest.raises(BadClock):
        clock.set_speed(speed, 1.0)
    assert clock.now_ms(2.0) == 4000


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e12])
def test_the_clock_never_goes_back(seconds: float) -> None:
    clock = ExchangeClock(0, 0.0, 1.0)
    with pytest.raises(BadClock, match="advance_s"):
        clock.advance(seconds, 1.0)
    assert clock.now_ms(1.0) == 1000
