"""FactorEngine: advances every registered factor over the closed candles of a batch, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klinesync.core.candle import Applied, Closed

Factor = Callable[[Closed], None]


class FactorEngine:
    """Holds the registered factors; none is registered yet, so that advancing does nothing, at no cost."""

    def __init__(self, factors: Sequence[Factor] = ()) -> None:
        self._factors = tuple(factors)

    def advance(self, changes: Sequence[Applied]) -> None:
        """Show each changed candle to each factor, in order. Runs inside the write transaction."""
        for factor in self._factors:
            for applied in changes:
                for candle in applied.candles:
                    factor(Closed(applied.series, candle))
