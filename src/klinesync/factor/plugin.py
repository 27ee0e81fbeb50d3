"""The contract of a factor: what the author of a factor implements, and what the graph relies on.

A factor is a fold: for each closed candle, in order, it returns its next state and the events that became knowable. It
sees nothing else: no clock, no store, no later candle. So its results depend on the candles alone, and it can be
stopped, stored, restarted and rewound at any candle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.errors import KlinesyncError, Rejected

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
# A plain JSON object. Its `visible_time` is the open time of the candle at which it became knowable.
Event: TypeAlias = "Mapping[str, Json]"
# Where numbers are drawn: on the scale of prices, or in a pane of their own.
Pane: TypeAlias = Literal["price", "own"]

S = TypeVar("S")
T = TypeVar("T")


class Feature(NamedTuple):
    """A part of a factor that can be shown or hidden: `key` as in drawings (`pivot.major`), `label` for people."""

    key: str
    label: str
    default_visible: bool = True


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What a factor sees of a dependency: its state after this candle, and its events at this candle.

    The state of an indicator is a mapping of its outputs (`macd_12_26_9.macd`) to their values at the candle, NaN where
    there is none yet.
    """

    state: object
    events: Sequence[Event] = ()


Upstream: TypeAlias = Mapping[str, Seen]


class AnyFactor(ABC):
    """A factor with any type of state, as the graph sees it. Authors of factors write a `Factor`."""

    # Unique among the factors of a service; the name in `depends_on`, in slices and in the ledger.
    name: str
    # Raised when the same parameters and candles give other states or events: the ledger is computed anew then.
    version: int = 1
    # Parameters on which the results depend: plain values, which are part of the fingerprint.
    parameters: Mapping[str, int | float | str] = MappingProxyType({})
    # Names of the factors and indicators whose results `advance` sees.
    depends_on: tuple[str, ...] = ()
    # Whether results depend on the candles' order flow, which may be filled in later.
    reads_flow: bool = False
    # Whether `advance` returns events. Order flow that is filled in raises the epoch of a ledger only where events may
    # depend on order flow.
    has_events: bool = True
    # Names of the numbers that `numbers` gives for each candle, such as `("upper", "lower")`.
    outputs: Sequence[str] = ()
    # Where the outputs are drawn.
    pane: Pane = "own"
    # The name for people.
    label: str
    features: Sequence[Feature] = ()

    @abstractmethod
    def first(self) -> object:
        """`seed`, whatever its type."""

    @abstractmethod
    def step(self, state: object, candle: Candle, upstream: Upstream) -> tuple[object, Sequence[Event]]:
        """`advance` for a state of any type. Raises `TypeError` when it is not this factor's."""

    @abstractmethod
    def head_of(self, state: object, candle: Candle) -> dict[str, Json]:
        """`head` for a state of any type. Raises `TypeError` when it is not this factor's."""

    @abstractmethod
    def numbers_of(self, state: object) -> Sequence[float | None]:
        """`numbers` for a state of any type. Raises `TypeError` when it is not this factor's."""

    @abstractmethod
    def type_of_state(self) -> type[object]:
        """What states are decoded to."""

    @abstractmethod
    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        """A slice's `history`: the events of its window under the names that readers know them by."""

    @property
    def output_keys(self) -> tuple[str, ...]:
        """The names of the outputs for readers: that of the factor for a single output, otherwise `factor.output`."""
        if len(self.outputs) == 1:
            return (self.name,)
        return tuple(f"{self.name}.{output}" for output in self.outputs)


class Factor(AnyFactor, Generic[S]):
    """A factor with states of type `S`.

    A state is a value (a frozen `msgspec.Struct`, say): made anew, never changed after it was returned. msgspec can
    encode and decode it, to the last bit, and its size does not grow with the number of candles.
    """

    state_type: type[S]

    @abstractmethod
    def seed(self) -> S:
        """The state before the first candle of a series."""

    @abstractmethod
    def advance(self, state: S, candle: Candle, upstream: Upstream) -> tuple[S, Sequence[Event]]:
        """The state after the next closed candle, and what became knowable at it.

        Candles come in ascending time; there may be holes between them. `upstream` has a `Seen` for each name in
        `depends_on`. Every event is a plain JSON object without NaN or infinities, with `visible_time == candle.time`.
        """

    def head(self, state: S, candle: Candle) -> dict[str, Json]:
        """A slice's `head`: what is known after `candle`, the last one in `state`, and may be redrawn later."""
        return {}

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        """A slice's `history`. The events, in order, unless a factor says otherwise; nothing without events."""
        return {"events": list(events)} if self.has_events else {}

    def numbers(self, state: S) -> Sequence[float | None]:
        """The values of `outputs` after the last candle in `state`, in their order; None where there is no value.

        Numbers follow from the state alone, and are not stored: they are computed for each candle that is read. A value
        that depends on order flow is None until the order flow is known.
        """
        return ()

    def first(self) -> object:
        return self.seed()

    def step(self, state: object, candle: Candle, upstream: Upstream) -> tuple[object, Sequence[Event]]:
        if not isinstance(state, self.state_type):
            raise TypeError(_foreign(self.name, state, self.state_type))
        return self.advance(state, candle, upstream)

    def head_of(self, state: object, candle: Candle) -> dict[str, Json]:
        if not isinstance(state, self.state_type):
            raise TypeError(_foreign(self.name, state, self.state_type))
        return self.head(state, candle)

    def numbers_of(self, state: object) -> Sequence[float | None]:
        if not isinstance(state, self.state_type):
            raise TypeError(_foreign(self.name, state, self.state_type))
        return self.numbers(state)

    def type_of_state(self) -> type[object]:
        return self.state_type


def state_of(upstream: Upstream, name: str, state_type: type[T]) -> T:
    """The state of the factor `name`. Raises `KeyError` when it is not in `depends_on`, `TypeError` on another type."""
    state = upstream[name].state
    if not isinstance(state, state_type):
        raise TypeError(_foreign(name, state, state_type))
    return state


def _foreign(name: str, state: object, expected: type[object]) -> str:
    return f"a state of {name} is a {type(state).__name__}, where {expected.__name__} is expected"


class FactorSettings(NamedTuple):
    """The configuration that factors are made from. Windows are in candles; indicators are the names of those that the
    flag lists, in lower case (`ema_21`, `cvd`)."""

    pivot_window_major: int = 50
    pivot_window_minor: int = 5
    indicators: tuple[str, ...] = ()


class BadFactor(Rejected):
    """A factor that cannot be loaded, or that does not fit the others; it stops the start."""

    code = "bad_factor"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"factor {name}: {reason}")


class FactorFault(KlinesyncError):
    """A factor raised, or broke its contract, at a candle. No state was changed."""

    code = "factor_fault"

    def __init__(self, factor: str, candle_time: int, error: object) -> None:
        self.factor = factor
        self.candle_time = candle_time
        self.error = error
        what = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
        super().__init__(f"factor {factor} failed at the candle at {date_text(candle_time)}: {what}")


class ForeignStates(KlinesyncError):
    """Stored states that cannot be used: other factors, versions or parameters made them, or a fault did."""

    code = "foreign_states"
