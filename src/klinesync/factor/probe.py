"""A probe of factors at the start, with a few made candles: factors that break the contract are refused with a sentence
before they meet a real candle."""

from __future__ import annotations

from collections import defaultdict
from math import nan
from typing import NamedTuple

from klinesync.core.candle import OHLCV, Candle
from klinesync.factor.graph import FactorGraph, Said, States
from klinesync.factor.plugin import BadFactor, FactorFault, Seen, Upstream

# Two days, with and without order flow, with and without volume.
_CANDLES = (
    Candle(86_280, 1.0, 1.0, 1.0, 1.0, 0.0),
    Candle(86_340, 1.0, 1.5, 0.5, 1.25, 8.0, 9.0, 4, 6.0, 7.0),
    Candle(86_400, 1.25, 1.25, 1.0, 1.0, 2.0, 2.0, 1, 0.0, 0.0),
    Candle(86_460, 1.0, 2.0, 1.0, 2.0, 4.0),
    Candle(86_580, 2.0, 3.0, 2.0, 2.5, 0.0, 0.0, 0, 0.0, 0.0),
)
_UNPACKS_SIX = f"too many values to unpack (expected {OHLCV}"


def refuse_broken(graph: FactorGraph) -> None:
    """Raises `BadFactor` for a factor from before candles had order flow that unpacks six fields, and for a factor
    whose results are other ones when the same candles are computed again, or after a restart. Other faults are those of
    the first real candle, and are handled there."""
    try:
        first = _Computed.of(graph, restarts=False)
        again = _Computed.of(graph, restarts=True)
    except FactorFault as fault:
        if isinstance(fault.error, ValueError) and str(fault.error).startswith(_UNPACKS_SIX):
            what = f"it unpacks a candle into {OHLCV} values, and a candle has {len(Candle._fields)}"
            raise BadFactor(fault.factor, f"{what}; unpack candle.ohlcv, or read the fields by name") from fault
        refuse_broken(graph.without(fault.factor))
        return
    for name in graph.names:
        for what, same in (
            ("states", graph.same_state(name, first.states, again.states)),
            ("events", first.events_of(name) == again.events_of(name)),
            ("numbers", first.numbers_of(name) == again.numbers_of(name)),
        ):
            if not same:
                why = "results may follow from its state, the candle and upstream alone: no clock, no randomness"
                raise BadFactor(
                    name, f"it gives other {what} for the same candles; {why}, no attributes beside the state"
                )


class _Computed(NamedTuple):
    """The results of the candles: the states after them, the events, and the numbers after each."""

    states: States
    said: list[Said]
    numbers: list[dict[str, float]]

    @classmethod
    def of(cls, graph: FactorGraph, *, restarts: bool) -> _Computed:
        """`restarts`: states are encoded and decoded after each candle."""
        nothing_yet: Upstream = dict.fromkeys(graph.outside, Seen(defaultdict(lambda: nan)))
        computed = cls(graph.seed(), [], [])
        for candle in _CANDLES:
            states, said = graph.advance_many(computed.states, (candle,), (nothing_yet,))
            computed.said.extend(said)
            computed.numbers.append(graph.numbers(states, candle.time))
            computed = computed._replace(states=graph.restored(states) if restarts else states)
        return computed

    def events_of(self, factor: str) -> list[Said]:
        return [said for said in self.said if said.factor == factor]

    def numbers_of(self, factor: str) -> list[str]:
        """As text: NaN does not equal itself."""
        keys = (factor, f"{factor}.")
        return [
            repr({key: number for key, number in numbers.items() if key == keys[0] or key.startswith(keys[1])})
            for numbers in self.numbers
        ]
