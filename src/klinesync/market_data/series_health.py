"""SeriesHealthService: details of a series for debugging: its span, its gaps, its newest buckets.

`/api/market/health` judges a series; this service counts stored candles.
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

# Most candles that are counted, in the longest read of the debug API.
MAX_COUNTED_CANDLES = 10_000_000


@dataclass(frozen=True, slots=True)
class Hole:
    """Missing candles between the stored candles `prev_time` and `next_time`, which are `delta_seconds` apart. `state`:
    the worst state of its gaps."""

    prev_time: int
    next_time: int
    delta_seconds: int
    missing_candles: int
    state: GapState


@dataclass(frozen=True, slots=True)
class Bucket:
    """The stored base candles of a derived candle, in minutes."""

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
    """Details of series.

    database: the store.
    base_of: the base of a derived series; another series itself.
    check_known: raises `UnknownSeries` when the exchange does not list a series.
    now_s: the time of a series' exchange, UTC seconds.
    working_on: the spans of a base series that are being read or wait.
    """

    def __init__(
        self,
        *,
        database: Database,
        base_of: Callable[[SeriesId], SeriesId],
        check_known: Callable[[SeriesId], Awaitable[None]],
        now_s: Callable[[SeriesId], float],
        working_on: Callable[[SeriesId], Sequence[Span]],
    ) -> None:
        self._database = database
        self._base_of = base_of
        self._check_known = check_known
        self._now_s = now_s
        self._working_on = working_on

    async def look(self, series: SeriesId, max_recent_gaps: int, recent_base_buckets: int) -> SeriesHealth:
        """Details of a series.

        series: the series.
        max_recent_gaps: most gaps of the answer.
        recent_base_buckets: most buckets of the answer.

        Raises `UnknownSeries` when the series is neither stored nor listed, and `StoreError`.
        """
        base = self._base_of(series)

        def read(store: CandleStore) -> tuple[Span | None, list[Gap], int, Span | None, list[Gap]]:
            count = store.count_after(series, -1, MAX_COUNTED_CANDLES)
            return store.span(series), store.gaps(series), count, store.span(base), store.gaps(base)

        stored, ledger, count, base_stored, base_ledger = await self._database.read(read)
        if stored is None:
            await self._check_known(series)
        frame, now_time = series.timeframe, int(self._now_s(series))
        working_on: list[Span] = []
        buckets: Sequence[Bucket] = ()
        if base_stored is not None:
            working_on = widened(frame, clipped(self._working_on(base), Span(0, base_stored.end)))
        if base != series and base_stored is not None:
            opens = recent_opens(frame, base_stored, now_time, recent_base_buckets)
            buckets = completeness(frame, base.timeframe, base_stored, base_ledger, opens)
        gaps = holes(frame, ledger, working_on)
        return SeriesHealth(
            series_id=str(series),
            timeframe_seconds=frame.seconds,
            now_time=now_time,
            first_time=None if stored is None else stored.start,
            head_time=None if stored is None else frame.shift(stored.end, -1),
            lag_seconds=None if stored is None else max(0, now_time - stored.end),
            candle_count=count,
            gap_count=len(gaps),
            max_gap_seconds=max((hole.delta_seconds for hole in gaps), default=0),
            recent_gaps=gaps[max(0, len(gaps) - max_recent_gaps) :],
            base_series_id=str(base),
            base_bucket_completeness=buckets,
        )


def holes(timeframe: Timeframe, ledger: Iterable[Gap], working_on: Sequence[Span]) -> list[Hole]:
    """The holes of a ledger, ascending; adjacent gaps of different states are joined.

    timeframe: of the series.
    ledger: its gap ledger.
    working_on: spans that are being read or wait; an unknown gap inside them is `healing`.
    """
    joined: list[Hole] = []
    for gap in ledger:
        state = gap.state
        if state is GapState.UNKNOWN and not without([gap.span], working_on):
            state = GapState.HEALING
        before, missing = timeframe.shift(gap.start, -1), timeframe.count(gap.start, gap.end)
        if joined and joined[-1].next_time == gap.start:
            last = joined.pop()
            before, missing = last.prev_time, missing + last.missing_candles
            state = min(last.state, state, key=_WORST_FIRST.index)
        joined.append(Hole(before, gap.end, gap.end - before, missing, state))
    return joined


_WORST_FIRST = (GapState.LOST, GapState.UNKNOWN, GapState.HEALING, GapState.CONFIRMED_EMPTY)


def recent_opens(timeframe: Timeframe, base_stored: Span, now: int, most: int) -> list[int]:
    """Open times of the newest closed buckets, ascending; without buckets wholly before the first stored base candle.

    timeframe: of the derived series.
    base_stored: the stored span of its base.
    now: UTC seconds of the exchange.
    most: most buckets.
    """
    opens: list[int] = []
    newest = timeframe.latest_closed(now)
    while len(opens) < most and newest >= 0 and timeframe.next(newest) > base_stored.start:
        opens.append(newest)
        newest = timeframe.shift(newest, -1)
    return opens[::-1]


def completeness(
    timeframe: Timeframe, base: Timeframe, stored: Span, ledger: Sequence[Gap], opens: Iterable[int]
) -> list[Bucket]:
    """The stored base candles of each bucket: those in the stored span and in no gap.

    timeframe, base: of the derived series and of its base.
    stored, ledger: the stored span and the gap ledger of the base.
    opens: open times of the buckets.
    """
    buckets = []
    for start in opens:
        bucket = Span(start, timeframe.next(start))
        present = without(clipped([stored], bucket), [gap.span for gap in ledger])
        expected = (bucket.end - bucket.start) // 60
        actual = candle_count(base, present) * base.seconds // 60
        buckets.append(Bucket(start, expected, actual, expected - actual))
    return buckets
