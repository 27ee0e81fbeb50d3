"""The expected results of the structure factors, computed from their definitions over the whole history: slow and
simple.

Each function gets all candles up to the queried candle, and keeps no state.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.factor.graph import FactorGraph, States
from klinesync.factor.pivot import MINOR_KEPT
from klinesync.factor.plugin import Event, FactorSettings, Json
from klinesync.factor.structure import structure

Row = dict[str, Json]
Point = tuple[int, float]
Line = tuple[Point, Point, int]  # from, to, direction


def walk(seed: int, count: int, *, step: int = 2, wick: int = 2, holes: bool = True) -> list[Candle]:
    """A random walk on whole prices, so that there are ties and plateaus, with holes in time."""
    dice = random.Random(seed)
    candles = []
    time, price, drift = 0, 100, 0
    for _ in range(count):
        if dice.random() < 0.05:
            drift = dice.randint(-1, 1)
        still = dice.random() < 0.2
        close = price if still else price + drift + dice.randint(-step, step)
        up, down = (0, 0) if still else (dice.randint(0, wick), dice.randint(0, wick))
        if dice.random() < 0.03:  # a candle that is an extreme on both sides
            up, down = up + 4 * wick, down + 4 * wick
        high, low = max(price, close) + up, min(price, close) - down
        candles.append(Candle(time, float(price), float(high), float(low), float(close), 1.0))
        price = close
        time += 60 * (dice.randint(2, 9) if holes and dice.random() < 0.05 else 1)
    return candles


@st.composite
def small_markets(draw: st.DrawFn) -> list[Candle]:
    """Few candles, drawn one by one, so that failures shrink."""
    moves = st.tuples(st.integers(-3, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from([60, 60, 60, 180]))
    candles = []
    time, price = 0, 0
    for move, up, down, after in draw(st.lists(moves, max_size=60)):
        close = price + move
        high, low = max(price, close) + up, min(price, close) - down
        candles.append(Candle(time, float(price), float(high), float(low), float(close), 0.0))
        time, price = time + after, close
    return candles


# Long enough for zones to form and die.
markets = st.one_of(small_markets(), st.builds(walk, st.integers(0, 10_000), st.integers(0, 260)))
windows = st.integers(1, 4).flatmap(lambda major: st.tuples(st.just(major), st.integers(1, major)))


def structure_graph(major: int, minor: int) -> FactorGraph:
    """The four factors."""
    return FactorGraph(structure(FactorSettings(major, minor)))


def told(graph: FactorGraph, candles: Sequence[Candle]) -> list[tuple[dict[str, list[Event]], dict[str, Row], States]]:
    """Events, heads and states at each candle, one by one."""
    states = graph.seed()
    out = []
    for candle in candles:
        states, events = graph.advance(states, candle)
        out.append((events, graph.heads(states, candle), states))
    return out


# --- pivot


def majors(candles: Sequence[Candle], window: int) -> list[Row]:
    """The pivots in the order of visible_time; resistance first on one candle."""
    rows: list[Row] = []
    for i in range(window, len(candles) - window):
        left, middle, right = candles[i - window : i], candles[i], candles[i + 1 : i + window + 1]
        if all(middle.high > c.high for c in left) and all(middle.high >= c.high for c in right):
            rows.append(_pivot(middle.time, middle.high, "resistance", right[-1].time, window))
        if all(middle.low < c.low for c in left) and all(middle.low <= c.low for c in right):
            rows.append(_pivot(middle.time, middle.low, "support", right[-1].time, window))
    return rows


def minors(candles: Sequence[Candle], major_window: int, window: int) -> list[Row]:
    """The pivots of the head after the last candle."""
    pivots = majors(candles, major_window)
    last_major = pivots[-1]["pivot_time"] if pivots else 0
    rows: list[Row] = []
    assert isinstance(last_major, int)
    for i in range(window, len(candles) - window):
        around, middle = candles[i - window : i + window + 1], candles[i]
        if around[0].time < last_major:
            continue
        if middle.high == max(c.high for c in around):
            rows.append(_pivot(middle.time, middle.high, "resistance", around[-1].time, window))
        if middle.low == min(c.low for c in around):
            rows.append(_pivot(middle.time, middle.low, "support", around[-1].time, window))
    return rows[-MINOR_KEPT:]


def _pivot(time: int, price: float, direction: str, visible_time: int, window: int) -> Row:
    return {
        "pivot_time": time,
        "pivot_price": price,
        "direction": direction,
        "visible_time": visible_time,
        "window": window,
    }


# --- pen


def walked(candles: Sequence[Candle], window: int) -> tuple[list[Row], list[tuple[int, float, str]]]:
    """Confirmed pens, and the effective pivots (time, price, direction)."""
    pens: list[Row] = []
    effective: list[tuple[int, float, str]] = []
    for row in majors(candles, window):
        time, price, direction = row["pivot_time"], row["pivot_price"], row["direction"]
        assert isinstance(time, int)
        assert isinstance(price, float)
        assert isinstance(direction, str)
        if effective and effective[-1][2] == direction:
            standing = effective[-1][1]
            if price > standing if direction == "resistance" else price < standing:
                effective[-1] = (time, price, direction)
            continue
        effective.append((time, price, direction))
        if len(effective) >= 3:
            a, b, _ = effective[-3:]
            pens.append(pen_row((a[:2], b[:2], _direction(b[2])), row["visible_time"]))
    return pens, effective


def confirmed_pens(candles: Sequence[Candle], window: int) -> list[Row]:
    return walked(candles, window)[0]


def extending_and_candidate(candles: Sequence[Candle], window: int) -> tuple[Line | None, Line | None]:
    """The pens of the head after the last candle."""
    _, effective = walked(candles, window)
    if len(effective) < 2:
        return None, None
    (a_time, a_price, _), (_, _, b_direction) = effective[-2:]
    direction = _direction(b_direction)
    end = _extreme(candles, a_time, direction)
    if end is None:
        return None, None
    back = _extreme(candles, end[0], -direction)
    extending = ((a_time, a_price), end, direction) if end[1] != a_price else None
    candidate = (end, back, -direction) if back is not None and back[1] != end[1] else None
    return extending, candidate


def _extreme(candles: Sequence[Candle], after: int, direction: int) -> Point | None:
    """The earliest highest high (or lowest low) after a time."""
    points = [(c.time, c.high if direction == 1 else c.low) for c in candles if c.time > after]
    best = max((direction * price for _, price in points), default=None)
    return next((point for point in points if direction * point[1] == best), None)


def _direction(of_end: str) -> int:
    return 1 if of_end == "resistance" else -1


def pen_row(line: Line, visible_time: Json) -> Row:
    (start_time, start_price), (end_time, end_price), direction = line
    return {
        "start_time": start_time,
        "end_time": end_time,
        "start_price": start_price,
        "end_price": end_price,
        "direction": direction,
        "visible_time": visible_time,
    }


# --- zhongshu


def zones(pens: Sequence[Row]) -> tuple[list[Row], list[Row], list[tuple[Json, Row]]]:
    """The dead zones, the living zone (none or one), and for each formed zone its time and its entering pen."""
    dead: list[Row] = []
    formed: list[tuple[Json, Row]] = []
    search_from = 0
    while True:
        first = next((k for k in range(search_from, len(pens) - 3) if _overlap(pens[k : k + 4])), None)
        if first is None:
            return dead, [], formed
        building = pens[first + 1 : first + 4]
        zg, zd = min(_high(pen) for pen in building), max(_low(pen) for pen in building)
        zone: Row = {
            "start_time": building[0]["start_time"],
            "end_time": building[-1]["end_time"],
            "zg": zg,
            "zd": zd,
            "formed_time": building[-1]["visible_time"],
            "formed_reason": "pen_confirmed",
            "death_time": None,
            "visible_time": building[-1]["visible_time"],
            "_entry_direction": pens[first]["direction"],
        }
        formed.append((zone["formed_time"], pens[first]))
        killer = next((k for k in range(first + 4, len(pens)) if _low(pens[k]) > zg or _high(pens[k]) < zd), None)
        lived = pens[first + 4 : killer]
        if lived:
            zone["end_time"] = lived[-1]["end_time"]
        if killer is None:
            return dead, [zone], formed
        zone["death_time"] = zone["visible_time"] = pens[killer]["visible_time"]
        dead.append(zone)
        search_from = killer - 1


def _overlap(pens: Sequence[Row]) -> bool:
    return max(_low(pen) for pen in pens) <= min(_high(pen) for pen in pens)


def _ends(pen: Row) -> tuple[float, float]:
    start, end = pen["start_price"], pen["end_price"]
    assert isinstance(start, float)
    assert isinstance(end, float)
    return start, end


def _high(pen: Row) -> float:
    return max(_ends(pen))


def _low(pen: Row) -> float:
    return min(_ends(pen))


def length(pen: Row) -> float:
    """The zone's edges, in price."""
    return _high(pen) - _low(pen)


# --- anchor


def switches(candles: Sequence[Candle], window: int) -> tuple[list[Row], Row | None]:
    """All switches, and the anchor after the last candle."""
    said: list[Row] = []
    anchor: tuple[str, Row] | None = None
    last_candidate: Line | None = None
    for count in range(1, len(candles) + 1):
        known = candles[:count]
        now = known[-1].time
        pens = confirmed_pens(known, window)
        _, candidate = extending_and_candidate(known, window)
        evidence = [("confirmed", pen) for pen in pens if pen["visible_time"] == now]
        if candidate is not None and candidate != last_candidate:
            evidence.append(("candidate", pen_row(candidate, now)))
        last_candidate = candidate
        entries = [("confirmed", entering) for time, entering in zones(pens)[2] if time == now]

        if anchor is not None:
            anchor = [anchor, *(one for one in (*entries, *evidence) if one[1]["start_time"] == _start(anchor))][-1]
        others = [one for one in evidence if _start(one) != _start(anchor)]
        strong = [one for one in others if anchor is None or length(one[1]) > length(anchor[1])]
        entries = [entry for entry in entries if _start(entry) != _start(anchor)]
        if strong:
            longest = max(length(one[1]) for one in strong)
            new, reason = next(one for one in strong if length(one[1]) == longest), "strong_pen"
        elif entries:
            new, reason = entries[0], "zhongshu_entry"
        else:
            continue
        said.append(
            {
                "switch_time": now,
                "reason": reason,
                "old_anchor": None if anchor is None else ref(anchor),
                "new_anchor": ref(new),
                "visible_time": now,
            }
        )
        anchor = new
    return said, None if anchor is None else ref(anchor)


def _start(one: tuple[str, Row] | None) -> Json:
    return None if one is None else one[1]["start_time"]


def ref(one: tuple[str, Row]) -> Row:
    kind, pen = one
    return {
        "kind": kind,
        "start_time": pen["start_time"],
        "end_time": pen["end_time"],
        "direction": pen["direction"],
    }
