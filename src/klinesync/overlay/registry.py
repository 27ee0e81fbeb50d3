"""Finds overlays: those of klinesync and those of other packages are registered as entry points alike."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

from klinesync.overlay.plugin import BadOverlay, Overlay
from klinesync.runtime.plugin_points import points_of

# Where packages register their overlays: name -> callable without arguments that returns an `Overlay`, its class say.
ENTRY_POINTS = "klinesync.overlays"


def load_overlays(found: Iterable[EntryPoint] | None = None) -> list[Overlay]:
    """All registered overlays; `found` are the entry points of this installation unless they are given.

    Raises `BadOverlay`, which names the package, for one that cannot be imported or is no overlay.
    """
    points = points_of(ENTRY_POINTS) if found is None else found
    return [_load(point) for point in sorted(points, key=lambda one: (one.name, one.value))]


def _load(point: EntryPoint) -> Overlay:
    package = point.dist.name if point.dist is not None else "an unknown package"
    try:
        overlay: object = point.load()()
    except Exception as error:
        reason = f"{point.value} of {package} cannot be loaded: {type(error).__name__}: {error}"
        raise BadOverlay(point.name, reason) from error
    if not isinstance(overlay, Overlay):
        raise BadOverlay(
            point.name,
            f"{point.value} of {package} returns a {type(overlay).__name__}, which is no overlay: it needs name, "
            "version, depends_on, features, draw and render",
        )
    return overlay
