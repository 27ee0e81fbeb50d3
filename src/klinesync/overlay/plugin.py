"""The contract of an overlay: factor output in, drawings out. Pure.

`draw` is called once for each event of a factor; its drawings are stored and never change. `render` is called at each
read, for drawings of a factor's head, which may still change, and for drawings over the whole window. Neither method
keeps state between calls.
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

# A factor's `head`: the results at a candle that may still change.
Head = Mapping[str, Json]

_NO_HEAD: Head = {}


@dataclass(frozen=True, slots=True)
class View:
    """The input of `render`: the window of closed candles from `start_time` to `at_time`, both included.

    series: of the candles.
    start_time, at_time: open times, in UTC seconds.
    heads: the heads at `at_time` by factor.
    events: the events with a `visible_time` in the window by factor, oldest first.
    candles: of the window, ascending.

    A factor that is switched off or suspended is in neither mapping; its `head` and `events_of` are empty.
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
    """The interface of overlays. Registered under the entry points `klinesync.overlays`, as a callable that returns an
    overlay."""

    @property
    def name(self) -> str:
        """Unique among the overlays."""

    @property
    def version(self) -> int:
        """Increased with every change of the drawings, so that stored drawings are drawn again."""

    @property
    def depends_on(self) -> Sequence[str]:
        """The factors whose events and heads the overlay reads; `draw` gets events of these only."""

    @property
    def features(self) -> Sequence[str]:
        """Its features, such as `pen.confirmed`. An `instruction_id` is a feature, or a feature followed by `:…`."""

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """Drawings that this event alone decides, each with the event's `visible_time`. Stored once, never changed."""

    def render(self, view: View) -> Sequence[Drawing]:
        """Drawings of heads and over the whole window. Called at every read; never stored."""


class BadOverlay(Rejected):
    """An overlay that cannot be registered. Stops the start."""

    code = "bad_overlay"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"overlay {name}: {reason}")


class OverlayFault(KlinesyncError):
    """An overlay raised an exception, or returned a malformed drawing. `time`: open time of the candle."""

    code = "overlay_fault"

    def __init__(self, overlay: str, time: int, error: BaseException | str) -> None:
        self.overlay = overlay
        self.time = time
        self.error = error
        kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
        super().__init__(f"overlay {overlay} failed at the candle at {date_text(time)}: {kind}{error}")
