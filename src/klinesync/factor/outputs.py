"""The outputs of a factor: named numbers for each candle, which follow from the factor's state."""

from __future__ import annotations

import re
from math import isfinite, nan

from klinesync.core.candle import Candle
from klinesync.factor.plugin import AnyFactor, BadFactor

# Most outputs of a factor. Each is a line of a chart, and a column of an export.
MAX_OUTPUTS = 32

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Names of columns that exports and arrays have already.
_TAKEN = frozenset({*Candle._fields, "candle_time", "date"})


def check_outputs(factor: AnyFactor, seed: object) -> None:
    """Check the declared outputs, and the numbers of the seed. Raises `BadFactor`."""
    outputs = factor.outputs
    if isinstance(outputs, str) or not all(isinstance(output, str) for output in outputs):
        raise BadFactor(factor.name, f'its outputs are {outputs!r}, not a list of names such as ("upper", "lower")')
    if len(outputs) > MAX_OUTPUTS:
        raise BadFactor(factor.name, f"its {len(outputs)} outputs are more than {MAX_OUTPUTS}")
    for name in (factor.name, *outputs) if outputs else ():
        if not _NAME.fullmatch(name):
            what = "a factor with outputs" if name == factor.name else "an output"
            raise BadFactor(
                factor.name, f"{what} is named in lower-case letters, digits and _, a letter first, not {name!r}"
            )
    if len(set(outputs)) < len(outputs):
        raise BadFactor(factor.name, f"two of its outputs have one name: {', '.join(outputs)}")
    if outputs and factor.name in _TAKEN:
        raise BadFactor(factor.name, "its outputs would be mistaken for values of candles; rename it")
    if factor.pane not in ("price", "own"):
        raise BadFactor(factor.name, f"its pane is {factor.pane!r}, and panes are price and own")
    try:
        numbers_of(factor, seed)
    except Exception as error:
        raise BadFactor(factor.name, f"its numbers before the first candle: {type(error).__name__}: {error}") from error


def numbers_of(factor: AnyFactor, state: object) -> tuple[float, ...]:
    """The numbers of a state, one for each output; NaN where there is none. Raises `TypeError` or `ValueError` for
    anything else, and what the factor raises."""
    numbers = factor.numbers_of(state)
    if not isinstance(numbers, (tuple, list)):
        raise TypeError(f"it gives a {type(numbers).__name__}, where a tuple of numbers is expected")
    outputs = factor.outputs
    if len(numbers) != len(outputs):
        raise ValueError(f"it gives {len(numbers)} numbers for {len(outputs)} outputs")
    return tuple([nan if number is None else _number(factor, at, number) for at, number in enumerate(numbers)])


def _number(factor: AnyFactor, at: int, number: object) -> float:
    if isinstance(number, bool) or not isinstance(number, (float, int)):
        raise TypeError(f"output {factor.outputs[at]} is a {type(number).__name__}, neither a number nor None")
    value = float(number)
    if not isfinite(value):
        raise ValueError(f"output {factor.outputs[at]} is {value}; None says that there is no value")
    return value
