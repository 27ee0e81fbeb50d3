"""The contract of an overlay: factor output in, drawings out. Pure.

Two doors, by how long a drawing holds. `draw` is asked once for each event of a factor: what it returns never changes
and is stored. `render` is asked at each read: what belongs to a factor's head, which may still move, and what is
composed over the window that is shown. Neither keeps anything between calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.errors import KlinesyncError, Rejected
from klinesync.core.series_id import SeriesId
from klinesync.factor.plugin import Event, Json
from klinesync.overlay.instruction import Drawing

# A factor's `head`: what is known at a candle and may still be redrawn.
Head = Mapping[str, Json]

_NO_HEAD: Head = {}


@dataclass(frozen=True, slots=True)
class View:
    """What `render` may look at: the window of closed candles from `start_time` to `at_time`, both included.

    `events` are those with a `visible_time` in the window, oldest first; `heads` are the factors' heads at `at_time`;
    `candles` are those of the window, ascending. A factor that is switched off or suspended is in neither mapping:
    `head` and `events_of` answer for it as for one that has nothing to say.
    """

    series: SeriesId
    start_time: int
    at_time: int
    heads: Mapping[str, Head] = field(default_factory=dict)
    events: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    candles: Sequence[Candle] = ()

    def head(self, factor: str) -> Head:
        """The factor's head at `at_time`; empty when it has none."""
        return self.heads.get(factor, _NO_HEAD)

    def events_of(self, factor: str) -> Sequence[Event]:
        """The factor's events of the window, oldest first."""
        return self.events.get(factor, ())


@runtime_checkable
class Overlay(Protocol):
    """Something that draws. Registered under the entry points `klinesync.overlays` as a callable that returns one."""

    @property
    def name(self) -> str:
        """Unique among the overlays."""

    @property
    def version(self) -> int:
        """Raised with every change of what is drawn: stored drawings are then made anew."""

    @property
    def depends_on(self) -> Sequence[str]:
        """The factors whose events and heads it reads; `draw` is shown the events of no others."""

    @property
    def features(self) -> Sequence[str]:
        """What it draws, `pen.confirmed` say. An `instruction_id` is a feature, or one with `:…` behind it."""

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """Drawings that this event alone decides, each with the event's `visible_time`. Stored once, never changed."""

    def render(self, view: View) -> Sequence[Drawing]:
        """Drawings of the heads, and those composed over the window. Made at every read, never stored."""


class BadOverlay(Rejected):
    """An overlay that cannot be registered. Stops the start."""

    code = "bad_overlay"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"overlay {name}: {reason}")


class OverlayFault(KlinesyncError):
    """An overlay that raised, or drew what the wire does not have. `time` is the candle it was asked about."""

    code = "overlay_fault"

    def __init__(self, overlay: str, time: int, error: BaseException | str) -> None:
        self.overlay = overlay
        self.time = time
        self.error = error
        kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
        super().__init__(f"overlay {overlay} failed at the candle at {date_text(time)}: {kind}{error}")
