"""Derived candles: the roll-up of closed and forming base candles along a fixed chain.

Floating-point addition depends on its order, so the order is fixed: every derived candle is the left-to-right fold of
the candles of its parent timeframe, each of which is such a fold itself, down to the base. A link that is not stored is
folded in memory in the same order; so the bits are a function of the base candles alone, not of which timeframes are
switched on, of batches or of restarts.

    1m -> 5m -> 15m -> 1h -> 4h -> 1d -> 1w, 1M, 3d        3m <- 1m, 30m <- 15m, 2h 6h <- 1h, 8h 12h <- 4h

Any other timeframe is a leaf: no timeframe is folded from it, so that it changes no bit of another. Its parent is the
longest of the fifteen timeframes of exchanges that divides it.

    10m 20m <- 5m    6m 9m <- 3m    45m <- 15m    90m <- 30m    3h <- 1h    2d 14d <- 1d

A bucket is the span of one derived candle. It is complete when each of its base open times is stored or confirmed
empty; only then is its candle closed. A bucket that is wholly empty has no candle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter

from klinesync.core.candle import Candle, Forming
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S, Timeframe

# Most candles of an exchange that one native candle is folded from: 288m of 3m candles are 96. They are not stored.
MAX_NATIVE_PARTS = 100

CHAIN = tuple(Timeframe.parse(code) for code in ("1m", "5m", "15m", "1h", "4h", "1d"))


# --- the chain


def divides(part: Timeframe, whole: Timeframe) -> bool:
    """Whether every candle of `whole` is made of whole candles of `part`, and of more than one."""
    if not part.step_s:
        return False
    step_s = whole.step_s or DAY_S  # a month is made of whole days
    return (
        whole.seconds > part.step_s
        and step_s % part.step_s == 0
        and (whole.offset_s - part.offset_s) % part.step_s == 0
    )


@cache
def parent_of(target: Timeframe, base: Timeframe) -> Timeframe:
    """The timeframe whose candles are folded into `target`: the longest one of the chain from `base` that divides it,
    and for a leaf that no exchange has the longest of the fifteen.

    Raises `Rejected` when `target` cannot be computed from `base`.
    """
    if target == base:
        raise Rejected(f"{target} is the base timeframe: its candles are ingested, not derived")
    if not divides(base, target):
        why = f"{base} does not divide {target}"
        if base.step_s and target.step_s % base.step_s == 0 and target.step_s > base.step_s:
            why = "they open at other times"
        raise Rejected(f"{target} candles cannot be made of {base} candles, because {why}")
    links = CHAIN if target.code in Timeframe.known else Timeframe.known.values()
    parents = [base, *(link for link in links if divides(base, link) and divides(link, target))]
    return max(parents, key=lambda link: link.step_s)


def native_parts(target: Timeframe, base: Timeframe) -> tuple[Timeframe, ...]:
    """The timeframes whose candles of an exchange give native candles of `target`, best first: `target` itself, then
    those of the fifteen that divide it and are no shorter than `base`, the longest first."""
    parts = (
        part
        for part in Timeframe.known.values()
        if part.step_s >= base.step_s and divides(part, target) and target.seconds <= MAX_NATIVE_PARTS * part.step_s
    )
    return (target, *sorted(parts, key=lambda part: part.step_s, reverse=True))


@cache
def chain_to(target: Timeframe, base: Timeframe) -> tuple[Timeframe, ...]:
    """The links from `base`, exclusive, to `target`, inclusive. Raises `Rejected`."""
    parent = parent_of(target, base)
    return (target,) if parent == base else (*chain_to(parent, base), target)


@cache
def links_to(targets: tuple[Timeframe, ...], base: Timeframe) -> tuple[Timeframe, ...]:
    """All links from `base`, exclusive, to all `targets`, each once and after its parent. Raises `Rejected`."""
    links = {link for target in targets for link in chain_to(target, base)}
    return tuple(sorted(links, key=lambda link: (link.seconds, link.code)))


# --- closed candles


def fold(target: Timeframe, parts: Iterable[Candle]) -> list[Candle]:
    """One link: ascending candles of `target`'s parent timeframe, one pass, into ascending candles of `target`.

    Open of the first, highest high, lowest low, close of the last; volumes and trades added from left to right (by `+`:
    the built-in `sum` rounds otherwise from Python 3.12 on), None where a part has None. Buckets at both ends hold what
    `parts` hold of them.
    """
    folded: list[Candle] = []
    floor, next_ = target.floor, target.next
    bucket, end = 0, -1  # times are not negative: the first part begins a bucket
    open_ = high = low = close = volume = 0.0
    quote: float | None = None
    trades: int | None = None
    taker: float | None = None
    taker_quote: float | None = None
    for part in parts:
        time, _, part_high, part_low, part_close, part_volume, part_quote, part_trades, part_taker, part_taker_quote = (
            part
        )
        if time < end:
            if part_high > high:
                high = part_high
            if part_low < low:
                low = part_low
            close = part_close
            volume += part_volume
            quote = None if quote is None or part_quote is None else quote + part_quote
            trades = None if trades is None or part_trades is None else trades + part_trades
            taker = None if taker is None or part_taker is None else taker + part_taker
            taker_quote = None if taker_quote is None or part_taker_quote is None else taker_quote + part_taker_quote
            continue
        if end >= 0:
            folded.append(Candle(bucket, open_, high, low, close, volume, quote, trades, taker, taker_quote))
        bucket = floor(time)
        end = next_(bucket)
        _, open_, high, low, close, volume, quote, trades, taker, taker_quote = part
    if end >= 0:
        folded.append(Candle(bucket, open_, high, low, close, volume, quote, trades, taker, taker_quote))
    return folded


def complete(target: Timeframe, folded: Sequence[Candle], unproven: Sequence[Span]) -> list[Candle]:
    """The candles whose buckets are complete, and which may therefore be stored.

    target: the derived timeframe.
    folded: candles of `target`, ascending.
    unproven: spans of base open times that are neither stored nor confirmed empty (ascending, disjoint), for all of the
        buckets; `gaps.unproven` computes these from the ledger, `missing_spans` from the candles.
    """
    if not unproven:
        return list(folded)
    whole: list[Candle] = []
    for candle in folded:
        at = bisect_right(unproven, candle.time, key=_end)
        if at == len(unproven) or unproven[at].start >= target.next(candle.time):
            whole.append(candle)
    return whole


def touched(target: Timeframe, times: Iterable[int]) -> list[int]:
    """The opens of the buckets of `target` that base candles at `times` belong to, ascending, each once."""
    opens: set[int] = set()
    open_time = end = -1
    for time in times:
        if not open_time <= time < end:  # neighbours mostly share a bucket
            open_time = target.floor(time)
            end = target.next(open_time)
            opens.add(open_time)
    return sorted(opens)


# --- forming candles


class FormingBuckets:
    """The buckets in progress of one base series, and the forming candles that they show.

    `close` takes each closed base candle. `show` merges a forming candle in the order of the closed fold, so that the
    last minute of a bucket, with its final values, shows the bits of the closed candle. Both cost a few operations a
    link, whatever the length of the buckets. After a restart, a correction or a late candle, `resume` reads the state
    again.
    """

    __slots__ = ("_base", "_head", "_links")

    def __init__(self, series: SeriesId, targets: Sequence[Timeframe]) -> None:
        """Raises `Rejected` when a target cannot be computed from the timeframe of `series`."""
        base = series.timeframe
        links = links_to(tuple(targets), base)
        order = (*links, base)
        self._base = base
        self._head = -1
        self._links = tuple(
            _Link(link, order.index(parent_of(link, base)), series.with_timeframe(link) if link in targets else None)
            for link in links
        )

    def resume(self, head: int | None, read: Callable[[Timeframe, int, int], Iterable[Candle]]) -> None:
        """Read the state after the closed base candle at `head`.

        head: open time of the newest stored base candle; None when nothing is stored.
        read: `read(timeframe, first, end)` returns the closed candles of the base or of a link that open in
            `[first, end)`, ascending: less than one bucket of its child (a month's days, a day's 4h candles …). Candles
            that are not stored, of a link that is switched off or because of a hole, are folded from the base.
        """
        self._head = -1 if head is None else head
        for link in self._links:
            link.parts, link.open, link.end = None, -1, -1
            if head is None:
                continue
            link.enter(head)
            if link.parent_at == len(self._links):
                parent, end = self._base, self._base.next(head)
            else:
                parent, end = self._links[link.parent_at].timeframe, self._links[link.parent_at].open
            if link.open < end:
                for folded in fold(link.timeframe, read(parent, link.open, end)):
                    link.parts = folded

    def close(self, candle: Candle) -> bool:
        """A base candle was stored. False for a correction or a late fill within a bucket in progress: the state is
        unchanged then, and the caller must call `resume`."""
        time = candle.time
        if time <= self._head:
            return all(time < link.open for link in self._links)
        self._head = time
        ended: list[Candle | None] = [None] * (len(self._links) + 1)  # by link: the bucket that ends with this candle
        for at, link in enumerate(self._links):
            link.add(ended[link.parent_at])
            if time >= link.end:
                ended[at], link.parts = link.parts, None
                link.enter(time)
            if link.parent_at == len(self._links):
                link.add(candle)
        return True

    def show(self, forming: Candle) -> list[Forming]:
        """The forming candle of each target, the shortest timeframe first. The list is empty when `forming` is not
        newer than the head, because its minute is closed then; a target that still waits for a closed minute is left
        out."""
        time = forming.time
        if time <= self._head:
            return []
        due = self._base.next(self._head) if self._head >= 0 else -1
        ended: list[Candle | None] = [None] * (len(self._links) + 1)
        live = [forming] * (len(self._links) + 1)  # by link: its bucket in progress, with `forming` in it
        shown: list[Forming] = []
        for at, link in enumerate(self._links):
            open_time, parts, over = link.open, link.parts, ended[link.parent_at]
            if over is not None:
                parts = over if parts is None else _merge(open_time, parts, over)
            if time >= link.end:
                ended[at], parts = parts, None
                open_time = link.timeframe.floor(time)
            part = live[link.parent_at]
            candle = Candle(open_time, *part[1:]) if parts is None else _merge(open_time, parts, part)
            live[at] = candle
            if link.series is not None and max(open_time, due) == time:
                shown.append(Forming(link.series, candle))
        return shown


class _Link:
    """The bucket in progress of one timeframe: `[open, end)`, and the fold of its closed parts."""

    __slots__ = ("end", "open", "parent_at", "parts", "series", "timeframe")

    def __init__(self, timeframe: Timeframe, parent_at: int, series: SeriesId | None) -> None:
        self.timeframe = timeframe
        self.parent_at = parent_at  # the parent's place among the links; the base's is behind the last
        self.series = series  # None: a link of the chain that is not a target
        self.open = self.end = -1
        self.parts: Candle | None = None

    def enter(self, time: int) -> None:
        """Begin the bucket that holds `time`."""
        self.open = self.timeframe.floor(time)
        self.end = self.timeframe.next(self.open)

    def add(self, part: Candle | None) -> None:
        """Fold a closed part into the bucket in progress."""
        if part is not None:
            self.parts = part if self.parts is None else _merge(self.open, self.parts, part)


def _merge(time: int, folded: Candle, part: Candle) -> Candle:
    """One step of the fold, as in `fold`, of the bucket at `time`."""
    _, open_, high, low, _, volume, quote, trades, taker, taker_quote = folded
    _, _, part_high, part_low, close, part_volume, part_quote, part_trades, part_taker, part_taker_quote = part
    if part_high > high:
        high = part_high
    if part_low < low:
        low = part_low
    return Candle(
        time,
        open_,
        high,
        low,
        close,
        volume + part_volume,
        None if quote is None or part_quote is None else quote + part_quote,
        None if trades is None or part_trades is None else trades + part_trades,
        None if taker is None or part_taker is None else taker + part_taker,
        None if taker_quote is None or part_taker_quote is None else taker_quote + part_taker_quote,
    )


_end = attrgetter("end")
