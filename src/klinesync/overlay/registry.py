"""Loads overlays: klinesync and other packages register theirs as entry points alike."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

from klinesync.overlay.plugin import BadOverlay, Overlay
from klinesync.runtime.plugin_points import points_of

# Entry points of overlays: name -> callable without arguments that returns an `Overlay`, for example its class.
ENTRY_POINTS = "klinesync.overlays"


def load_overlays(installed: Iterable[EntryPoint] | None = None) -> list[Overlay]:
    """All registered overlays. `installed`: entry points; by default those of this installation.

    Raises `BadOverlay`, which names the package, for an entry point that cannot be imported or is no overlay.
    """
    points = points_of(ENTRY_POINTS) if installed is None else installed
    return [_load(point) for point in sorted(points, key=lambda point: (point.name, point.value))]


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
