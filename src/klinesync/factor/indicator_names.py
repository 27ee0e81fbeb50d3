"""The names of indicators, as the flag `indicators` takes them, checked against TA-Lib's own metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from math import isfinite
from typing import NamedTuple

from klinesync.core.errors import BadFlag
from klinesync.factor.columns import Price
from klinesync.factor.flow import FLOW_NAMES
from klinesync.factor.indicator import CHUNK_PERIODS, MAX_CHUNK, Indicator, Output, chunk_for
from klinesync.factor.indicator_admission import why_average_refused, why_refused
from klinesync.factor.indicator_talib import LONGEST_PERIOD, Function, Number, Parameter, function_names, look_up

FLAG = "indicators"
# Most indicators of a service. Each costs some kilobytes a series, and about a microsecond a candle.
MAX_INDICATORS = 64
# Longest text of an indicator, in characters.
MAX_TEXT = 200

_WRITTEN = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(?:\((.*)\))?\s*")
_OUTSIDE_PARENTHESES = re.compile(r",(?![^(]*\))")
# Functions on the scale of prices by TA-Lib's metadata whose values are far below prices: they get a pane of their own,
# because the price pane would be squashed flat.
_OWN_SCALE = frozenset({"AVGDEV"})


class Listed(NamedTuple):
    """What the flag lists: TA-Lib's functions, and the names of built-in factors (`cvd`), each in the order given."""

    indicators: tuple[Indicator, ...]
    factors: tuple[str, ...] = ()


def parse_listed(given: str | Sequence[str]) -> Listed:
    """The indicators and factors of `SMA(20),MACD(12,26,9),CVD`, or of a list of such names.

    A name is that of a built-in factor of order flow and volume, in any case, or an indicator of `parse_indicators`; a
    factor goes before a function of the same name. Raises `BadFlag` that says which name is wrong, why, and what would
    be right.
    """
    texts = _texts(given)
    factors: list[str] = []
    functions: list[str] = []
    for text in texts:
        factor = _factor(text)
        if factor in factors:
            raise BadFlag(FLAG, f"{text.strip()} is listed twice")
        if factor is None:
            functions.append(text)
        else:
            factors.append(factor)
    return Listed(parse_indicators(functions), tuple(factors))


def parse_indicators(given: str | Sequence[str]) -> tuple[Indicator, ...]:
    """The indicators of `SMA(20),MACD(12,26,9)`, or of a list of such names, in the order given.

    A name is a TA-Lib function in any case, with its parameters by position, as many as are wanted. Raises `BadFlag`
    that says which name is wrong, why, and what would be right.
    """
    indicators: list[Indicator] = []
    for text in _texts(given):
        indicator = _parse(text)
        for other in indicators:
            if other.name == indicator.name:
                raise BadFlag(FLAG, f"{indicator.label} is listed twice")
            if other.fingerprint == indicator.fingerprint:
                raise BadFlag(FLAG, f"{indicator.label} is the same as {other.label}; list one of them")
        indicators.append(indicator)
    return tuple(indicators)


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    texts = [text for text in _OUTSIDE_PARENTHESES.split(given) if text.strip()] if isinstance(given, str) else given
    if len(texts) > MAX_INDICATORS:
        raise BadFlag(FLAG, f"{len(texts)} indicators are more than {MAX_INDICATORS}")
    return texts


def _factor(text: str) -> str | None:
    """The name of the built-in factor that is written there; None for anything else."""
    written = _WRITTEN.fullmatch(text) if len(text) <= MAX_TEXT else None
    factor = None if written is None else FLOW_NAMES.get(written[1].upper())
    if written is None or factor is None:
        return None
    if written[2] is not None and written[2].strip():
        raise BadFlag(FLAG, f"{written[1].upper()} takes no parameters, and was given {written[2].strip()[:40]}")
    return factor


def _parse(text: str) -> Indicator:
    written = _WRITTEN.fullmatch(text) if len(text) <= MAX_TEXT else None
    if written is None:
        raise BadFlag(
            FLAG, f"{text[:60]!r} is no indicator; write NAME or NAME(PARAMETER,…), for example MACD(12,26,9)"
        )
    function = _function(written[1].upper(), text.strip())
    return indicator_of(function, _parameters(function, written[2]))


def indicator_of(function: Function, given: Sequence[Number] = ()) -> Indicator:
    """The function with these parameters and its defaults for the rest, whether it is admitted or not.

    Raises `BadFlag` when TA-Lib refuses a parameter, or when it would look back too far.
    """
    label = f"{function.name}({','.join(map(_plain, given))})" if given else function.name
    values = [*given, *(parameter.default for parameter in function.parameters[len(given) :])]
    lookback = _lookback(function, values, label)
    periods = [value for one, value in zip(function.parameters, values, strict=True) if one.is_period]
    longest = int(max(lookback + 1, *periods, 1))
    chunk = chunk_for(longest)
    if chunk is None:
        raise BadFlag(FLAG, f"{label} looks back on {longest} candles; {MAX_CHUNK // CHUNK_PERIODS} is the most")
    name = "_".join([function.name, *map(_plain, given)]).lower()
    return Indicator(
        name=name,
        label=label,
        title=function.title,
        function=function,
        inputs=_inputs(function),
        parameters=tuple(values),
        outputs=tuple(
            Output(
                key=name if len(function.outputs) == 1 else f"{name}.{output}",
                label=label if len(function.outputs) == 1 else f"{label} {output}",
                style=style,
            )
            for output, style in function.outputs
        ),
        pane="price" if function.overlap and function.name not in _OWN_SCALE else "own",
        lookback=lookback,
        chunk=chunk,
    )


def _function(name: str, text: str) -> Function:
    function = look_up(name)
    if function is None:
        names = dict.fromkeys([*FLOW_NAMES, *function_names()])
        near = [one for one in get_close_matches(name, names, n=3) if one in FLOW_NAMES or why_refused(one) is None]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadFlag(FLAG, f"{text!r}: TA-Lib has no function {name}{hint}")
    reason = why_refused(name)
    if reason is not None:
        raise BadFlag(FLAG, f"{name} cannot be followed: {reason}")
    return function


def _parameters(function: Function, text: str | None) -> list[Number]:
    """The parameters that were given, as numbers of the function's own types."""
    words = [] if text is None or not text.strip() else text.split(",")
    if len(words) > len(function.parameters):
        takes = ", ".join(f"{one.name}={_plain(one.default)}" for one in function.parameters) or "none"
        raise BadFlag(FLAG, f"{function.name} was given {len(words)} parameters; it takes {takes}")
    return [
        _number(function, parameter, word.strip()) for parameter, word in zip(function.parameters, words, strict=False)
    ]


def _number(function: Function, parameter: Parameter, word: str) -> Number:
    kind = "a whole number" if isinstance(parameter.default, int) else "a number"
    try:
        # Python's own reading takes 1_000 and figures of other scripts.
        if not re.fullmatch(r"[-+.0-9eE]+", word):
            raise ValueError(word)
        value = type(parameter.default)(word)
    except ValueError:
        raise BadFlag(FLAG, f"{function.name}: {parameter.name} is {kind}, not {word[:40]!r}") from None
    # The most negative numbers mean "default" to TA-Lib.
    if not isfinite(value) or abs(value) > LONGEST_PERIOD:
        raise BadFlag(FLAG, f"{function.name}: {parameter.name} {word[:40]} lies outside ±{LONGEST_PERIOD}")
    reason = why_average_refused(function.name, int(value)) if parameter.is_average else None
    if reason is not None:
        raise BadFlag(FLAG, f"{function.name}: {parameter.name} {value} {reason}")
    return value


def _lookback(function: Function, values: Sequence[Number], label: str) -> int:
    """How many candles come before the first value. Raises `BadFlag` with the range when TA-Lib refuses a parameter."""
    lookback = function.lookback(values)
    if lookback is not None:
        return lookback
    defaults = [parameter.default for parameter in function.parameters]
    for position, (parameter, value) in enumerate(zip(function.parameters, values, strict=True)):
        if function.lookback([*defaults[:position], value, *defaults[position + 1 :]]) is None:
            takes = " … ".join(map(str, _range(function, defaults, position)))
            hint = f"; TA-Lib takes {takes}" if takes else ""
            raise BadFlag(FLAG, f"{label}: {parameter.name} cannot be {_plain(value)}{hint}")
    raise BadFlag(FLAG, f"{label}: TA-Lib does not take these parameters together")


def _range(function: Function, defaults: Sequence[Number], position: int) -> Iterator[int]:
    """The smallest and the largest whole number that TA-Lib takes there: a range that holds the default."""
    default = defaults[position]
    if not isinstance(default, int):
        return

    def taken(value: int) -> bool:
        return function.lookback([*defaults[:position], value, *defaults[position + 1 :]]) is not None

    for beyond in (-1, LONGEST_PERIOD + 1):
        inside, outside = default, beyond
        while abs(outside - inside) > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if taken(middle) else (inside, middle)
        yield inside


def _inputs(function: Function) -> tuple[Price, ...]:
    known = tuple(price for price in function.inputs if price is not None)
    # A function that is not refused takes prices only; a test checks all functions.
    assert len(known) == len(function.inputs), function.name
    return known


def _plain(value: Number) -> str:
    """The number as it is written in names, exactly: 20, 2.5; 2.0 is 2."""
    return str(int(value) if value == int(value) else value)
