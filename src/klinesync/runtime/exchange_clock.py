"""The exchange's time, which is learned from the exchange and never taken from our own clock.

A market has two clocks: the time that its REST answers, and the stamps of its frames. Each may drift, jump or be wrong,
and both may run at another speed than ours (those of a simulated exchange do). Therefore one stamp alone moves a clock
no further than the elapsed time explains; a stamp beyond that is doubted until the other clock agrees, or three more
stamps of the same clock continue from it. While the two clocks differ, neither proves anything.

Pure: `at_s` and `now_s` are seconds of our monotonic clock.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise
from typing import NamedTuple

from klinesync.core.dates import date_text

# Two clocks differ when they are further apart than `DIFFER_MS`; at a high speed, than `DIFFER_OURS_S` of our time.
DIFFER_MS = 2_000
DIFFER_OURS_S = 0.1
# The frames' clock counts while a frame arrived within this time, in our seconds.
FRESH_FRAME_S = 10.0
# Consecutive answers of REST that find the newest frame late before the clocks count as different.
BEHIND_ANSWERS = 3
# Stamps that must agree: before a clock is known, and before a clock moves further than the elapsed time explains.
AGREE_AT_START = 2
AGREE_TO_MOVE = 4
# An unknown speed is believed when this many stamps are on one line, at least `LINE_APART_S` (our seconds) apart; and
# the highest speed that is believed.
LINE_STAMPS = 3
LINE_APART_S = 0.02
FASTEST = 2_000.0
# Largest factor between the speed of a clock and the measured speed.
SLACK = 1.05
# Oldest stamp of a clock, in our seconds, that may confirm a stamp of the other clock.
CONFIRMS_S = 600.0
# Shortest time over which a speed is measured, in our seconds.
MEASURE_S = 0.2
# Largest assumed latency of a stamp, in seconds. A measured speed that may be 1 within this latency counts as 1.
LATENCY_S = 2.0
# Our seconds after which a speed that counts as 1 is sure; before, it is measured on from the same stamp.
SURE_S = 5.0
# Most sentences that wait to be logged.
MAX_NEWS = 16

REST, FRAMES = "rest", "frames"


class Stamp(NamedTuple):
    """A time of the exchange.

    ms: the time, in UTC ms.
    at_s: when the stamp arrived, in our monotonic seconds.
    latency_s: greatest possible age at the arrival, in seconds; 0 when unknown.
    """

    ms: int
    at_s: float
    latency_s: float = 0.0


class ClockDifference(NamedTuple):
    """The times of the two clocks of a market at the same moment, in ms."""

    rest_ms: int
    frames_ms: int

    def __str__(self) -> str:
        return (
            f"the clocks differ: REST says {self.rest_ms / 1000:.3f}, frames are stamped {self.frames_ms / 1000:.3f} "
            f"({(self.frames_ms - self.rest_ms) / 1000:+.3f} s); a row is final when two later rows follow it"
        )


class _Clock:
    """One of the two clocks. `newest`: the newest believed stamp; `suspects`: doubted stamps."""

    __slots__ = ("_base", "_past_end_ms", "_speed_before", "error", "name", "newest", "speed", "suspects")

    def __init__(self, name: str) -> None:
        self.name = name
        self.newest: Stamp | None = None
        self.speed: float | None = None  # unknown before two stamps
        self.error = (
            0.0  # by how much the last measured speed may be too low, as a share, for the latency of the answer
        )
        self._speed_before: float | None = None  # the last speed that was measured before the clock was set
        self.suspects: list[Stamp] = []
        self._past_end_ms = [0, 0]  # the two greatest values of `formed`
        self._base: Stamp | None = None  # the stamp from which the speed is measured

    def estimate_ms(self, now_s: float) -> int | None:
        """The newest stamp plus the time since then at the clock's speed."""
        if self.newest is None:
            return None
        return self.showed_ms(max(now_s, self.newest.at_s), 1.0 if self.speed is None else self.speed)

    def showed_ms(self, then_s: float, speed: float) -> int | None:
        """The time of the clock at `then_s`, before or after the newest stamp, if the clock runs at `speed`."""
        return None if self.newest is None else self.newest.ms + int((then_s - self.newest.at_s) * 1000 * speed)

    def set(self, *run: Stamp) -> None:
        """Restart the clock with these stamps. The suspects are kept, because they may show an unknown speed."""
        self.newest = self._base = None
        self._speed_before, self.speed = self.likely_speed, None
        self._past_end_ms = [0, 0]
        for stamp in run:
            self.move(stamp)

    @property
    def likely_speed(self) -> float | None:
        """The measured speed, or, while there is none since the clock was set, the speed before: a clock that jumps
        goes on at its speed."""
        return self._speed_before if self.speed is None else self.speed

    @property
    def ahead_ms(self) -> int:
        """How far the clock is ahead of the exchange's candles at least, as two stamps have shown; in ms."""
        return self._past_end_ms[0]

    def formed(self, past_end_ms: int) -> None:
        """A candle was still forming when the clock was `past_end_ms` after its end; negative before the end."""
        if past_end_ms > self.ahead_ms:
            self._past_end_ms = sorted((*self._past_end_ms, past_end_ms))[-2:]

    def move(self, stamp: Stamp) -> None:
        """Add a believed stamp. A stamp before the newest changes nothing; an equal one shows that the clock stands
        still."""
        newest, base = self.newest, self._base
        if newest is None or base is None:
            self.newest = self._base = stamp
            return
        if stamp.ms < newest.ms:
            return
        self.newest = stamp
        if self.speed is not None:
            expected_ms = base.ms + self.speed * (stamp.at_s - base.at_s) * 1000
            unsure_ms = (base.latency_s + stamp.latency_s) * max(1.0, self.speed) * 1000
            sure = self.speed != 1.0 or newest.at_s - base.at_s >= SURE_S
            if sure and abs(stamp.ms - expected_ms) > max(LATENCY_S, self.speed * MEASURE_S) * 1000 + unsure_ms:
                self._base = base = newest  # the speed has changed
        elapsed_s = stamp.at_s - base.at_s
        unsure_s = base.latency_s + stamp.latency_s
        if elapsed_s >= max(MEASURE_S, 2 * unsure_s):
            speed = (stamp.ms - base.ms) / 1000 / elapsed_s
            self.speed = 1.0 if abs(speed - 1.0) <= max(0.02, (LATENCY_S + unsure_s) / elapsed_s) else speed
            self.error = stamp.latency_s / (elapsed_s - stamp.latency_s)


class ExchangeClock:
    """The two clocks of one exchange market. A venue with one clock has that of REST.

    doubted: by clock, the number of doubted stamps.
    moved: by clock, how often the clock was moved further than the elapsed time explains.
    """

    def __init__(self) -> None:
        self._rest = _Clock(REST)
        self._frames = _Clock(FRAMES)
        self._fastest = 1.0
        self._frame_when_asked: Stamp | None = None
        self._late_answers = 0
        self._counted_late_frame: Stamp | None = None
        self._difference: ClockDifference | None = None
        self._asked_at_s = 0.0
        self._answered_at_s = float("-inf")
        self._answer_doubted = False
        self._learned_jump = False  # whether the newest step of `learn` was not explained by the elapsed time
        self._news: deque[str] = deque(maxlen=MAX_NEWS)
        self.doubted: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    # --- learning

    def asking(self, now_s: float) -> None:
        """A request for REST's time is sent now."""
        self._asked_at_s = now_s
        self._frame_when_asked = self._frames.newest

    def answered(self, stamp_ms: int, now_s: float) -> bool:
        """REST has answered with its time. Returns whether the stamp is believed."""
        self._answered_at_s = now_s
        believed = self._take(self._rest, self._frames, Stamp(stamp_ms, now_s, now_s - self._asked_at_s))
        if believed:
            self._compare(stamp_ms, now_s)
        self._answer_doubted = not believed
        return believed

    def heard(self, stamp_ms: int, now_s: float) -> bool:
        """A frame has arrived with this stamp. Returns whether the stamp is believed; stamps of the past are, because
        frames may be late."""
        stamp = Stamp(stamp_ms, now_s)
        past = self._is_past(stamp)
        return self._take(self._frames, self._rest, stamp) or past

    def formed(self, stamp_ms: int, close_ms: int) -> None:
        """A believed frame shows the candle that ends at `close_ms` as still forming. A later stamp shows that the
        frames' clock is ahead."""
        self._frames.formed(stamp_ms - close_ms)

    def learn(self, stamp_ms: int, now_s: float) -> None:
        """Add a stamp of REST that was confirmed otherwise. A single step that the elapsed time does not explain is a
        jump, and says nothing about the speed; of two such steps in a row, the second measures the speed."""
        rest, stamp = self._rest, Stamp(stamp_ms, now_s)
        rest.suspects.clear()
        jumps = rest.newest is not None and stamp.ms > rest.newest.ms and not self._explains(rest.newest, stamp)
        if jumps and not self._learned_jump:
            rest.set(stamp)
        else:
            rest.move(stamp)
        self._learned_jump = jumps

    def trusts(self, stamp_ms: int, now_s: float) -> bool:
        """Whether the stamp of an earlier frame is believed by now."""
        newest, stamp = self._frames.newest, Stamp(stamp_ms, now_s)
        return self._is_past(stamp) or (newest is not None and self._explains(newest, stamp))

    # --- the time

    @property
    def rest_ms(self) -> int | None:
        """The newest stamp of REST; None before two stamps have agreed."""
        return None if self._rest.newest is None else self._rest.newest.ms

    def final_ms(self, now_s: float) -> int | None:
        """The earlier of the two clocks by received stamps, before which candles have ended. None when time proves
        nothing: REST's clock is unknown, or the two clocks differ."""
        rest = self._rest.newest
        if rest is None or self.difference(now_s) is not None:
            return None
        frame = self._fresh_frame(now_s)
        return rest.ms if frame is None else min(rest.ms, frame.ms)

    def estimate_ms(self, now_s: float) -> int | None:
        """The estimated time; None before any clock is known. While the clocks differ, the earlier."""
        clocks = [clock for clock in (self._rest, self._frames) if clock.newest is not None]
        estimates = [ms for clock in clocks if (ms := clock.estimate_ms(now_s)) is not None]
        if not estimates:
            return None
        if self.difference(now_s) is not None:
            return min(estimates)
        newest = max(clocks, key=lambda clock: float("-inf") if clock.newest is None else clock.newest.at_s)
        return newest.estimate_ms(now_s)

    def least_ms(self, now_s: float) -> int | None:
        """A lower bound of the time, unless the clock runs slower than ours since the last stamp."""
        times_ms = [
            ms
            for clock in (self._rest, self._frames)
            if (ms := clock.showed_ms(now_s, min(1.0, clock.speed or 1.0))) is not None
        ]
        if not times_ms:
            return None
        frames_ms = None if self._rest.newest is None else self._frames.estimate_ms(now_s)
        wrong = frames_ms is not None and self.is_ahead(frames_ms, now_s)
        return min(times_ms) if wrong or self.difference(now_s) is not None else max(times_ms)

    def age_s(self, now_s: float) -> float:
        """Seconds since the newest believed stamp arrived; infinite before the first."""
        stamps = [stamp for stamp in (self._rest.newest, self._frames.newest) if stamp is not None]
        return now_s - max((stamp.at_s for stamp in stamps), default=float("-inf"))

    def answer_age_s(self, now_s: float) -> float:
        """Seconds since REST answered with its time, believed or not; infinite before the first answer."""
        return now_s - self._answered_at_s

    def is_ahead(self, time_ms: int, then_s: float) -> bool:
        """Whether `time_ms` was clearly ahead of the exchange's time at `then_s`: by REST's clock, or by the frames'
        clock while REST's is unknown, less the lead of the frames' clock by forming candles. False when both are
        unknown."""
        clock, second = (self._frames, self._rest) if self._rest.newest is None else (self._rest, self._frames)
        # At least 1: a late frame or a wrong first stamp makes a clock look slow. The speed of a frames' clock that
        # runs away from the candles does not count.
        sound = (clock, second) if self._frames.ahead_ms <= self._differ_ms(self._frames) else (self._rest,)
        known = [(speed, candidate.error) for candidate in sound if (speed := candidate.likely_speed) is not None]
        speed, error = max(known[0], (1.0, 0.0)) if known else (1.0, 0.0)
        newest, shown_ms = clock.newest, clock.showed_ms(then_s, speed)
        if newest is None or shown_ms is None:
            return False
        near_ms = max(self._differ_ms(clock), speed * DIFFER_OURS_S * 1000)
        unsure_s = newest.latency_s * speed * (1.0 + error)
        if speed != 1.0:  # the speed was measured
            unsure_s += abs(then_s - newest.at_s) * speed * max(SLACK - 1.0, error)
        return time_ms > shown_ms - clock.ahead_ms + near_ms + unsure_s * 1000

    @property
    def doubts_answer(self) -> bool:
        """Whether REST's newest answer is doubted: it was wrong, or the clock jumped; further answers will show
        which."""
        return self._answer_doubted

    def wants_answer(self, now_s: float) -> bool:
        """Whether REST should be asked for its time: the two clocks seem to differ, or differed at the last answer."""
        if self.difference(now_s) is not None:
            return True
        return self._fresh_frame(now_s) is not None and self._estimates_differ(now_s)

    def difference(self, now_s: float) -> ClockDifference | None:
        """The difference of the two clocks while frames arrive; None when the clocks agree."""
        return None if self._fresh_frame(now_s) is None else self._difference

    def take_news(self) -> list[str]:
        """The events of the clocks since the last call, as sentences for the log."""
        news = list(self._news)
        self._news.clear()
        return news

    # --- judging stamps

    def _take(self, clock: _Clock, other: _Clock, stamp: Stamp) -> bool:
        """Add a stamp of `clock`, or doubt it. Returns whether the stamp is believed."""
        if clock.newest is not None and self._explains(clock.newest, stamp):
            clock.suspects.clear()
            clock.move(stamp)
            if clock.name == REST:
                self._clear_up(other, stamp)
            return True
        self._suspect(clock, stamp)
        started = clock.newest is not None or other.newest is not None
        run = self._run(clock.suspects, AGREE_TO_MOVE if started else AGREE_AT_START)
        if run is not None:
            self._set(clock, *run)
            clock.suspects.clear()
            if clock.speed is not None:
                self._fastest = max(self._fastest, min(clock.speed, FASTEST))
            return True
        if self._confirms(other, stamp):
            self._set(clock, stamp)
            return True
        suspect = next((candidate for candidate in reversed(other.suspects) if self._same(candidate, stamp)), None)
        if suspect is not None:
            self._set(other, suspect)
            self._set(clock, stamp)
            return True
        self.doubted[clock.name] += 1
        return False

    def _is_past(self, frame: Stamp) -> bool:
        """Whether the stamp of a frame lies in the past: by the frames' clock; before its first stamp, by REST's."""
        newest = self._frames.newest
        past_ms = self._rest.estimate_ms(frame.at_s) if newest is None else newest.ms
        return past_ms is not None and frame.ms <= past_ms

    def _clear_up(self, frames: _Clock, answer: Stamp) -> None:
        """Believe a doubted frame that REST's answer confirms."""
        suspect = next((stamp for stamp in reversed(frames.suspects) if self._same(stamp, answer)), None)
        if suspect is not None and (frames.newest is None or suspect.ms != frames.newest.ms):
            self._set(frames, suspect)

    def _suspect(self, clock: _Clock, stamp: Stamp) -> None:
        last = clock.suspects[-1] if clock.suspects else None
        # Frames of one moment count as one stamp, and a repeated frame proves nothing.
        again = last is not None and (stamp.ms == last.ms or 0.0 <= stamp.at_s - last.at_s < LINE_APART_S)
        if again and clock.name == FRAMES:
            return
        clock.suspects.append(stamp)
        del clock.suspects[:-AGREE_TO_MOVE]

    def _run(self, suspects: list[Stamp], needed: int) -> list[Stamp] | None:
        """The newest `needed` suspects when they run like a clock: at a known speed, or on one line; otherwise None."""
        run = suspects[-needed:]
        if len(run) == needed and all(
            self._explains(stamp, next_stamp) and stamp.ms <= next_stamp.ms for stamp, next_stamp in pairwise(run)
        ):
            return run
        run = suspects[-max(needed, LINE_STAMPS) :]
        if len(run) < max(needed, LINE_STAMPS):
            return None
        first, last = run[0], run[-1]
        elapsed_s = last.at_s - first.at_s
        speed = (last.ms - first.ms) / 1000 / elapsed_s if elapsed_s > 0 else float("inf")
        if not 0.0 < speed <= FASTEST:
            return None
        near_ms = max(DIFFER_MS, speed * DIFFER_OURS_S * 1000)
        on_line = all(abs(first.ms + speed * (stamp.at_s - first.at_s) * 1000 - stamp.ms) <= near_ms for stamp in run)
        return run if on_line and all(stamp.ms < next_stamp.ms for stamp, next_stamp in pairwise(run)) else None

    def _set(self, clock: _Clock, *run: Stamp) -> None:
        before_ms = clock.estimate_ms(run[-1].at_s)
        clock.set(*run)
        self._late_answers = 0
        if before_ms is not None and abs(run[-1].ms - before_ms) > DIFFER_MS:
            self.moved[clock.name] += 1
            shift_s = (run[-1].ms - before_ms) / 1000
            self._news.append(
                f"the exchange's clock ({clock.name}) is set by {shift_s:+.3f} s, to {date_text(run[-1].ms // 1000)}"
            )

    def _explains(self, before: Stamp, stamp: Stamp) -> bool:
        """Whether the elapsed time explains the difference of two stamps of one clock, at any speed seen so far."""
        near_ms = max(DIFFER_MS, self._fastest * DIFFER_OURS_S * 1000)
        elapsed_s = max(0.0, stamp.at_s - before.at_s)
        return -near_ms <= stamp.ms - before.ms <= elapsed_s * 1000 * self._fastest * SLACK + near_ms

    def _confirms(self, other: _Clock, stamp: Stamp) -> bool:
        """Whether the other clock confirms a stamp."""
        if other.newest is None or stamp.at_s - other.newest.at_s > CONFIRMS_S:
            return False
        estimate_ms = other.estimate_ms(stamp.at_s)
        return estimate_ms is not None and abs(stamp.ms - estimate_ms) <= self._differ_ms(other)

    def _same(self, suspect: Stamp, stamp: Stamp) -> bool:
        """Whether doubted stamps of both clocks agree."""
        elapsed_ms = max(0.0, stamp.at_s - suspect.at_s) * 1000
        return abs(stamp.ms - suspect.ms - elapsed_ms) <= DIFFER_MS

    def _compare(self, rest_ms: int, now_s: float) -> None:
        """Compare the clocks after an answer of REST."""
        frame, near_ms = self._fresh_frame(now_s), self._differ_ms(self._rest, self._frames)
        frames_ms = self._frames.estimate_ms(now_s)
        if frame is None or frames_ms is None:
            self._late_answers = 0
            self._set_difference(None)
            return
        before = self._frame_when_asked
        ahead = before is not None and now_s - before.at_s <= FRESH_FRAME_S and before.ms > rest_ms + near_ms
        if frames_ms >= rest_ms - near_ms:
            self._late_answers = 0
        elif frame != self._counted_late_frame:
            self._counted_late_frame = frame
            self._late_answers += 1
        differ = ahead or self._late_answers >= BEHIND_ANSWERS
        self._set_difference(ClockDifference(rest_ms, frames_ms) if differ else None)

    def _estimates_differ(self, now_s: float) -> bool:
        """Whether the estimates of the two clocks differ, whatever their age."""
        rest_ms, frames_ms = self._rest.estimate_ms(now_s), self._frames.estimate_ms(now_s)
        if rest_ms is None or frames_ms is None:
            return False
        return abs(rest_ms - frames_ms) > self._differ_ms(self._rest, self._frames)

    def _set_difference(self, difference: ClockDifference | None) -> None:
        if (difference is None) != (self._difference is None):
            self._news.append("the exchange's clocks agree again" if difference is None else str(difference))
        self._difference = difference

    def _fresh_frame(self, now_s: float) -> Stamp | None:
        newest = self._frames.newest
        return newest if newest is not None and now_s - newest.at_s <= FRESH_FRAME_S else None

    def _differ_ms(self, *clocks: _Clock) -> float:
        """The difference of two clocks up to which they agree, in ms."""
        speed = max((clock.speed for clock in clocks if clock.speed is not None), default=1.0)
        return max(DIFFER_MS, speed * DIFFER_OURS_S * 1000)
