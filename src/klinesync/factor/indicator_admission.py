"""Which TA-Lib functions are admitted as indicators, and why the others are refused.

A function is admitted when its values depend on recent candles only: computed from an anchor some thousand candles
back, they agree with those over the full history within `TOLERANCE` of the output's scale. `tests/property` measures
this for every function of the installed TA-Lib, on recorded and generated minutes: each function that is not listed
here agrees, and each one that is refused for its values does not.
"""

from __future__ import annotations

# Largest difference between anchored and full history, as a part of the output's largest absolute value.
TOLERANCE = 1e-9

_CUMULATIVE = "it adds up the whole history, so its level depends on where the stored candles begin"
_POSITION = "it counts positions in an array, not candles"
_NEVER_FORGETS = "which way it points can depend on candles of any age: nothing bounds how long a reversal takes"
_CYCLE = "its filters feed their own period back, and need not forget an old candle in any fixed time"
_NOISE = "where nothing was traded its sums leave rounding noise that depends on the whole history"

# By function: why its values are refused. A test shows that each of them disagrees with the full history.
REFUSED: dict[str, str] = {
    "AD": _CUMULATIVE,
    "CUMSUM": _CUMULATIVE,
    "NVI": _CUMULATIVE,
    "OBV": _CUMULATIVE,
    "PVI": _CUMULATIVE,
    "PVT": _CUMULATIVE,
    "VWAP": _CUMULATIVE,
    "WAD": _CUMULATIVE,
    "MAXINDEX": _POSITION,
    "MININDEX": _POSITION,
    "MINMAXINDEX": _POSITION,
    "SAR": _NEVER_FORGETS,
    "SAREXT": _NEVER_FORGETS,
    "SUPERTREND": _NEVER_FORGETS,
    "KAMA": "in a market without direction it hardly moves, and remembers thousands of candles, whatever its period",
    "HT_DCPERIOD": _CYCLE,
    "HT_DCPHASE": _CYCLE,
    "HT_PHASOR": _CYCLE,
    "HT_SINE": _CYCLE,
    "HT_TRENDLINE": _CYCLE,
    "HT_TRENDMODE": _CYCLE,
    "MAMA": _CYCLE,
    "CMF": _NOISE,
    "RVOL": _NOISE,
    "VWMA": _NOISE,
    "BETA": "in a window of hardly any moves it divides rounding by rounding",
    "LINEARREG_ANGLE": "of prices it is close to 90 or -90 degrees or magnifies rounding; use LINEARREG_SLOPE",
}

# By function: why it cannot be used, whatever its values.
UNUSABLE: dict[str, str] = {
    "MAVP": "it needs a column of periods besides the prices",
}

# The moving averages that parameters named `*matype` choose by number, without those that are refused by themselves.
REFUSED_AVERAGES: dict[int, str] = {6: "KAMA", 7: "MAMA"}

# Functions that subtract averages, and the kind whose rounding shows in the small differences: the triangular one's.
DIFFERENCES = frozenset({"APO", "MACDEXT", "PPO", "PVO"})
TRIANGULAR = 5


def why_refused(function: str) -> str | None:
    """Why the function is refused, as the end of a sentence; None when it is admitted."""
    return UNUSABLE.get(function) or REFUSED.get(function)


def why_average_refused(function: str, kind: int) -> str | None:
    """Why the function is refused with that kind of moving average, as the end of a sentence; None when it is
    admitted."""
    average = REFUSED_AVERAGES.get(kind)
    if average is not None:
        return f"is {average}, refused: {REFUSED[average]}"
    if kind == TRIANGULAR and function in DIFFERENCES:
        return "is TRIMA, refused: its rounding shows in differences of averages"
    return None
