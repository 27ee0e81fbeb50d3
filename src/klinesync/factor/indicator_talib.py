"""The typed interface to TA-Lib. No other module imports talib.

`talib.stream` has a handle per function: opened on history, then advanced candle by candle at constant cost. The value
of a handle equals that of the function over the whole array at the same candle, bit for bit (tested for all functions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
import talib
from numpy.typing import NDArray
from talib import InsufficientHistory, abstract, stream  # type: ignore[attr-defined]  # its stubs leave things out

from klinesync.factor.columns import Floats, Price

__all__ = [
    "LONGEST_PERIOD",
    "VERSION",
    "Answer",
    "Function",
    "InsufficientHistory",
    "Number",
    "Parameter",
    "Stream",
    "Style",
    "function_names",
    "look_up",
]

Number: TypeAlias = int | float
Answer: TypeAlias = Number | tuple[Number, ...]
Style = Literal["line", "dashed", "histogram"]

# TA-Lib takes no period above this one.
LONGEST_PERIOD = 100_000

# Values may differ in their last bits between versions of the C library.
VERSION: str = talib.__ta_version__.decode().split()[0]  # type: ignore[attr-defined]

_PRICES: dict[str, Price] = {"open": "open", "high": "high", "low": "low", "close": "close", "volume": "volume"}
_STYLES: dict[str, Style] = {"Dashed Line": "dashed", "Histogram": "histogram"}
_OVERLAP = "Output scale same as input"
_PATTERN = "Output is a candlestick"


class Stream(Protocol):
    """A handle: the state of one function behind one candle."""

    @property
    def value(self) -> Answer:
        """The value at the last candle."""

    def update(self, *prices: float) -> Answer:
        """The value at the next candle."""

    def peek(self, *prices: float) -> Answer:
        """The value that `update` would return, without advancing."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function. The type of `default` is the type of its values."""

    name: str
    default: Number

    @property
    def is_average(self) -> bool:
        """Whether it is the number of a kind of moving average."""
        return self.name.endswith("matype")

    @property
    def is_period(self) -> bool:
        """Whether it is a number of candles."""
        return isinstance(self.default, int) and not self.is_average


@dataclass(frozen=True, slots=True)
class Function:
    """A TA-Lib function: its metadata, computed over whole arrays, and as a handle.

    inputs: the columns of its input, in order; None where TA-Lib's metadata does not name a price.
    outputs: TA-Lib's names of its outputs, in order.
    overlap: whether its outputs share the scale of prices.
    """

    name: str
    title: str
    inputs: tuple[Price | None, ...]
    parameters: tuple[Parameter, ...]
    outputs: tuple[tuple[str, Style], ...]
    overlap: bool
    pattern: bool
    _whole: Callable[..., NDArray[np.generic] | tuple[NDArray[np.generic], ...]]
    _opened: Callable[..., Stream]

    def lookback(self, values: Sequence[Number]) -> int | None:
        """The number of candles before the first value with these parameters; None when TA-Lib refuses them."""
        function = abstract.Function(self.name)  # type: ignore[attr-defined]
        try:
            function.set_parameters({one.name: value for one, value in zip(self.parameters, values, strict=True)})
            lookback: int = function.lookback
        except (TypeError, OverflowError):
            return None
        return lookback if lookback >= 0 else None

    def over(self, prices: Sequence[Floats], values: Sequence[Number]) -> list[Floats]:
        """Each output at each candle, as floats; undefined in the lookback where the function gives integers."""
        given = self._whole(*prices, *values)
        return [np.asarray(one, np.float64) for one in (given if isinstance(given, tuple) else (given,))]

    def open(self, prices: Sequence[Floats], values: Sequence[Number]) -> Stream:
        """A handle behind the last of the candles. Raises `InsufficientHistory`."""
        return self._opened(*prices, *values)


def function_names() -> list[str]:
    """All functions of the installed TA-Lib."""
    names: list[str] = talib.get_functions()  # type: ignore[no-untyped-call]
    return names


@cache
def look_up(name: str) -> Function | None:
    """The function of that name, in capitals; None when TA-Lib has none."""
    if name not in function_names():
        return None
    info: Mapping[str, object] = abstract.Function(name).info  # type: ignore[attr-defined]
    flags = info["function_flags"] or ()
    inputs, parameters, outputs = info["input_names"], info["parameters"], info["output_flags"]
    assert isinstance(flags, list | tuple)
    assert isinstance(inputs, dict)
    assert isinstance(parameters, dict)
    assert isinstance(outputs, dict)
    return Function(
        name=name,
        title=str(info["display_name"]),
        inputs=tuple(
            _PRICES.get(price) for given in inputs.values() for price in ([given] if isinstance(given, str) else given)
        ),
        parameters=tuple(Parameter(str(key), value) for key, value in parameters.items()),
        outputs=tuple((str(key), _style(hints)) for key, hints in outputs.items()),
        overlap=_OVERLAP in flags,
        pattern=_PATTERN in flags,
        _whole=getattr(talib, name),
        _opened=getattr(stream, name),
    )


def _style(hints: Sequence[str] | None) -> Style:
    return next((_STYLES[hint] for hint in hints or () if hint in _STYLES), "line")
