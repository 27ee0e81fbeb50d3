"""The factor graph: what it refuses at start, what counts as a fault, and that a fault changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest

from klinesync.core.candle import Candle
from klinesync.factor.graph import STATE_BYTES_MAX, FactorGraph
from klinesync.factor.plugin import (
    BadFactor,
    Event,
    Factor,
    FactorFault,
    FactorSettings,
    Feature,
    ForeignStates,
    Json,
    Seen,
    Upstream,
    state_of,
)
from klinesync.factor.probe import refuse_broken
from klinesync.factor.structure import structure
from klinesync.market import parts_writing
from klinesync.market.settings import ledger_settings
from klinesync.runtime.flags import load_flags


class Count(msgspec.Struct, frozen=True):
    candles: int = 0
    note: str = ""


Say = Callable[[Candle], Sequence[Event]]


class Counting(Factor[Count]):
    """Counts candles and returns what it is set to."""

    state_type = Count

    def __init__(
        self,
        name: str = "count",
        depends_on: tuple[str, ...] = (),
        say: Say = lambda candle: (),
        version: int = 1,
        parameters: Mapping[str, int | float | str] | None = None,
    ) -> None:
        self.name = self.label = name
        self.depends_on = depends_on
        self.version = version
        self.parameters = parameters or {}
        self._say = say

    def seed(self) -> Count:
        return Count()

    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        assert set(upstream) == set(self.depends_on)
        return Count(state.candles + 1), self._say(candle)

    def head(self, state: Count, candle: Candle) -> dict[str, Json]:
        return {"candles": state.candles}


def candle(time: int, close: float = 1.0) -> Candle:
    return Candle(time, close, close, close, close, 1.0)


def event(candle: Candle, **fields: Json) -> Event:
    return {"visible_time": candle.time, **fields}


# --- start


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ([Counting("a"), Counting("b"), Counting("a")], "factor a: two factors have this name"),
        ([Counting("ema_21")], "factor ema_21: two factors have this name"),
        ([Counting("a", ("c",))], "factor a: it depends on c, which is not there; there are a, ema_21"),
        ([Counting("a", ("a",))], "factor a: dependencies go in a circle, among or above a"),
        (
            [Counting("a", ("b",)), Counting("b", ("c",)), Counting("c", ("b",)), Counting("d")],
            "factor a: dependencies go in a circle, among or above a, b, c",
        ),
        ([Counting("a", parameters={"width": float("nan")})], "factor a: its parameters are not plain values"),
    ],
)
def test_factors_that_do_not_fit_together_are_refused_with_a_sentence(factors: list[Counting], sentence: str) -> None:
    with pytest.raises(BadFactor) as refused:
        FactorGraph(factors, outside=("ema_21",))
    assert str(refused.value).startswith(sentence)


def test_a_factor_whose_state_cannot_be_stored_is_refused() -> None:
    class Opaque(Factor[object]):
        name = label = "opaque"
        state_type = object

        def seed(self) -> object:
            return object()

        def advance(self, state: object, candle: Candle, upstream: Upstream) -> tuple[object, Sequence[Event]]:
            return state, ()

    with pytest.raises(BadFactor, match="factor opaque: its state cannot be stored"):
        FactorGraph([Opaque()])


def fail(_candle: Candle) -> Sequence[Event]:
    raise ValueError("too many values to unpack (expected 3, got 10)")


class Unpacking(Counting):
    """Like factors from before candles had order flow."""

    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        if "ema_21" in upstream:
            state_of(upstream, "ema_21", dict)["ema_21"]
        _time, _open, _high, _low, _close, _volume = candle  # type: ignore[misc]
        return super().advance(state, candle, upstream)


@pytest.mark.parametrize(
    "beside",
    [
        [Unpacking("old")],
        [Unpacking("old", ("a", "ema_21")), Counting("a")],
        [Counting("a", say=fail), Unpacking("old")],
    ],
    ids=["alone", "above others", "behind one that fails"],
)
def test_a_factor_that_unpacks_six_values_is_refused_with_what_to_do(beside: list[Counting]) -> None:
    sentence = r"^factor old: it unpacks a candle into 6 values, and a candle has 10; unpack candle\.ohlcv, or read"
    with pytest.raises(BadFactor, match=sentence):
        refuse_broken(FactorGraph(beside, outside=("ema_21",)))


def test_the_start_refuses_a_factor_that_unpacks_six_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_writing, "load_factors", lambda _: [Unpacking("old")])
    with pytest.raises(BadFactor, match="factor old: it unpacks"):
        parts_writing.ledger_step(ledger_settings(load_flags()))


def test_a_factor_that_fails_for_another_reason_is_not_refused() -> None:
    refuse_broken(FactorGraph([Counting("a", say=fail), Counting("b", ("a",))]))


def test_each_factor_comes_after_what_it_depends_on_and_otherwise_by_name() -> None:
    factors = [Counting("b"), Counting("a", ("d",)), Counting("d"), Counting("c", ("a", "ema_21"))]
    one = FactorGraph(factors, outside=("ema_21", "rsi_14"))
    other = FactorGraph(factors[::-1], outside=("rsi_14", "ema_21"))
    assert one.names == other.names == ("b", "d", "a", "c")
    assert one.fingerprint == other.fingerprint
    assert one.outside == {"ema_21"}


def test_without_a_factor_its_dependents_are_gone_too() -> None:
    graph = FactorGraph([Counting("a"), Counting("b", ("a",)), Counting("c", ("b",)), Counting("d")])
    assert graph.without("b").names == ("a", "d")
    assert graph.without("a").names == ("d",)


def test_the_catalog_names_the_built_in_factors_and_their_features() -> None:
    catalog = FactorGraph(structure(FactorSettings())).catalog()
    assert [row["key"] for row in catalog] == ["pivot", "pen", "zhongshu", "anchor"]
    assert catalog[0] == {
        "key": "pivot",
        "label": "Pivots",
        "default_visible": True,
        "sub_features": [
            {"key": "pivot.major", "label": "Major pivots", "default_visible": True},
            {"key": "pivot.minor", "label": "Minor pivots", "default_visible": False},
        ],
    }
    assert Feature("a", "A").default_visible


# --- upstream and outside


def test_a_factor_sees_what_those_above_it_said_at_this_candle_and_their_states_after_it() -> None:
    seen: list[tuple[object, Sequence[Event], object]] = []

    class Below(Counting):
        def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
            seen.append((upstream["above"].state, upstream["above"].events, upstream["ema_21"].state))
            return state, ()

    above = Counting("above", say=lambda candle: [event(candle)] if candle.time == 60 else ())
    graph = FactorGraph([Below("below", ("above", "ema_21")), above], outside=("ema_21",))
    graph.advance_many(
        graph.seed(), [candle(0), candle(60), candle(120)], [{"ema_21": Seen(value)} for value in (1.0, 2.0, 3.0)]
    )
    assert seen == [
        (Count(1), (), 1.0),
        (Count(2), [{"visible_time": 60}], 2.0),
        (Count(3), (), 3.0),
    ]


def test_what_is_outside_must_be_there_for_every_candle() -> None:
    graph = FactorGraph([Counting("below", ("ema_21",))], outside=("ema_21",))
    with pytest.raises(ValueError, match="2"):
        graph.advance_many(graph.seed(), [candle(0), candle(60)], [{"ema_21": Seen(1.0)}])
    with pytest.raises(
        FactorFault, match="factor below failed at the candle at 1970-01-01 00:00 UTC: KeyError: 'ema_21'"
    ):
        graph.advance(graph.seed(), candle(0))


# --- faults


def bad_time(candle: Candle) -> Sequence[Event]:
    return [{"visible_time": candle.time - 60}]


def raising(candle: Candle) -> Sequence[Event]:
    raise ZeroDivisionError("a divisor")


def endless(candle: Candle) -> Sequence[Event]:
    nested: dict[str, Json] = {"visible_time": candle.time}
    nested["self"] = nested
    return [nested]


@pytest.mark.parametrize(
    ("say", "error"),
    [
        (raising, "ZeroDivisionError: a divisor"),
        (bad_time, "ValueError: an event said at this candle has visible_time 0"),
        (lambda candle: [{"price": 1.0}], "ValueError: an event said at this candle has visible_time None"),
        (lambda candle: [{"visible_time": float(candle.time)}], "ValueError: an event said at this candle"),
        (lambda candle: [event(candle, price=float("nan"))], "ValueError: nan is no JSON number"),
        (lambda candle: [event(candle, prices=[1.0, float("-inf")])], "ValueError: -inf is no JSON number"),
        (lambda candle: [event(candle, count=2**60)], "ValueError: 1152921504606846976 is larger than 2"),
        (lambda candle: [event(candle, text="\ud800")], "UnicodeEncodeError"),
        (lambda candle: [event(candle, value=b"bytes")], "TypeError: a bytes is no JSON value"),
        (lambda candle: [{"visible_time": candle.time, 7: 1}], "TypeError: 7 is no key of a JSON object"),
        (lambda candle: ["text"], "TypeError: a str is no JSON object"),
        (lambda candle: 7, "TypeError"),
        (endless, "RecursionError"),
    ],
)  # fmt: skip
def test_a_factor_that_fails_is_named_with_the_candle_and_changes_no_state(say: Say, error: str) -> None:
    failing = Counting("failing", say=lambda candle: say(candle) if candle.time >= 60 else ())
    graph = FactorGraph([Counting("good", say=lambda candle: [event(candle)]), failing])
    before, _ = graph.advance(graph.seed(), candle(0))
    kept = graph.encode(before)
    with pytest.raises(FactorFault) as fault:
        graph.advance_many(before, [candle(60), candle(120)])
    assert (fault.value.factor, fault.value.candle_time) == ("failing", 60)
    assert str(fault.value).startswith(f"factor failing failed at the candle at 1970-01-01 00:01 UTC: {error}")
    assert graph.encode(before) == kept
    # The other factors continue.
    states, events = graph.without("failing").advance(before, candle(60))
    assert (states, events) == ({"good": Count(2)}, {"good": [{"visible_time": 60}]})


def test_a_state_of_another_type_is_a_fault_at_once() -> None:
    class Forgetful(Counting):
        def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
            return None, ()  # type: ignore[return-value]

    graph = FactorGraph([Forgetful()])
    with pytest.raises(FactorFault, match="its state became a NoneType"):
        graph.advance(graph.seed(), candle(0))


def test_an_event_is_what_it_was_when_it_was_said() -> None:
    """A factor that keeps changing an object that it has returned changes no stored value."""
    mutable: dict[str, Json] = {}

    def say(candle: Candle) -> Sequence[Event]:
        mutable.update(visible_time=candle.time, tags=("a", candle.time))
        return [mutable]

    graph = FactorGraph([Counting(say=say)])
    _, said = graph.advance_many(graph.seed(), [candle(0), candle(60)])
    assert [event for _, event in said] == [
        {"visible_time": 0, "tags": ["a", 0]},
        {"visible_time": 60, "tags": ["a", 60]},
    ]


def test_a_head_or_a_history_that_is_no_json_is_a_fault() -> None:
    class Blind(Counting):
        def head(self, state: Count, candle: Candle) -> dict[str, Json]:
            return {"mean": float("inf")}

        def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
            raise LookupError("nothing")

    graph = FactorGraph([Blind()])
    with pytest.raises(
        FactorFault, match="failed at the candle at 1970-01-01 00:01 UTC: ValueError: inf is no JSON number"
    ):
        graph.heads(graph.seed(), candle(60))
    with pytest.raises(FactorFault, match="failed at the candle at 1970-01-01 00:01 UTC: LookupError: nothing"):
        graph.histories({}, 60)


# --- stored states


def test_states_of_other_factors_versions_or_parameters_and_damaged_ones_are_refused() -> None:
    graph = FactorGraph([Counting("a")])
    encoded = graph.encode({"a": Count(7)})
    assert graph.decode(encoded) == {"a": Count(7)}
    for other in (Counting("a", version=2), Counting("a", parameters={"width": 1}), Counting("b")):
        with pytest.raises(ForeignStates, match="other factors, versions or parameters"):
            FactorGraph([other]).decode(encoded)
    for damaged in (b"", encoded[:-1], encoded + b"\x00", b"\x93" + encoded[1:]):
        with pytest.raises(ForeignStates, match="cannot be read"):
            graph.decode(damaged)


def test_a_state_that_grows_without_end_is_a_fault() -> None:
    graph = FactorGraph([Counting("a")])
    with pytest.raises(
        FactorFault,
        match=f"factor a failed at the candle at 1970-01-01 00:01 UTC: its state takes .* of {STATE_BYTES_MAX}",
    ):
        graph.encode({"a": Count(note="x" * STATE_BYTES_MAX)}, candle_time=60)
