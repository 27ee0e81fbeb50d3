"""Where factors come from: entry points of installed distributions. The built-in ones come through the same door."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

from klinesync.core.errors import Rejected
from klinesync.factor.plugin import AnyFactor, BadFactor, FactorSettings
from klinesync.runtime.plugin_points import points_of

GROUP = "klinesync.factors"


def load_factors(settings: FactorSettings, found: Iterable[EntryPoint] | None = None) -> list[AnyFactor]:
    """The factors of all entry points `klinesync.factors`, by the entry points' names.

    An entry point names a callable `(settings: FactorSettings) -> Sequence[Factor]`. Raises `BadFactor` when one cannot
    be imported or called, or gives something else; what it refuses itself (`BadFlag`, say) is passed on.
    """
    points = points_of(GROUP) if found is None else found
    factors: list[AnyFactor] = []
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        factors += _factors_of(point, settings)
    return factors


def _factors_of(point: EntryPoint, settings: FactorSettings) -> list[AnyFactor]:
    try:
        made = list(point.load()(settings))
    except Rejected:
        raise
    except Exception as error:
        raise BadFactor(point.name, f"{_origin(point)} cannot be used: {type(error).__name__}: {error}") from error
    for factor in made:
        if not isinstance(factor, AnyFactor):
            raise BadFactor(point.name, f"{_origin(point)} gives a {type(factor).__name__}, which is no Factor")
    return made


def _origin(point: EntryPoint) -> str:
    distribution = "an unknown distribution" if point.dist is None else point.dist.name
    return f"{point.value} of {distribution}"
