"""A factor: how many closes in a row went the same way. It speaks up when a run gets as long as `longest`."""

from collections.abc import Sequence

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.plugin import Event, Factor, FactorSettings, Json, Upstream


class Run(msgspec.Struct, frozen=True):
    """What the next candle needs to know: the last close, and the run that it ended."""

    close: float | None = None
    direction: int = 0
    length: int = 0


class MomentumRun(Factor[Run]):
    name = "momentum_run"
    label = "Runs of closes"
    state_type = Run
    outputs = ("run",)

    def __init__(self, longest: int = 5) -> None:
        self.longest = longest
        self.parameters = {"longest": longest}

    def seed(self) -> Run:
        return Run()

    def advance(self, state: Run, candle: Candle, upstream: Upstream) -> tuple[Run, Sequence[Event]]:
        change = 0.0 if state.close is None else candle.close - state.close
        direction = (change > 0) - (change < 0)
        run = Run(candle.close, direction, state.length + 1 if direction == state.direction else 1)
        if direction and run.length == self.longest:
            return run, [{"direction": direction, "length": run.length, "visible_time": candle.time}]
        return run, []

    def numbers(self, state: Run) -> Sequence[float | None]:
        return (state.direction * state.length,)

    def head(self, state: Run, candle: Candle) -> dict[str, Json]:
        return {"direction": state.direction, "length": state.length}


def factors(settings: FactorSettings) -> Sequence[MomentumRun]:
    """The entry point."""
    return [MomentumRun()]
