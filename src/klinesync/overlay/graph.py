"""OverlayGraph: the registered overlays in one order; it checks their drawings. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import msgspec

from klinesync.core.dates import date_text
from klinesync.factor.plugin import Event
from klinesync.overlay.instruction import BadDrawing, Drawing, checked
from klinesync.overlay.plugin import BadOverlay, Overlay, OverlayFault, View

# Most drawings of one event; more would fill the store.
MAX_DRAWINGS_OF_AN_EVENT = 64
# Most rendered drawings of one read; the largest window has far fewer minor pivots.
MAX_DRAWINGS_OF_A_VIEW = 20_000

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FEATURE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


class OverlayGraph:
    """Overlays by name. The drawings do not depend on the order of registration.

    overlays: in any order.
    factors: names of the factors that run.

    Raises `BadOverlay` for a name or a feature of two overlays, and for a dependency on a factor that does not run.
    """

    def __init__(self, overlays: Iterable[Overlay], factors: Collection[str]) -> None:
        self._factors = frozenset(factors)
        self._overlays: dict[str, Overlay] = {}
        owners: dict[str, str] = {}
        for overlay in sorted(overlays, key=lambda overlay: overlay.name):
            self._check(overlay)
            self._overlays[overlay.name] = overlay
            for feature in overlay.features:
                if feature in owners:
                    owner = owners[feature]
                    raise BadOverlay(overlay.name, f"draws {feature}, which overlay {owner} draws: rename one of them")
                owners[feature] = overlay.name
        self._by_factor: dict[str, list[Overlay]] = {}
        for overlay in self._overlays.values():
            for factor in dict.fromkeys(overlay.depends_on):
                self._by_factor.setdefault(factor, []).append(overlay)

    def _check(self, overlay: Overlay) -> None:
        name = overlay.name
        if not _NAME.fullmatch(name):
            raise BadOverlay(repr(name), "is named in lower-case letters, digits and _, a letter first")
        if name in self._overlays:
            raise BadOverlay(name, "is registered twice: rename one, or uninstall the package of the other")
        for feature in overlay.features:
            if not _FEATURE.fullmatch(feature):
                raise BadOverlay(name, f"has the feature {feature!r}; one is written like pen.confirmed")
        for factor in overlay.depends_on:
            if factor not in self._factors:
                running = ", ".join(sorted(self._factors)) or "none"
                raise BadOverlay(name, f"reads factor {factor}, which does not run (running: {running})")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the overlays, in the order of rendering."""
        return tuple(self._overlays)

    @property
    def features(self) -> tuple[str, ...]:
        """The features of all overlays."""
        return tuple(feature for overlay in self._overlays.values() for feature in overlay.features)

    @property
    def fingerprint(self) -> str:
        """A text that is equal when stored drawings are equal, for the same factors."""
        parts = [
            (overlay.name, overlay.version, list(overlay.depends_on), list(overlay.features))
            for overlay in self._overlays.values()
        ]
        return msgspec.json.encode(parts).decode()

    def without(self, *overlays: str) -> OverlayGraph:
        """The graph without these overlays, which are suspended."""
        return OverlayGraph(
            [overlay for name, overlay in self._overlays.items() if name not in overlays], self._factors
        )

    def without_factors(self, *factors: str) -> OverlayGraph:
        """The graph without these factors, and without the overlays that read them."""
        remaining = self._factors.difference(factors)
        return OverlayGraph(
            [overlay for overlay in self._overlays.values() if remaining.issuperset(overlay.depends_on)], remaining
        )

    def draw(self, events: Iterable[tuple[str, Event]]) -> list[Drawing]:
        """The drawings to store for these events (pairs of a factor's name and its event), in their order.

        Each event is drawn by itself, so that drawings and their order do not depend on how events are split into
        calls. Raises `OverlayFault`.
        """
        drawings: list[Drawing] = []
        for factor, event in events:
            for overlay in self._by_factor.get(factor, ()):
                drawings += _drawn(overlay, factor, event)
        return drawings

    def render(self, view: View) -> list[Drawing]:
        """The drawings of this read, which are not stored. Raises `OverlayFault`."""
        drawings: list[Drawing] = []
        for overlay in self._overlays.values():
            drawings += _checked_drawings(
                overlay, view.at_time, MAX_DRAWINGS_OF_A_VIEW, partial(overlay.render, view), stored=False
            )
        return drawings


def _drawn(overlay: Overlay, factor: str, event: Event) -> list[Drawing]:
    time = event["visible_time"]
    assert isinstance(time, int), "the factor graph has checked events"
    return _checked_drawings(overlay, time, MAX_DRAWINGS_OF_AN_EVENT, partial(overlay.draw, factor, event), stored=True)


def _checked_drawings(
    overlay: Overlay, time: int, most: int, make: Callable[[], Sequence[Drawing]], *, stored: bool
) -> list[Drawing]:
    """The checked drawings of an overlay. A plugin may raise any exception, which becomes an `OverlayFault`.

    overlay: that makes the drawings.
    time: open time of the event's candle, or of the last candle of the window.
    most: limit of the number of drawings.
    make: calls the overlay.
    stored: whether the drawings are of an event, and are stored; otherwise they are rendered.
    """
    try:
        drawings = list(make())
        if len(drawings) > most:
            raise BadDrawing(f"{len(drawings)} drawings at once; the most are {most}")
        drawings = checked(drawings)
        _check_names(overlay, drawings)
        for drawing in drawings:
            _check_visible_time(drawing, time, stored=stored)
    except Exception as error:
        raise OverlayFault(overlay.name, time, error) from error
    return drawings


def _check_visible_time(drawing: Drawing, time: int, *, stored: bool) -> None:
    """A stored drawing becomes visible with its event, a rendered one within the window."""
    if drawing.visible_time > time or (stored and drawing.visible_time != time):
        problem = f"its event {date_text(time)}" if stored else "after the window's end"
        visible = date_text(drawing.visible_time)
        raise BadDrawing(f"{drawing.instruction_id} has visible_time {visible}, {problem}")


def _check_names(overlay: Overlay, drawings: Sequence[Drawing]) -> None:
    seen: set[str] = set()
    for drawing in drawings:
        name, feature = drawing.instruction_id, drawing.definition.feature
        if feature not in overlay.features:
            raise BadDrawing(f"{name} is of the feature {feature}, which is not among {', '.join(overlay.features)}")
        if name != feature and not name.startswith(f"{feature}:"):
            raise BadDrawing(f"{name} is no id of the feature {feature}: it is {feature} or {feature}:…")
        if name in seen:
            raise BadDrawing(f"{name} is drawn twice at once")
        seen.add(name)
