"""Invariants of factors and overlays, while the world runs and after it has settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import fsum, isclose

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import DAY_S
from klinesync.factor.columns import Columns
from klinesync.factor.graph import Said, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.plugin import Seen
from klinesync.overlay.instruction import Instruction, Point
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.records import Ledger
from sim.checkers import MOST_SENTENCES, Witness
from sim.service import Service

# The states of one in so many candles of a series are compared, and those of the last one.
STATES_EVERY = 13


@dataclass(frozen=True, slots=True)
class Look:
    """A reader's view of a series' ledger at one moment."""

    ledger: Ledger
    events: list[Said]
    drawings: list[Instruction]


class LedgerWatch:
    """Reads the ledgers again and again: heads are in order, and no value that was read changes within an epoch."""

    def __init__(self) -> None:
        self._seen: dict[SeriesId, Look] = {}
        # Ledgers with a change within an epoch, since the previous read.
        self.rewinds = 0

    def look(self, witness: Witness) -> list[str]:
        """Sentences about what is wrong now, or since the previous check."""
        wrong: list[str] = []
        for series, ledger in witness.ledgers().items():
            before = self._seen.get(series)
            wrong += [f"{series}: {sentence}" for sentence in _disorder(ledger, witness.head(series))]
            if before is not None and before.ledger.record_id == ledger.record_id:
                if before.ledger != ledger:
                    wrong.append(f"{series}: {before.ledger} became {ledger} under the same record_id")
                continue
            look = Look(ledger, witness.events(series), witness.drawings(series))
            wrong += [f"{series}: {sentence}" for sentence in _beyond(look)]
            if before is not None:
                wrong += [f"{series}: {sentence}" for sentence in self._taken_back(before, look)]
            self._seen[series] = look
        wrong += [f"{series}: its ledger is gone" for series in self._seen.keys() - witness.ledgers().keys()]
        return wrong[:MOST_SENTENCES]

    def _taken_back(self, before: Look, look: Look) -> Iterable[str]:
        was, now = before.ledger, look.ledger
        if now.record_id < was.record_id or now.epoch < was.epoch:
            yield f"the ledger went back from {was} to {now}"
        if now.epoch > was.epoch:
            self.rewinds += 1
            return
        for what, earlier, later in (
            ("events", before.events, look.events),
            ("drawings", before.drawings, look.drawings),
        ):
            if list(later[: len(earlier)]) != list(earlier):
                yield f"{what} that could be read are taken back, and the epoch is {now.epoch} still"
        if _behind(now.factor_head, was.factor_head) or _behind(now.overlay_head, was.overlay_head):
            yield f"the heads went back from {was} to {now}, and the epoch is {now.epoch} still"


def _behind(one: int | None, other: int | None) -> bool:
    return (-1 if one is None else one) < (-1 if other is None else other)


def _disorder(ledger: Ledger, head: int | None) -> Iterable[str]:
    if _behind(head, ledger.factor_head):
        yield f"its factors are at {ledger.factor_head}, its candles at {head}"
    if _behind(ledger.factor_head, ledger.overlay_head):
        yield f"its overlays are at {ledger.overlay_head}, its factors at {ledger.factor_head}"


def _beyond(look: Look) -> Iterable[str]:
    ledger = look.ledger
    if look.events and _behind(ledger.factor_head, _visible_time(look.events[-1])):
        yield f"an event behind the factors' head {ledger.factor_head}: {look.events[-1]}"
    if look.drawings and _behind(ledger.overlay_head, look.drawings[-1].visible_time):
        yield f"a drawing behind the overlays' head {ledger.overlay_head}: {look.drawings[-1]}"
    numbers = [drawing.version_id for drawing in look.drawings]
    if numbers != list(range(1, ledger.version_id + 1)):
        yield f"the drawings' numbers are {numbers}, and {ledger.version_id} is the newest"


def _visible_time(said: Said) -> int:
    time = said.event["visible_time"]
    assert isinstance(time, int)
    return time


def check_ledgers(witness: Witness, service: Service) -> list[str]:
    """Settled: factors and overlays of every series are at its head, and equal those computed from its stored candles
    one by one. A suspended plugin has stopped somewhere, and is left out."""
    runtime = service.runtime
    if runtime is None:
        return ["the service does not run"]
    reader = runtime.market_data.factors
    step, indicators = reader._step, reader._indicators
    wrong = [f"{series}: its ledger is behind: {lag}" for series, lag in step.behind().items()]
    ledgers = witness.ledgers()
    for series in witness.series():
        candles = witness.candles(series)
        if not candles or wrong:
            continue
        ledger, head = ledgers.get(series), candles[-1].time
        if ledger is None or (ledger.factor_head, ledger.overlay_head) != (head, head) or not step.computed(ledger):
            wrong.append(f"{series}: its ledger is {ledger}, and {head} is the head")
            continue
        wrong += [f"{series}: {sentence}" for sentence in _differences(witness, series, candles, step, indicators)]
        points = reader._points(witness.store, series, candles)
        wrong += [f"{series}: {sentence}" for sentence in _other_numbers(points, candles)]
    return wrong[:MOST_SENTENCES]


def _differences(
    witness: Witness, series: SeriesId, candles: Sequence[Candle], step: LedgerStep, indicators: Sequence[Indicator]
) -> Iterable[str]:
    running = step.factors.names
    said, states = _one_by_one(series, candles, step, indicators)
    stored = [event for event in witness.events(series) if event.factor in running]
    yield from _first_difference("event", stored, said)
    drawn = step.overlays.draw(said)
    drawings = [Instruction.numbered(number, drawing) for number, drawing in enumerate(drawn, 1)]
    yield from _first_difference("drawing", witness.drawings(series), drawings)
    times = [candle.time for candle in candles]
    for time in {*times[::STATES_EVERY], times[-1]}:
        found = step.states.at(witness.store, series, time)
        if found != states[time]:
            yield f"at {time} the states are {found}, and {states[time]} is what the candles give"


def _other_numbers(points: Mapping[str, Sequence[Point]], candles: Sequence[Candle]) -> Iterable[str]:
    """Order flow and volume of each day, summed here from the candles, which equal the exchange's."""
    cvd: dict[int, float] = {}
    vwap: dict[int, float] = {}
    ratio: dict[int, float] = {}
    for _, of_day in groupby(candles, key=lambda candle: candle.time // DAY_S):
        day = list(of_day)
        for count, candle in enumerate(day, 1):
            bought = [one.taker_buy_volume for one in day[:count]]
            told = [one for one in bought if one is not None]
            volume = fsum(one.volume for one in day[:count])
            if len(told) == count:
                cvd[candle.time] = fsum(told) - (volume - fsum(told))
            if volume > 0:
                traded = (sum((one.high, one.low, one.close)) / 3 * one.volume for one in day[:count])
                vwap[candle.time] = fsum(traded) / volume
            if candle.volume > 0 and candle.taker_buy_volume is not None:
                ratio[candle.time] = candle.taker_buy_volume / candle.volume
    for name, expected in (("cvd", cvd), ("vwap", vwap), ("taker_ratio", ratio)):
        found = {point.time: point.value for point in points[name]}
        scale = max((abs(value) for value in expected.values()), default=0.0) + 1e-9
        if found.keys() != expected.keys():
            yield f"{name} has values at {sorted(found.keys() ^ expected.keys())} only here or there"
        elif any(not isclose(found[at], value, abs_tol=1e-9 * scale) for at, value in expected.items()):
            yield f"{name} is {found}, and {expected} is what the candles give"


def _one_by_one(
    series: SeriesId, candles: Sequence[Candle], step: LedgerStep, indicators: Sequence[Indicator]
) -> tuple[list[Said], dict[int, States]]:
    graph = step.factors
    columns = Columns.of(candles)
    values = {indicator.name: indicator.compute(series.timeframe, columns) for indicator in indicators}
    states, said, at = graph.seed(), list[Said](), dict[int, States]()
    for position, candle in enumerate(candles):
        seen = {
            name: Seen({key: array[position].item() for key, array in arrays.items()})
            for name, arrays in values.items()
        }
        states, some = graph.advance_many(states, [candle], [seen])
        said += some
        at[candle.time] = states
    return said, at


def _first_difference(what: str, stored: Sequence[object], expected: Sequence[object]) -> Iterable[str]:
    for number, (one, other) in enumerate(zip(stored, expected, strict=False)):
        if one != other:
            yield f"{what} {number} is {one}, and {other} is what the candles give"
            return
    if len(stored) != len(expected):
        yield f"{len(stored)} {what}s are stored, and {len(expected)} are what the candles give"
