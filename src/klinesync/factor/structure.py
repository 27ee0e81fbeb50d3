"""The built-in structure factors: pivot -> pen -> zhongshu -> anchor."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.errors import BadFlag
from klinesync.factor.anchor import AnchorFactor
from klinesync.factor.pen import PenFactor
from klinesync.factor.pivot import WINDOW_MAX, PivotFactor
from klinesync.factor.plugin import AnyFactor, FactorSettings
from klinesync.factor.zhongshu import ZhongshuFactor


def structure(settings: FactorSettings) -> Sequence[AnyFactor]:
    """The entry point. Raises `BadFlag` when a pivot window cannot be."""
    major, minor = settings.pivot_window_major, settings.pivot_window_minor
    if not 1 <= major <= WINDOW_MAX:
        raise BadFlag("factor_pivot_window_major", f"{major} is not between 1 and {WINDOW_MAX} candles")
    if not 1 <= minor <= major:
        raise BadFlag("factor_pivot_window_minor", f"{minor} is not between 1 and the major window, {major} candles")
    return (PivotFactor(major, minor), PenFactor(), ZhongshuFactor(), AnchorFactor())
