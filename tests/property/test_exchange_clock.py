"""ExchangeClock against a model exchange: two clocks that drift, jump, are wrong, stop, and run at any speed."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from klinesync.runtime.exchange_clock import DIFFER_MS, DIFFER_OURS_S, FRESH_FRAME_S, ExchangeClock
from support.thorough import examples

T0_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
# Stamps that no exchange's clock shows: of the year 9999, of 1970, microseconds instead of milliseconds, an hour off.
ABSURD_MS = (253_402_300_799_000, 10**18, 0, 10**30, T0_MS * 1000, T0_MS + HOUR_MS, T0_MS - HOUR_MS)
TICK_S = 0.5
LATENCY_S = 0.03


@dataclass
class ModelExchange:
    """True time runs at `speed`; each clock may be off by some ms, and by more each second (`drift`)."""

    speed: float = 1.0
    now_s: float = 1000.0
    true_ms: float = T0_MS
    off_ms: dict[str, float] = field(default_factory=lambda: {"rest": 0.0, "frames": 0.0})
    drift: dict[str, float] = field(default_factory=lambda: {"rest": 0.0, "frames": 0.0})
    clock: ExchangeClock = field(default_factory=ExchangeClock)
    rng: Random = field(default_factory=lambda: Random(1))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.true_ms += seconds * 1000 * self.speed
        for name, drift in self.drift.items():
            self.off_ms[name] += drift * seconds * 1000 * self.speed

    def stamp(self, name: str) -> int:
        return int(self.true_ms + self.off_ms[name])

    def frame(self) -> bool:
        return self.clock.heard(self.stamp("frames"), self.now_s)

    def answer(self, stamp_ms: int | None = None) -> bool:
        self.clock.asking(self.now_s)
        self.pass_time(self.rng.uniform(0.001, LATENCY_S))
        stamp_ms = self.stamp("rest") if stamp_ms is None else stamp_ms
        self.pass_time(self.rng.uniform(0.001, LATENCY_S))
        return self.clock.answered(stamp_ms, self.now_s)

    def run(self, seconds: float, *, frames: bool = True, rows: bool = False) -> None:
        """Frames arrive, and REST is asked when the clock wants it, as the service does; with `rows` also every few
        seconds, as by readers of rows."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            if frames and self.speed > 0.0:
                for _ in range(4):
                    self.pass_time(TICK_S / 4)
                    self.frame()
            else:
                self.pass_time(TICK_S)
            clock = self.clock
            unknown = clock.rest_ms is None
            wanted = (
                unknown
                or (rows and clock.answer_age_s(self.now_s) > 2.0)
                or clock.wants_answer(self.now_s)
                or clock.age_s(self.now_s) > 5.0
            )
            if (wanted or any(one.suspects for one in (clock._rest, clock._frames))) and clock.answer_age_s(
                self.now_s
            ) >= 1.0:
                self.answer()

    @property
    def near_ms(self) -> float:
        return max(DIFFER_MS, DIFFER_OURS_S * 1000 * self.speed) + 2 * LATENCY_S * 1000 * max(1.0, self.speed)

    def error_ms(self) -> float:
        estimate_ms = self.clock.estimate_ms(self.now_s)
        assert estimate_ms is not None
        return abs(estimate_ms - self.true_ms)


SPEEDS = st.sampled_from([0.1, 0.5, 1.0, 3.0, 7.0, 60.0, 300.0, 1200.0])


@settings(max_examples=examples(40), deadline=None)
@given(SPEEDS, st.booleans(), st.integers(0, 100))
@example(3.0, False, 0)
def test_at_any_speed_the_time_is_known_and_the_clocks_agree(speed: float, frames: bool, seed: int) -> None:
    model = ModelExchange(speed=speed, rng=Random(seed))
    model.answer()
    model.run(15.0, frames=frames)
    assert model.error_ms() <= model.near_ms
    assert model.clock.difference(model.now_s) is None
    final_ms = model.clock.final_ms(model.now_s)
    assert final_ms is not None
    assert final_ms <= model.true_ms


@settings(max_examples=examples(25), deadline=None)
@given(SPEEDS, SPEEDS)
def test_a_speed_that_changes_is_learned(before: float, after: float) -> None:
    model = ModelExchange(speed=before)
    model.answer()
    model.run(10.0)
    model.speed = after
    model.run(20.0)
    assert model.error_ms() <= model.near_ms
    assert model.clock.difference(model.now_s) is None


def test_an_exchange_that_stands_still_and_goes_on_stays_known() -> None:
    model = ModelExchange()
    model.answer()
    model.run(10.0)
    model.speed = 0.0
    model.run(60.0)
    assert model.error_ms() <= 5500  # until the next answer the clock is assumed to continue
    assert model.clock.final_ms(model.now_s) is not None
    model.speed = 1.0
    model.run(10.0)
    assert model.error_ms() <= model.near_ms
    assert not model.clock.moved


@pytest.mark.parametrize("absurd_ms", ABSURD_MS)
@pytest.mark.parametrize("first", [True, False])
def test_one_absurd_answer_of_rest_moves_nothing(absurd_ms: int, first: bool) -> None:
    model = ModelExchange()
    if not first:
        model.run(10.0)
    model.answer(absurd_ms)
    estimate_ms = model.clock.estimate_ms(model.now_s)
    assert estimate_ms is None or abs(estimate_ms - model.true_ms) <= model.near_ms
    model.run(10.0, frames=False)
    assert model.error_ms() <= model.near_ms
    assert model.clock.final_ms(model.now_s) is not None
    assert model.clock.doubted["rest"] >= 1


@pytest.mark.parametrize("absurd_ms", ABSURD_MS)
def test_one_absurd_frame_moves_nothing_and_is_not_believed_when_ahead(absurd_ms: int) -> None:
    model = ModelExchange()
    model.run(10.0)
    believed = model.clock.heard(absurd_ms, model.now_s)
    assert believed == (absurd_ms < T0_MS)
    assert model.error_ms() <= model.near_ms
    model.run(5.0)
    assert model.error_ms() <= model.near_ms
    assert model.clock.difference(model.now_s) is None


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS, 86_400_000, 30_000, -30_000])
def test_a_jump_of_the_exchanges_time_is_believed_when_both_clocks_agree(jump_ms: int) -> None:
    model = ModelExchange()
    model.run(10.0)
    model.true_ms += jump_ms
    model.run(8.0)
    assert model.error_ms() <= model.near_ms
    assert model.clock.difference(model.now_s) is None
    assert model.clock.final_ms(model.now_s) is not None
    assert model.clock.moved["rest"] == 1
    assert any("is set by" in news for news in model.clock.take_news())


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_a_wrong_clock_is_set_by_four_consistent_answers(jump_ms: int) -> None:
    model = ModelExchange(off_ms={"rest": jump_ms, "frames": 0.0})
    model.run(5.0, frames=False)
    assert model.error_ms() >= HOUR_MS - 1000, "where there is one clock it is that one"
    model.off_ms["rest"] = 0.0
    for _ in range(3):
        model.pass_time(1.0)
        assert not model.answer()
    model.pass_time(1.0)
    assert model.answer()
    assert model.error_ms() <= model.near_ms


@settings(max_examples=examples(25), deadline=None)
@given(st.sampled_from(["rest", "frames"]), st.floats(3_000, 59_000), st.booleans())
def test_differing_clocks_prove_nothing_until_they_agree_again(name: str, off_ms: float, from_the_start: bool) -> None:
    model = ModelExchange()
    if not from_the_start:
        model.run(10.0)
    model.off_ms[name] = off_ms
    for _ in range(60):
        model.run(0.5, rows=True)
        final_ms = model.clock.final_ms(model.now_s)
        assert final_ms is None or final_ms <= model.true_ms, "no stamp of the future proves anything"
    difference = model.clock.difference(model.now_s)
    assert difference is not None
    assert difference.frames_ms - difference.rest_ms == pytest.approx(off_ms * (1 if name == "frames" else -1), abs=200)
    assert model.clock.final_ms(model.now_s) is None
    assert model.error_ms() <= model.near_ms, "the earlier clock is right"
    model.off_ms[name] = 0.0
    model.run(10.0, rows=True)
    assert model.clock.difference(model.now_s) is None
    assert model.clock.final_ms(model.now_s) is not None
    assert model.error_ms() <= model.near_ms


@settings(max_examples=examples(25), deadline=None)
@given(st.sampled_from(["rest", "frames"]), st.floats(0.02, 1.0))
def test_a_clock_that_drifts_ahead_never_proves_an_open_candle(name: str, drift: float) -> None:
    model = ModelExchange()
    model.run(5.0)
    model.drift[name] = drift
    for _ in range(120):
        model.run(0.5, rows=True)
        final_ms = model.clock.final_ms(model.now_s)
        assert final_ms is None or final_ms <= model.true_ms
    if drift > 0.1:
        assert model.clock.difference(model.now_s) is not None
    model.drift[name], model.off_ms[name] = 0.0, 0.0
    model.run(15.0, rows=True)
    assert model.clock.difference(model.now_s) is None
    assert model.error_ms() <= model.near_ms


def test_frames_that_have_stopped_no_longer_count_as_a_clock() -> None:
    model = ModelExchange()
    model.run(10.0)
    model.run(FRESH_FRAME_S + 10.0, frames=False)
    final_ms = model.clock.final_ms(model.now_s)
    assert final_ms is not None
    assert model.true_ms - final_ms < 7_000, "REST alone proves"


@pytest.mark.parametrize("silent_s", [1.0, FRESH_FRAME_S + 1.0, 60.0])
def test_the_least_time_ignores_frames_that_were_ahead_and_stopped(silent_s: float) -> None:
    model = ModelExchange()
    model.run(10.0)
    model.off_ms["frames"] = 15_000.0
    model.run(20.0)
    assert model.clock.difference(model.now_s) is not None
    model.run(silent_s, frames=False)
    least_ms = model.clock.least_ms(model.now_s)
    assert least_ms is not None
    assert least_ms <= model.true_ms + model.near_ms


@pytest.mark.parametrize("answers", [1, 2, 10])
@pytest.mark.parametrize("speed", [0.5, 1.0, 7.0, 60.0, 300.0])
def test_no_close_looks_early_while_rest_stops_answering(speed: float, answers: int) -> None:
    model = ModelExchange(speed=speed)
    model.frame()
    for _ in range(answers):
        model.answer()
        model.pass_time(1.0)
    for number in range(400):
        model.pass_time(0.5)
        model.frame()
        if number == 200 and speed == 1.0:
            late_ms = model.stamp("frames")
            model.pass_time(1.6)
            model.clock.heard(late_ms, model.now_s)
            model.frame()
        if number < 3:
            continue  # the speed is still being learned
        assert not model.clock.is_ahead(model.stamp("frames"), model.now_s)
        least_ms = model.clock.least_ms(model.now_s)
        assert least_ms is not None
        assert speed < 1.0 or least_ms >= model.true_ms - model.near_ms, "what is banned waits no longer than it must"
    if speed >= 1.0:  # otherwise REST's clock may have run as fast as ours since then
        assert model.clock.is_ahead(int(model.true_ms + 15_000.0 + 20_000.0 * speed), model.now_s)


@pytest.mark.parametrize("speed", [7.0, 60.0, 300.0])
@pytest.mark.parametrize("latency_s", [1.0, 5.0, 10.0])
def test_a_slow_answer_does_not_make_closes_look_early(speed: float, latency_s: float) -> None:
    """The answer comes late, and makes REST's clock look slow; then REST stops answering."""
    model = ModelExchange(speed=speed)
    model.run(10.0, rows=True)
    model.off_ms["rest"] = -60_000.0 * speed
    model.run(10.0, rows=True)  # the clock is set, and its speed is measured anew
    model.pass_time(latency_s)
    model.clock.asking(model.now_s)
    shown_ms = model.stamp("rest")
    model.pass_time(latency_s)
    model.clock.answered(shown_ms, model.now_s)
    for _ in range(60):
        model.pass_time(1.0)
        assert not model.clock.is_ahead(model.stamp("rest"), model.now_s)


@pytest.mark.parametrize("speed", [7.0, 60.0, 300.0])
def test_a_late_close_does_not_look_early_after_rests_clock_has_jumped(speed: float) -> None:
    """The late frame makes the frames' clock look slow."""
    model = ModelExchange(speed=speed)
    model.run(20.0, rows=True)
    model.off_ms["rest"] -= 60_000.0 * speed
    model.run(20.0, rows=True)
    model.off_ms["rest"] = 0.0
    moved = model.clock.moved["rest"]
    while model.clock.moved["rest"] == moved:
        model.pass_time(1.0)
        model.frame()
        model.answer()
    for _ in range(2):
        model.frame()
        model.pass_time(3.0)
    late_ms = int(model.true_ms - 2_000.0 * speed)
    model.clock.heard(late_ms, model.now_s)
    assert not model.clock.is_ahead(late_ms, model.now_s)


@settings(max_examples=examples(40), deadline=None)
@given(SPEEDS, st.integers(-60, 60), st.lists(st.floats(0.0, 59.9), min_size=1, max_size=20))
def test_forming_candles_never_make_a_close_in_time_look_early(speed: float, off_s: int, seconds: list[float]) -> None:
    """REST's time is unknown; the frames' clock is off by the same time during the whole test."""
    model = ModelExchange(speed=speed, off_ms={"rest": 0.0, "frames": off_s * 1000.0})
    minute_ms = T0_MS // 60_000 * 60_000 + 60_000
    for number, second in enumerate(sorted(seconds)):
        open_ms = minute_ms + number * 60_000
        model.pass_time((open_ms + second * 1000 - model.true_ms) / 1000 / speed)
        if model.frame():
            model.clock.formed(model.stamp("frames"), open_ms + 60_000)
        model.pass_time((open_ms + 60_001 - model.true_ms) / 1000 / speed)
        if model.frame() and number > 2:
            assert not model.clock.is_ahead(open_ms + 60_000, model.now_s) or off_s < 0


def test_without_faults_rest_is_asked_for_its_time_only_at_the_start() -> None:
    model = ModelExchange()
    model.answer()
    model.run(3600.0)
    assert model.clock.answer_age_s(model.now_s) > 3590.0


def test_a_repeated_frame_proves_nothing() -> None:
    model = ModelExchange()
    model.run(10.0)
    for _ in range(100):
        model.pass_time(0.1)
        assert not model.clock.heard(T0_MS + HOUR_MS, model.now_s)
    model.run(2.0)
    assert model.error_ms() <= model.near_ms


@given(st.sampled_from([1.0, 7.0, 60.0, 300.0]), st.floats(0.0, 3.0), st.floats(0.0, 60.0))
def test_a_late_first_frame_is_believed_at_any_speed_while_rest_does_not_answer(
    speed: float, late_s: float, silent_s: float
) -> None:
    model = ModelExchange(speed)
    model.run(10.0, frames=False)
    model.pass_time(silent_s)
    known_ms = model.clock.estimate_ms(model.now_s)
    assert model.clock.heard(int(model.true_ms - late_s * 1000 * speed), model.now_s)
    assert known_ms is not None
    assert abs((model.clock.estimate_ms(model.now_s) or 0) - known_ms) <= max(DIFFER_MS, speed * DIFFER_OURS_S * 1000)
