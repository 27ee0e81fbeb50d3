"""OverlayEngine: turns what the factors said about a batch into stored drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klinesync.core.candle import Closed

Overlay = Callable[[Closed], None]


class OverlayEngine:
    """Holds the registered overlays; none is registered yet, so that advancing does nothing, at no cost."""

    def __init__(self, overlays: Sequence[Overlay] = ()) -> None:
        self._overlays = tuple(overlays)

    def advance(self, batch: Sequence[Closed]) -> None:
        """Show each closed candle of `batch` to each overlay. Runs inside the write transaction, after the factors."""
        for overlay in self._overlays:
            for closed in batch:
                overlay(closed)
