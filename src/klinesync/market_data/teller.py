"""Teller: system messages about an ingested series, to the clients of that series and of the series derived from it."""

from __future__ import annotations

from collections.abc import Mapping

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.contact import StreamStatus, stream_sentence
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ledger_step import Progress
from klinesync.runtime.clock import Clock
from klinesync.ws import protocol
from klinesync.ws.hub import CandleHub
from klinesync.ws.messages import STREAM_EVENTS, SystemEventName

# Shortest time between two `factor.rebuild` messages of one rebuild, in seconds.
REBUILD_TELL_EVERY_S = 1.0


class Teller:
    """Sends system messages.

    hub: has the clients.
    derived: names the series that are derived from one.
    clock: times how often a rebuild is told.
    """

    def __init__(self, hub: CandleHub, derived: DerivedStep, clock: Clock) -> None:
        self._hub = hub
        self._derived = derived
        self._clock = clock
        self._rebuilds: dict[SeriesId, float] = {}  # rebuilds in progress, and when each was told last

    def stream(self, series: SeriesId, status: StreamStatus) -> None:
        """The state of the series' stream has changed."""
        facts = {"state": status.state, "since": status.since, "last_frame_at": status.last_frame_at}
        self._tell(series, STREAM_EVENTS[status.state], stream_sentence(status), facts | {"detail": status.detail})

    def backfill(self, series: SeriesId, message: str, facts: Mapping[str, object]) -> None:
        """Progress of a reading of the series' history."""
        self._tell(series, "backfill.progress", message, facts)

    def ledger(self, progress: Progress) -> None:
        """Progress of factors and overlays that are computed piece by piece: `running` at most once in
        `REBUILD_TELL_EVERY_S`, `done` at the end. Only the series' own clients are told."""
        series, now_s = progress.series, self._clock.monotonic_s()
        state = "running" if progress.left else "done"
        told_s = self._rebuilds.pop(series, float("-inf"))
        if progress.left:
            if now_s - told_s < REBUILD_TELL_EVERY_S:
                self._rebuilds[series] = told_s
                return
            self._rebuilds[series] = now_s
        if self._hub.watched(series):
            how = "up to date" if state == "done" else "under way"
            message = f"factors and overlays are computed anew ({progress.reason}): {how}"
            facts = {
                "state": state,
                "reason": progress.reason,
                "epoch": progress.epoch,
                "factor_head_time": progress.factor_head,
                "head_time": progress.head,
            }
            self._hub.tell(series, protocol.system(series, "factor.rebuild", message, facts))

    def _tell(self, series: SeriesId, event: SystemEventName, message: str, facts: Mapping[str, object]) -> None:
        for receiver in (series, *self._derived.derived_from(series)):
            if self._hub.watched(receiver):
                self._hub.tell(receiver, protocol.system(receiver, event, message, facts))
