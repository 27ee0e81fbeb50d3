"""Teller: sends system messages about an ingested series to its clients, and to clients of its derived series."""

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

# Shortest time between two `factor.rebuild` messages of a rebuild, in seconds.
REBUILD_TELL_EVERY_S = 1.0


class Teller:
    """Sends system messages.

    hub: has the clients.
    derived: the derived series of a base.
    clock: throttles messages of a rebuild.
    """

    def __init__(self, hub: CandleHub, derived: DerivedStep, clock: Clock) -> None:
        self._hub = hub
        self._derived = derived
        self._clock = clock
        self._rebuilds: dict[SeriesId, float] = {}  # rebuilds in progress, and the time of their newest message

    def stream(self, series: SeriesId, status: StreamStatus) -> None:
        """The state of the series' stream has changed."""
        facts = {"state": status.state, "since": status.since, "last_frame_at": status.last_frame_at}
        self._tell(series, STREAM_EVENTS[status.state], stream_sentence(status), facts | {"detail": status.detail})

    def backfill(self, series: SeriesId, message: str, facts: Mapping[str, object]) -> None:
        """Progress of reading a series' history. `message`: a sentence; `facts`: fields of the message."""
        self._tell(series, "backfill.progress", message, facts)

    def ledger(self, progress: Progress) -> None:
        """Progress of a rebuild of factors and overlays: `running` at most once in `REBUILD_TELL_EVERY_S`, `done` at
        the end. Sent to clients of the series alone."""
        series, now_s = progress.series, self._clock.monotonic_s()
        state = "running" if progress.left else "done"
        sent_s = self._rebuilds.pop(series, float("-inf"))
        if progress.left:
            if now_s - sent_s < REBUILD_TELL_EVERY_S:
                self._rebuilds[series] = sent_s
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
