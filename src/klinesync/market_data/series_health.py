"""SeriesHealthService: one series in detail, for whoever looks into a trouble: its span, its holes, its newest buckets.

`/api/market/health` judges; this counts what the store holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, clipped, widened, without
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database

# Candles are counted one by one, up to so many; it is the longest read of the debug API.
MAX_COUNTED_CANDLES = 10_000_000


@dataclass(frozen=True, slots=True)
class Hole:
    """Missing candles between two stored ones, `prev_time` and `next_time`, which are `delta_seconds` apart. `state` is
    the worst of what is known of its parts."""

    prev_time: int
    next_time: int
    delta_seconds: int
    missing_candles: int
    state: GapState


@dataclass(frozen=True, slots=True)
class Bucket:
    """How much of a derived candle's base is stored, in minutes."""

    bucket_open_time: int
    expected_minutes: int
    actual_minutes: int
    missing_minutes: int


@dataclass(frozen=True, slots=True)
class SeriesHealth:
    """One series in detail. Times are UTC seconds, `now_time` the exchange's; `first_time`, `head_time` and
    `lag_seconds` (since the head closed) are None when nothing is stored. The holes are ascending, the newest of them;
    so are the buckets, which have all closed. Of a series that is not derived there are none."""

    series_id: str
    timeframe_seconds: int
    now_time: int
    first_time: int | None
    head_time: int | None
    lag_seconds: int | None
    candle_count: int
    gap_count: int
    max_gap_seconds: int
    recent_gaps: Sequence[Hole]
    base_series_id: str
    base_bucket_completeness: Sequence[Bucket]


class SeriesHealthService:
    """Looks into series. `now_s`: what time it is on the exchange of a series, in UTC seconds; `at_work`: the spans of
    a base series that somebody heals, or soon will; `check_known` raises `UnknownSeries`."""

    def __init__(
        self,
        *,
        database: Database,
        base_of: Callable[[SeriesId], SeriesId],
        check_known: Callable[[SeriesId], Awaitable[None]],
        now_s: Callable[[SeriesId], float],
        at_work: Callable[[SeriesId], Sequence[Span]],
    ) -> None:
        self._database = database
        self._base_of = base_of
        self._check_known = check_known
        self._now_s = now_s
        self._at_work = at_work

    async def look(self, series: SeriesId, max_recent_gaps: int, recent_base_buckets: int) -> SeriesHealth:
        """The detail of `series`. Raises `UnknownSeries` when it is neither stored nor listed, and `StoreError`."""
        base = self._base_of(series)

        def read(store: CandleStore) -> tuple[Span | None, list[Gap], int, Span | None, list[Gap]]:
            count = store.count_after(series, -1, MAX_COUNTED_CANDLES)
            return store.span(series), store.gaps(series), count, store.span(base), store.gaps(base)

        stored, ledger, count, base_stored, base_ledger = await self._database.read(read)
        if stored is None:
            await self._check_known(series)
        frame, now_time = series.timeframe, int(self._now_s(series))
        at_work: list[Span] = []
        buckets: Sequence[Bucket] = ()
        if base_stored is not None:
            at_work = widened(frame, clipped(self._at_work(base), Span(0, base_stored.end)))
        if base != series and base_stored is not None:
            opens = recent_opens(frame, base_stored, now_time, recent_base_buckets)
            buckets = completeness(frame, base.timeframe, base_stored, base_ledger, opens)
        found = holes(frame, ledger, at_work)
        return SeriesHealth(
            series_id=str(series),
            timeframe_seconds=frame.seconds,
            now_time=now_time,
            first_time=None if stored is None else stored.start,
            head_time=None if stored is None else frame.shift(stored.end, -1),
            lag_seconds=None if stored is None else max(0, now_time - stored.end),
            candle_count=count,
            gap_count=len(found),
            max_gap_seconds=max((hole.delta_seconds for hole in found), default=0),
            recent_gaps=found[max(0, len(found) - max_recent_gaps) :],
            base_series_id=str(base),
            base_bucket_completeness=buckets,
        )


def holes(timeframe: Timeframe, ledger: Iterable[Gap], at_work: Sequence[Span]) -> list[Hole]:
    """The holes of a ledger, ascending: neighbouring rows, which differ in what is known of them, are one. What is
    unknown and wholly among the spans `at_work` is healing."""
    found: list[Hole] = []
    for gap in ledger:
        state = gap.state
        if state is GapState.UNKNOWN and not without([gap.span], at_work):
            state = GapState.HEALING
        before, missing = timeframe.shift(gap.start, -1), timeframe.count(gap.start, gap.end)
        if found and found[-1].next_time == gap.start:
            last = found.pop()
            before, missing = last.prev_time, missing + last.missing_candles
            state = min(last.state, state, key=_WORST_FIRST.index)
        found.append(Hole(before, gap.end, gap.end - before, missing, state))
    return found


_WORST_FIRST = (GapState.LOST, GapState.UNKNOWN, GapState.HEALING, GapState.CONFIRMED_EMPTY)


def recent_opens(timeframe: Timeframe, base_stored: Span, now: int, most: int) -> list[int]:
    """The open times of the newest `most` buckets that have closed at `now` and do not lie wholly before the first
    stored base candle; ascending."""
    opens: list[int] = []
    newest = timeframe.latest_closed(now)
    while len(opens) < most and newest >= 0 and timeframe.next(newest) > base_stored.start:
        opens.append(newest)
        newest = timeframe.shift(newest, -1)
    return opens[::-1]


def completeness(
    timeframe: Timeframe, base: Timeframe, stored: Span, ledger: Sequence[Gap], opens: Iterable[int]
) -> list[Bucket]:
    """How much of each bucket's base candles is stored: what lies in the stored span and is no gap."""
    buckets = []
    for start in opens:
        bucket = Span(start, timeframe.next(start))
        present = without(clipped([stored], bucket), [gap.span for gap in ledger])
        expected = (bucket.end - bucket.start) // 60
        actual = candle_count(base, present) * base.seconds // 60
        buckets.append(Bucket(start, expected, actual, expected - actual))
    return buckets
