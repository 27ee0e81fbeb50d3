"""Factors and an overlay of the scenario, in addition to the service's own: one that reads an indicator and volumes,
and some that fail now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random

from klinesync.core.candle import Candle
from klinesync.factor.flow import flow
from klinesync.factor.plugin import AnyFactor, Event, Factor, FactorSettings, Upstream
from klinesync.factor.structure import structure
from klinesync.overlay.instruction import Drawing
from klinesync.overlay.plugin import Overlay, View
from klinesync.overlay.registry import load_overlays
from sim.scenario import Faults, Scenario

INDICATORS = ("EMA(3)", "CVD", "VWAP", "TAKER_RATIO")
EMA = "ema_3"


class Trouble:
    """Whether a factor or overlay fails at its next call."""

    def __init__(self, scenario: Scenario) -> None:
        self.faults = scenario.faults
        self.faulted = 0
        self._rng = Random(f"plugins {scenario.seed}")

    def calm(self) -> None:
        self.faults = Faults()

    def may_strike(self, chance: float) -> None:
        """Raises `ArithmeticError` with that probability."""
        if chance and self._rng.random() < chance:
            self.faulted += 1
            raise ArithmeticError("told to fail")


class AboveAverage(Factor[int]):
    """Counts closes above a moving average, and emits their volumes: other bits of a candle give other events."""

    name = "above_average"
    label = "Above average"
    depends_on = (EMA,)
    state_type = int

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        values = upstream[EMA].state
        assert isinstance(values, dict)
        if not candle.close > values[EMA]:
            return state, ()
        event = {
            "visible_time": candle.time,
            "count": state + 1,
            "average": float(values[EMA]),
            "volume": candle.volume,
        }
        return state + 1, [event]


class Fallible(Factor[int]):
    """Counts candles, and fails now and then."""

    name = "fallible"
    label = "Fallible"
    state_type = int

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble

    def seed(self) -> int:
        return 0

    def advance(self, state: int, candle: Candle, upstream: Upstream) -> tuple[int, Sequence[Event]]:
        self._trouble.may_strike(self._trouble.faults.factor_fails)
        return state + 1, [{"visible_time": candle.time, "count": state + 1}] if state % 7 == 0 else ()


class FallibleOverlay:
    """Draws nothing, and fails now and then."""

    name = "fallible_overlay"
    version = 1
    depends_on = ("pivot",)
    features = ("fallible",)

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        self._trouble.may_strike(self._trouble.faults.overlay_fails)
        return ()

    def render(self, view: View) -> Sequence[Drawing]:
        return ()


def factors_with(trouble: Trouble) -> Callable[[FactorSettings], list[AnyFactor]]:
    """Loads the factors: the built-in ones, and those of the scenario."""
    return lambda settings: [*structure(settings), *flow(settings), AboveAverage(), Fallible(trouble)]


def overlays_with(trouble: Trouble) -> Callable[[], list[Overlay]]:
    """Loads the overlays."""
    return lambda: [*_installed_overlays(), FallibleOverlay(trouble)]


# Searching the installed plugins takes longer than the rest of a start.
_installed_overlays = cache(load_overlays)
