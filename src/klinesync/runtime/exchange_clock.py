"""What time it is on the exchange: learned from the exchange, never taken from our own clock.

A market has two clocks: what its REST answers when it is asked for the time, and the stamps of its frames. Either may
drift, jump or lie, and both may run at another speed than ours (a simulated exchange's do). So one stamp alone moves a
clock no further than the time that has passed explains; a stamp beyond that is doubted until the other clock agrees,
or three more stamps of the same clock run on from it. Where the two clocks differ, neither proves anything.

Pure: `at_s` and `now_s` are our monotonic clock.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise
from typing import NamedTuple

from klinesync.core.dates import date_text

# Two clocks that lie further apart than this differ; at a simulated speed, than this time of ours.
DIFFER_MS = 2_000
DIFFER_OURS_S = 0.1
# The frames' clock counts while a frame came within this time of ours.
FRESH_FRAME_S = 10.0
# So many answers of REST in a row find the newest frame behind, before the clocks count as different.
BEHIND_ANSWERS = 3
# Stamps that must agree: where nothing is known yet; and before a clock is moved further than time explains.
AGREE_AT_START = 2
AGREE_TO_MOVE = 4
# Stamps that must lie on one line before an unknown speed is believed, the time between two of them at least (ours),
# and the highest such speed.
LINE_STAMPS = 3
LINE_APART_S = 0.02
FASTEST = 2_000.0
# How far the speed of a clock may be from what was measured. And how old (ours) a clock may be to bear out the other.
SLACK = 1.05
BEARS_OUT_S = 600.0
# A speed is measured over this time of ours at least. One that may be 1, as far as it can be told, is.
MEASURE_S = 0.2
LATENCY_S = 2.0
# A speed that was taken for 1 is one after this time (ours); before, it is measured on from the same stamp.
SURE_S = 5.0
# Sentences that wait to be logged.
MAX_NEWS = 16

REST, FRAMES = "rest", "frames"


class Stamp(NamedTuple):
    """A time of the exchange, when it arrived, and how old it may have been then at most, where that is known."""

    ms: int
    at_s: float
    latency_s: float = 0.0


class ClockDifference(NamedTuple):
    """What the two clocks of a market showed at the same moment, in ms."""

    rest_ms: int
    frames_ms: int

    def __str__(self) -> str:
        return (
            f"the clocks differ: REST says {self.rest_ms / 1000:.3f}, frames are stamped {self.frames_ms / 1000:.3f} "
            f"({(self.frames_ms - self.rest_ms) / 1000:+.3f} s); a row is final when two later rows follow it"
        )


class _Clock:
    """One of the two. `newest` is the newest stamp that is believed, `suspects` those that are doubted."""

    __slots__ = ("_base", "_past_end_ms", "name", "newest", "speed", "suspects")

    def __init__(self, name: str) -> None:
        self.name = name
        self.newest: Stamp | None = None
        self.speed: float | None = None  # unknown before two stamps
        self.suspects: list[Stamp] = []
        self._past_end_ms = [0, 0]  # the two most of `formed`
        self._base: Stamp | None = None  # the speed is measured from here on

    def estimate_ms(self, now_s: float) -> int | None:
        """The newest stamp, and the time since at the clock's speed."""
        if self.newest is None:
            return None
        return self.showed_ms(max(now_s, self.newest.at_s), 1.0 if self.speed is None else self.speed)

    def showed_ms(self, then_s: float, speed: float) -> int | None:
        """What the clock showed at some moment, before the newest stamp or after it, if it goes at that speed."""
        return None if self.newest is None else self.newest.ms + int((then_s - self.newest.at_s) * 1000 * speed)

    def set(self, *run: Stamp) -> None:
        """Begin anew with these stamps. The suspects stay: they may show a speed that is not known yet."""
        self.newest = self._base = None
        self.speed = None
        self._past_end_ms = [0, 0]
        for stamp in run:
            self.move(stamp)

    @property
    def ahead_ms(self) -> int:
        """How far the clock is ahead of the exchange's candles at least, by what two stamps have shown."""
        return self._past_end_ms[0]

    def formed(self, past_end_ms: int) -> None:
        """A candle was still forming when the clock showed so much more than its end; less than 0: before its end."""
        self._past_end_ms = sorted((*self._past_end_ms, past_end_ms))[-2:]

    def move(self, stamp: Stamp) -> None:
        """Take in a stamp that is believed. An older one than the newest changes nothing; the same again says that the
        clock stands still."""
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
                self._base = base = newest  # it goes at another speed now
        elapsed_s = stamp.at_s - base.at_s
        unsure_s = base.latency_s + stamp.latency_s
        if elapsed_s >= max(MEASURE_S, 2 * unsure_s):
            speed = (stamp.ms - base.ms) / 1000 / elapsed_s
            self.speed = 1.0 if abs(speed - 1.0) <= max(0.02, (LATENCY_S + unsure_s) / elapsed_s) else speed


class ExchangeClock:
    """The two clocks of one exchange market. `doubted` and `moved` count, by clock, stamps that were doubted and the
    times that a clock was set further than time explains. A venue with one clock has that of REST."""

    def __init__(self) -> None:
        self._rest = _Clock(REST)
        self._frames = _Clock(FRAMES)
        self._fastest = 1.0
        self._frame_when_asked: Stamp | None = None
        self._behind = 0
        self._counted_behind: Stamp | None = None
        self._difference: ClockDifference | None = None
        self._asked_at_s = 0.0
        self._answered_at_s = float("-inf")
        self._answer_doubted = False
        self._news: deque[str] = deque(maxlen=MAX_NEWS)
        self.doubted: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    # What is learned.

    def asking(self, now_s: float) -> None:
        """REST is asked for its time now."""
        self._asked_at_s = now_s
        self._frame_when_asked = self._frames.newest

    def answered(self, stamp_ms: int, now_s: float) -> bool:
        """REST has answered with its time; whether that is believed."""
        self._answered_at_s = now_s
        believed = self._take(self._rest, self._frames, Stamp(stamp_ms, now_s, now_s - self._asked_at_s))
        if believed:
            self._compare(stamp_ms, now_s)
        self._answer_doubted = not believed
        return believed

    def heard(self, stamp_ms: int, now_s: float) -> bool:
        """A frame has come with that stamp; whether it is believed. Stamps of the past are: frames may be late."""
        stamp, newest = Stamp(stamp_ms, now_s), self._frames.newest
        believed = self._take(self._frames, self._rest, stamp)
        return believed or (newest is not None and stamp_ms <= newest.ms)

    def formed(self, stamp_ms: int, close_ms: int) -> None:
        """A frame whose stamp is believed shows the candle that ends at `close_ms` as still forming: with a later stamp
        the frames' clock is ahead."""
        self._frames.formed(stamp_ms - close_ms)

    def learn(self, stamp_ms: int, now_s: float) -> None:
        """Take in a stamp of REST that something else has borne out."""
        self._rest.suspects.clear()
        self._rest.move(Stamp(stamp_ms, now_s))

    def trusts(self, stamp_ms: int, now_s: float) -> bool:
        """Whether a frame with that stamp, which came before, is believed by what is known now."""
        newest = self._frames.newest
        if newest is None:
            return False
        return stamp_ms <= newest.ms or self._explains(newest, Stamp(stamp_ms, now_s))

    # What is known.

    @property
    def rest_ms(self) -> int | None:
        """The newest stamp of REST; None before two stamps have agreed."""
        return None if self._rest.newest is None else self._rest.newest.ms

    def final_ms(self, now_s: float) -> int | None:
        """The earlier of the two clocks, by stamps that were received: what has ended before is over. None when nothing
        can be proven by time: REST's clock is not known, or the two differ."""
        rest = self._rest.newest
        if rest is None or self.difference(now_s) is not None:
            return None
        frame = self._fresh_frame(now_s)
        return rest.ms if frame is None else min(rest.ms, frame.ms)

    def estimate_ms(self, now_s: float) -> int | None:
        """What time it seems to be there; None before any clock is known. Where the clocks differ, the earlier."""
        clocks = [clock for clock in (self._rest, self._frames) if clock.newest is not None]
        estimates = [ms for clock in clocks if (ms := clock.estimate_ms(now_s)) is not None]
        if not estimates:
            return None
        if self.difference(now_s) is not None:
            return min(estimates)
        newest = max(clocks, key=lambda clock: float("-inf") if clock.newest is None else clock.newest.at_s)
        return newest.estimate_ms(now_s)

    def least_ms(self, now_s: float) -> int | None:
        """What time it is there at least, unless the clock goes slower than ours and was not asked since."""
        found = [
            ms
            for one in (self._rest, self._frames)
            if (ms := one.showed_ms(now_s, min(1.0, one.speed or 1.0))) is not None
        ]
        if not found:
            return None
        frames_ms = None if self._rest.newest is None else self._frames.estimate_ms(now_s)
        wrong = frames_ms is not None and self.is_ahead(frames_ms, now_s)
        return min(found) if wrong or self.difference(now_s) is not None else max(found)

    def age_s(self, now_s: float) -> float:
        """How long ago the newest stamp that is believed arrived; endless before the first."""
        stamps = [one for one in (self._rest.newest, self._frames.newest) if one is not None]
        return now_s - max((stamp.at_s for stamp in stamps), default=float("-inf"))

    def answer_age_s(self, now_s: float) -> float:
        """How long ago REST answered with its time, whatever it was; endless before the first answer."""
        return now_s - self._answered_at_s

    def is_ahead(self, time_ms: int, then_s: float) -> bool:
        """Whether a time lay clearly ahead of the exchange's at that moment: by REST's clock, or by the frames' one
        while nothing is known of REST's. What forming candles have shown the frames' clock to be ahead is subtracted.
        False where neither is known."""
        clock, other = (self._frames, self._rest) if self._rest.newest is None else (self._rest, self._frames)
        # Not slower than ours: a frame that comes late, and a first stamp that lies, make any clock look slow. And not
        # at the speed of a frames' clock that runs away from the candles.
        sound = (clock, other) if self._frames.ahead_ms <= self._differ_ms(self._frames) else (self._rest,)
        speed = max(1.0, next((one.speed for one in sound if one.speed is not None), 1.0))
        newest, shown_ms = clock.newest, clock.showed_ms(then_s, speed)
        if newest is None or shown_ms is None:
            return False
        near_ms = max(self._differ_ms(clock), speed * DIFFER_OURS_S * 1000)
        unsure_s = newest.latency_s * speed
        if speed != 1.0:  # it was measured
            unsure_s += abs(then_s - newest.at_s) * speed * (SLACK - 1.0)
        return time_ms > shown_ms - clock.ahead_ms + near_ms + unsure_s * 1000

    @property
    def doubts_answer(self) -> bool:
        """Whether REST's newest answer is doubted: it was wrong, or the clock has leapt, which more answers show."""
        return self._answer_doubted

    def wants_answer(self, now_s: float) -> bool:
        """Whether REST should be asked for its time: by what is known the two clocks have come apart, or they differ
        and it is not known whether they still do."""
        if self.difference(now_s) is not None:
            return True
        return self._fresh_frame(now_s) is not None and self._apart(now_s)

    def difference(self, now_s: float) -> ClockDifference | None:
        """How the two clocks differ, while both go; None when they agree."""
        return None if self._fresh_frame(now_s) is None else self._difference

    def take_news(self) -> list[str]:
        """What has happened to the clocks since the last call, in sentences for the log."""
        news = list(self._news)
        self._news.clear()
        return news

    # How stamps are judged.

    def _take(self, clock: _Clock, other: _Clock, stamp: Stamp) -> bool:
        """Take in a stamp of `clock`, or doubt it; whether it is believed."""
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
        if self._bears_out(other, stamp):
            self._set(clock, stamp)
            return True
        suspect = next((one for one in reversed(other.suspects) if self._same(one, stamp)), None)
        if suspect is not None:
            self._set(other, suspect)
            self._set(clock, stamp)
            return True
        self.doubted[clock.name] += 1
        return False

    def _clear_up(self, frames: _Clock, answer: Stamp) -> None:
        """REST's answer bears out a frame that was doubted."""
        suspect = next((one for one in reversed(frames.suspects) if self._same(one, answer)), None)
        if suspect is not None and (frames.newest is None or suspect.ms != frames.newest.ms):
            self._set(frames, suspect)

    def _suspect(self, clock: _Clock, stamp: Stamp) -> None:
        last = clock.suspects[-1] if clock.suspects else None
        # Several frames of one moment are one stamp; and a frame that is sent twice proves nothing.
        again = last is not None and (stamp.ms == last.ms or 0.0 <= stamp.at_s - last.at_s < LINE_APART_S)
        if again and clock.name == FRAMES:
            return
        clock.suspects.append(stamp)
        del clock.suspects[:-AGREE_TO_MOVE]

    def _run(self, suspects: list[Stamp], needed: int) -> list[Stamp] | None:
        """The newest suspects, when so many run on like a clock: at a speed seen so far, or on one line."""
        run = suspects[-needed:]
        if len(run) == needed and all(self._explains(one, two) and one.ms <= two.ms for one, two in pairwise(run)):
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
        on_line = all(abs(first.ms + speed * (one.at_s - first.at_s) * 1000 - one.ms) <= near_ms for one in run)
        return run if on_line and all(one.ms < two.ms for one, two in pairwise(run)) else None

    def _set(self, clock: _Clock, *run: Stamp) -> None:
        before_ms = clock.estimate_ms(run[-1].at_s)
        clock.set(*run)
        self._behind = 0
        if before_ms is not None and abs(run[-1].ms - before_ms) > DIFFER_MS:
            self.moved[clock.name] += 1
            by_s = (run[-1].ms - before_ms) / 1000
            self._news.append(
                f"the exchange's clock ({clock.name}) is set by {by_s:+.3f} s, to {date_text(run[-1].ms // 1000)}"
            )

    def _explains(self, before: Stamp, stamp: Stamp) -> bool:
        """Whether the time between two stamps of one clock explains them, at any speed seen so far."""
        near_ms = max(DIFFER_MS, self._fastest * DIFFER_OURS_S * 1000)
        elapsed_s = max(0.0, stamp.at_s - before.at_s)
        return -near_ms <= stamp.ms - before.ms <= elapsed_s * 1000 * self._fastest * SLACK + near_ms

    def _bears_out(self, other: _Clock, stamp: Stamp) -> bool:
        """Whether the other clock agrees with a stamp."""
        if other.newest is None or stamp.at_s - other.newest.at_s > BEARS_OUT_S:
            return False
        estimate_ms = other.estimate_ms(stamp.at_s)
        return estimate_ms is not None and abs(stamp.ms - estimate_ms) <= self._differ_ms(other)

    def _same(self, suspect: Stamp, stamp: Stamp) -> bool:
        """Whether two doubted stamps of both clocks say the same."""
        elapsed_ms = max(0.0, stamp.at_s - suspect.at_s) * 1000
        return abs(stamp.ms - suspect.ms - elapsed_ms) <= DIFFER_MS

    def _compare(self, rest_ms: int, now_s: float) -> None:
        """REST has answered: do the clocks differ?"""
        frame, near_ms = self._fresh_frame(now_s), self._differ_ms(self._rest, self._frames)
        frames_ms = self._frames.estimate_ms(now_s)
        if frame is None or frames_ms is None:
            self._behind = 0
            self._turn(None)
            return
        before = self._frame_when_asked
        ahead = before is not None and now_s - before.at_s <= FRESH_FRAME_S and before.ms > rest_ms + near_ms
        if frames_ms >= rest_ms - near_ms:
            self._behind = 0
        elif frame != self._counted_behind:
            self._counted_behind = frame
            self._behind += 1
        differ = ahead or self._behind >= BEHIND_ANSWERS
        self._turn(ClockDifference(rest_ms, frames_ms) if differ else None)

    def _apart(self, now_s: float) -> bool:
        """Whether the two clocks lie apart, by what is known of each, however old."""
        rest_ms, frames_ms = self._rest.estimate_ms(now_s), self._frames.estimate_ms(now_s)
        if rest_ms is None or frames_ms is None:
            return False
        return abs(rest_ms - frames_ms) > self._differ_ms(self._rest, self._frames)

    def _turn(self, difference: ClockDifference | None) -> None:
        if (difference is None) != (self._difference is None):
            self._news.append("the exchange's clocks agree again" if difference is None else str(difference))
        self._difference = difference

    def _fresh_frame(self, now_s: float) -> Stamp | None:
        newest = self._frames.newest
        return newest if newest is not None and now_s - newest.at_s <= FRESH_FRAME_S else None

    def _differ_ms(self, *clocks: _Clock) -> float:
        """How far apart two clocks may be and still count as one."""
        speed = max((clock.speed for clock in clocks if clock.speed is not None), default=1.0)
        return max(DIFFER_MS, speed * DIFFER_OURS_S * 1000)
