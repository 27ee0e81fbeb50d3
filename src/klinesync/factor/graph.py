"""FactorGraph: factors in the order of their dependencies, advanced together over the closed candles of one series."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from heapq import heapify, heappop, heappush
from itertools import repeat
from math import isfinite
from typing import NamedTuple, TypeAlias

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.decoding import reason_of
from klinesync.factor.outputs import check_outputs, numbers_of
from klinesync.factor.plugin import (
    AnyFactor,
    BadFactor,
    Event,
    FactorFault,
    ForeignStates,
    Json,
    Seen,
    Upstream,
)

# The state of each factor, by name. A value: advancing makes a new one.
States: TypeAlias = Mapping[str, object]

# Largest integer of an event: readers keep numbers as 64-bit floats, which represent no larger integers exactly.
INTEGER_MAX = 2**53
# Largest encoded state, in bytes. States are stored with every checkpoint; a larger one grows with the history.
STATE_BYTES_MAX = 1_000_000


class Said(NamedTuple):
    """An event, and the factor that produced it."""

    factor: str
    event: Event


class FactorGraph:
    """Factors and their dependencies. The graph has no state of a series: states are passed in and returned.

    factors: in any order.
    outside: names of indicators, on which factors may depend too; the caller computes these.
    """

    def __init__(self, factors: Iterable[AnyFactor], outside: Collection[str] = ()) -> None:
        """Raises `BadFactor` for a duplicate name, an unknown dependency, a cycle of dependencies, a bad seed."""
        self._factors = _ordered(list(factors), outside)
        self._given = frozenset(outside)
        # Each after those that it depends on, otherwise in the order of their names.
        self.names = tuple(factor.name for factor in self._factors)
        # The indicators that the factors depend on.
        self.outside = self._given.intersection(name for factor in self._factors for name in factor.depends_on)
        # The factors whose results depend on the candles' order flow, directly or through others.
        self.flow_names = _reading_flow(self._factors)
        self.reads_flow = bool(self.flow_names)
        # Whether events may depend on order flow.
        self.flow_has_events = any(factor.has_events for factor in self._factors if factor.name in self.flow_names)
        # The outputs as readers know them: by factor, and of all factors.
        self.keys_by_factor = {factor.name: factor.output_keys for factor in self._factors}
        self.output_keys = tuple(key for keys in self.keys_by_factor.values() for key in keys)
        self._nodes = _nodes(self._factors)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoders = {factor.name: msgspec.msgpack.Decoder(factor.type_of_state()) for factor in self._factors}
        lines = {factor.name: _line(factor) for factor in self._factors}
        self._fingerprint = "\n".join(lines[name] for name in sorted(lines))
        self._digest = sha256(self._fingerprint.encode()).hexdigest()
        self._seed: States = {factor.name: self._first(factor) for factor in self._factors}

    def _first(self, factor: AnyFactor) -> object:
        try:
            first = factor.first()
            same = self._restored(factor.name, first) == first
        except BadFactor:
            raise
        except Exception as error:
            raise BadFactor(factor.name, f"its state cannot be stored: {type(error).__name__}: {error}") from error
        if not same:
            raise BadFactor(factor.name, "its state cannot be stored: its seed is another one when encoded and decoded")
        check_outputs(factor, first)
        return first

    def _restored(self, name: str, state: object) -> object:
        try:
            return self._decoders[name].decode(self._encoder.encode(state))
        except Exception as error:
            raise BadFactor(name, f"its state cannot be stored: {type(error).__name__}: {error}") from error

    def restored(self, states: States) -> States:
        """The states as they are after a restart. Raises `BadFactor` for a state that cannot be stored."""
        return {name: self._restored(name, states[name]) for name in self.names}

    def same_state(self, name: str, states: States, others: States) -> bool:
        """Whether the factor's state is the same in both. Raises what msgspec raises."""
        # Equal values may have other bytes (a set in another order), and equal bytes other values (NaN).
        one, other = states[name], others[name]
        return one == other or self._encoder.encode(one) == self._encoder.encode(other)

    @property
    def fingerprint(self) -> str:
        """Name, version, parameters and dependencies of all factors, a line each. Another fingerprint means another
        ledger."""
        return self._fingerprint

    def seed(self) -> States:
        """The states before the first candle of a series."""
        return self._seed

    def advance(
        self, states: States, candle: Candle, outside: Upstream | None = None
    ) -> tuple[States, dict[str, list[Event]]]:
        """The states after one more closed candle, and the events by factor, for the factors with events.

        states: before the candle.
        candle: the next closed candle.
        outside: the values of the indicators at the candle.

        Raises `FactorFault`; `states` are unchanged then.
        """
        states, said = self.advance_many(states, (candle,), None if outside is None else (outside,))
        events: dict[str, list[Event]] = {}
        for factor, event in said:
            events.setdefault(factor, []).append(event)
        return states, events

    def advance_many(
        self, states: States, candles: Sequence[Candle], outside: Sequence[Upstream] | None = None
    ) -> tuple[States, list[Said]]:
        """The states after all the candles, and the events in order: by candle, and within one in the order of `names`.

        The result is that of `advance` for each candle. `outside` has one entry a candle. Raises `FactorFault` for the
        first candle at which a factor fails; `states` are unchanged, and the candles before can be advanced over.
        """
        return self._fold(states, candles, outside, None)

    def fold_outputs(
        self, states: States, candles: Sequence[Candle], outside: Sequence[Upstream] | None = None
    ) -> tuple[States, dict[str, list[float]]]:
        """The states after all the candles, and each output at each candle, NaN where there is no value. Parameters and
        exceptions are those of `advance_many`."""
        lines: list[list[float]] = [[] for _ in self.output_keys]
        states, _ = self._fold(states, candles, outside, lines)
        return states, dict(zip(self.output_keys, lines, strict=True))

    def _fold(
        self,
        states: States,
        candles: Sequence[Candle],
        outside: Sequence[Upstream] | None,
        lines: Sequence[list[float]] | None,
    ) -> tuple[States, list[Said]]:
        """`advance_many`; appends the outputs at each candle to `lines`, in the order of `output_keys`."""
        nodes = self._nodes
        seen = [Seen(states[node.name]) for node in nodes]
        numbers: dict[int, tuple[float, ...]] = {}
        if lines is not None and candles:
            numbers = self._numbers(states, candles[0].time)
        said: list[Said] = []
        beside: Iterable[Upstream] = repeat(_NOTHING, len(candles)) if outside is None else outside
        for candle, beyond in zip(candles, beside, strict=True):
            for position, name, step, state_type, above, out_there, numbers_at, has_events in nodes:
                try:
                    upstream = {}
                    for other, other_position in above:
                        upstream[other] = seen[other_position]
                    for other in out_there:
                        upstream[other] = beyond[other]
                    before = seen[position]
                    state, events = step(before.state, candle, upstream)
                    if events:
                        events = [_checked(event, candle.time) for event in events]
                        if not has_events:
                            raise ValueError("it says that it has no events, and returns one")
                        said += [Said(name, event) for event in events]
                    else:
                        if state is before.state and not before.events:
                            continue
                        events = ()
                    if not isinstance(state, state_type):
                        raise TypeError(f"its state became a {type(state).__name__}")
                    if numbers_at is not None:
                        # Also where they are not read: a fault has to show at the candle that causes it.
                        numbers[position] = numbers_at(state)
                except Exception as error:
                    raise FactorFault(name, candle.time, error) from error
                seen[position] = Seen(state, events)
            if lines is not None:
                at = 0
                for given in numbers.values():
                    for number in given:
                        lines[at].append(number)
                        at += 1
        return {node.name: seen[node.position].state for node in nodes}, said

    def numbers(self, states: States, candle_time: int) -> dict[str, float]:
        """The outputs of states that this graph can advance, by key; NaN where there is no value. `candle_time`: of the
        last candle in the states. Raises `FactorFault`."""
        given = self._numbers(states, candle_time).values()
        return dict(zip(self.output_keys, (number for numbers in given for number in numbers), strict=True))

    def _numbers(self, states: States, candle_time: int) -> dict[int, tuple[float, ...]]:
        """The outputs of states by position, in the order of `output_keys`."""
        numbers: dict[int, tuple[float, ...]] = {}
        for node in self._nodes:
            if node.numbers is not None:
                try:
                    numbers[node.position] = node.numbers(states[node.name])
                except Exception as error:
                    raise FactorFault(node.name, candle_time, error) from error
        return numbers

    def encode(self, states: States, candle_time: int = 0) -> bytes:
        """The states as bytes for the store, exact to the last bit. `candle_time`: of the last candle in the states.

        Raises `FactorFault` for a state that msgspec cannot encode or that is larger than `STATE_BYTES_MAX`.
        """
        parts = {}
        for name in self.names:
            try:
                part = self._encoder.encode(states[name])
            except Exception as error:
                raise FactorFault(name, candle_time, error) from error
            if len(part) > STATE_BYTES_MAX:
                raise FactorFault(name, candle_time, f"its state takes {len(part)} bytes of {STATE_BYTES_MAX}")
            parts[name] = msgspec.Raw(part)
        return self._encoder.encode((self._digest, parts))

    def decode(self, encoded: bytes) -> States:
        """The states from the bytes of `encode`. Raises `ForeignStates` for bytes of another fingerprint."""
        try:
            digest, parts = msgspec.msgpack.decode(encoded, type=tuple[str, dict[str, msgspec.Raw]])
            if digest != self._digest:
                raise ForeignStates("the stored states are those of other factors, versions or parameters")
            return {name: self._decoders[name].decode(parts[name]) for name in self.names}
        except (msgspec.MsgspecError, KeyError) as error:
            raise ForeignStates(f"the stored states cannot be read: {reason_of(error)}") from error

    def heads(self, states: States, candle: Candle) -> dict[str, dict[str, Json]]:
        """Each factor's `head` after `candle`, the last one in `states`. Raises `FactorFault`."""
        heads = {}
        for factor in self._factors:
            try:
                heads[factor.name] = _plain_object(factor.head_of(states[factor.name], candle))
            except Exception as error:
                raise FactorFault(factor.name, candle.time, error) from error
        return heads

    def histories(self, events: Mapping[str, Sequence[Event]], at_time: int) -> dict[str, dict[str, Json]]:
        """Each factor's `history` of its events in a window that ends at `at_time`. Raises `FactorFault`."""
        histories = {}
        for factor in self._factors:
            try:
                histories[factor.name] = _plain_object(factor.history(events.get(factor.name, ())))
            except Exception as error:
                raise FactorFault(factor.name, at_time, error) from error
        return histories

    def catalog(self) -> list[dict[str, Json]]:
        """The factors and their features for people, as `GET /api/factor/catalog` answers."""
        return [
            {
                "key": factor.name,
                "label": factor.label,
                "default_visible": bool(factor.outputs) or any(feature.default_visible for feature in factor.features),
                **({"pane": factor.pane} if factor.outputs else {}),
                "sub_features": [*(feature._asdict() for feature in factor.features), *_lines_of(factor)],
            }
            # Those with outputs last, beside the indicators.
            for factor in sorted(self._factors, key=lambda factor: bool(factor.outputs))
        ]

    @cached_property
    def numeric(self) -> FactorGraph:
        """The factors with outputs, and those that they depend on. The graph can advance the states of this one."""
        return self._with(factor.name for factor in self._factors if factor.outputs)

    @cached_property
    def of_flow(self) -> FactorGraph:
        """The factors that depend on order flow, and those that they depend on. The graph can advance the states of
        this one."""
        return self._with(self.flow_names)

    def _with(self, names: Iterable[str]) -> FactorGraph:
        """The graph of these factors and their dependencies."""
        wanted = set(names)
        for factor in reversed(self._factors):
            if factor.name in wanted:
                wanted.update(factor.depends_on)
        return FactorGraph((factor for factor in self._factors if factor.name in wanted), self._given)

    def without(self, name: str) -> FactorGraph:
        """The graph without a factor and its dependents. The new graph can advance the states of this one."""
        gone = {name}
        for factor in self._factors:
            if gone.intersection(factor.depends_on):
                gone.add(factor.name)
        return FactorGraph((factor for factor in self._factors if factor.name not in gone), self._given)


class _Node(NamedTuple):
    """A factor in the graph. `above`: its dependencies in the graph by name and position; `outside`: its indicators;
    `numbers`: gives its outputs, None without any."""

    position: int
    name: str
    step: Callable[[object, Candle, Upstream], tuple[object, Sequence[Event]]]
    state_type: type[object]
    above: Sequence[tuple[str, int]]
    outside: Sequence[str]
    numbers: Callable[[object], tuple[float, ...]] | None
    has_events: bool


def _nodes(factors: Sequence[AnyFactor]) -> list[_Node]:
    positions = {factor.name: position for position, factor in enumerate(factors)}
    return [
        _Node(
            position,
            factor.name,
            factor.step,
            factor.type_of_state(),
            [(name, positions[name]) for name in factor.depends_on if name in positions],
            [name for name in factor.depends_on if name not in positions],
            partial(numbers_of, factor) if factor.outputs else None,
            factor.has_events,
        )
        for position, factor in enumerate(factors)
    ]


def _reading_flow(factors: Sequence[AnyFactor]) -> frozenset[str]:
    """The names of the factors that depend on order flow. `factors`: each after its dependencies."""
    names: set[str] = set()
    for factor in factors:
        if factor.reads_flow or names.intersection(factor.depends_on):
            names.add(factor.name)
    return frozenset(names)


def _lines_of(factor: AnyFactor) -> list[dict[str, Json]]:
    """The outputs of a factor, as the catalog has those of an indicator."""
    single = len(factor.outputs) == 1
    return [
        {
            "key": key,
            "label": factor.label if single else f"{factor.label} {output}",
            "default_visible": True,
            "style": "line",
        }
        for key, output in zip(factor.output_keys, factor.outputs, strict=True)
    ]


_NOTHING: Upstream = {}


def _ordered(factors: Sequence[AnyFactor], outside: Collection[str]) -> list[AnyFactor]:
    """The factors, each after its dependencies, otherwise by name: the order in which they were found has no effect."""
    by_name: dict[str, AnyFactor] = {}
    for factor in factors:
        if factor.name in by_name or factor.name in outside:
            raise BadFactor(factor.name, "two factors have this name; rename one, or uninstall what brings it")
        by_name[factor.name] = factor
    waiting: dict[str, set[str]] = {}
    for factor in factors:
        for name in factor.depends_on:
            if name not in by_name and name not in outside:
                known = ", ".join(sorted({*by_name, *outside}))
                raise BadFactor(factor.name, f"it depends on {name}, which is not there; there are {known}")
        waiting[factor.name] = {name for name in factor.depends_on if name in by_name}
    ready = [name for name, above in waiting.items() if not above]
    heapify(ready)
    order = []
    while ready:
        name = heappop(ready)
        order.append(by_name[name])
        for other, above in waiting.items():
            if name in above:
                above.remove(name)
                if not above:
                    heappush(ready, other)
    if len(order) < len(factors):
        circle = sorted(set(by_name) - {factor.name for factor in order})
        raise BadFactor(circle[0], f"dependencies go in a circle, among or above {', '.join(circle)}")
    return order


def _line(factor: AnyFactor) -> str:
    try:
        identity = (factor.name, factor.version, _plain_object(factor.parameters), list(factor.depends_on))
        return msgspec.json.encode(identity, order="sorted").decode()
    except (TypeError, ValueError) as error:
        raise BadFactor(factor.name, f"its parameters are not plain values: {error}") from error


def _checked(event: object, time: int) -> Event:
    """A copy of the event. Raises `TypeError` or `ValueError` when it is malformed, or of another candle than
    `time`."""
    plain = _plain_object(event)
    visible_time = plain.get("visible_time")
    if type(visible_time) is not int or visible_time != time:
        raise ValueError(f"an event said at this candle has visible_time {visible_time!r}")
    return plain


def _plain_object(value: object) -> dict[str, Json]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a {type(value).__name__} is no JSON object")
    plain: dict[str, Json] = {}
    for key, item in value.items():
        if type(key) is not str:
            raise TypeError(f"{key!r} is no key of a JSON object")
        plain[key] = _plain(item)
    return plain


def _plain(value: object) -> Json:
    """A copy of a JSON value, because a plugin may change the original. Raises `TypeError` or `ValueError`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{value} is no JSON number")
        return float(value)
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError(f"{value} is larger than 2**53, the largest integer that all readers keep exactly")
        return int(value)
    if type(value) is str:
        value.encode()
        return value
    if isinstance(value, Mapping):
        return _plain_object(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} is no JSON value")
