"""OverlayEngine: turns what the factors said about a batch into stored drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klinesync.core.candle import Applied, Closed

Overlay = Callable[[Closed], None]


class OverlayEngine:
    """Holds the registered overlays; none is registered yet, so that advancing does nothing, at no cost."""

    def __init__(self, overlays: Sequence[Overlay] = ()) -> None:
        self._overlays = tuple(overlays)

    def advance(self, changes: Sequence[Applied]) -> None:
        """Show each changed candle to each overlay, in order. Runs inside the write transaction, after the factors."""
        for overlay in self._overlays:
            for applied in changes:
                for candle in applied.candles:
                    overlay(Closed(applied.series, candle))
