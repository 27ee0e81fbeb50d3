"""JobTable: which series are ingested, and for whom. Values in, commands out.

A series of the whitelist is pinned: ingested for as long as the service runs. Any other is ingested on demand: the
first reference starts it, and when the last one is gone it goes on idle for a while, then stops. At most so many jobs
on demand at once; when all are taken, the one that has been idle longest makes room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId

Kind = Literal["whitelist", "ondemand"]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to ingest the series."""

    series: SeriesId


@dataclass(frozen=True, slots=True)
class Stop:
    """Ingest the series no more."""

    series: SeriesId


JobCommand = Start | Stop


class NoCapacity(Rejected):
    """All on-demand jobs are taken, and each has a subscriber."""

    code = "capacity"

    def __init__(self) -> None:
        super().__init__("ondemand_ingest_capacity")


@dataclass(slots=True)
class Entry:
    """One series that is ingested: how many references it has, and since when (monotonic) it has none."""

    series: SeriesId
    pinned: bool = False
    references: int = 0
    idle_since_s: float | None = None

    @property
    def kind(self) -> Kind:
        return "whitelist" if self.pinned else "ondemand"


class JobTable:
    """The jobs. `idle_ttl_s`: how long one on demand goes on without a reference; `max_jobs`: most of them, 0 for no
    limit. Series are base series; monotonic times never go back."""

    def __init__(self, idle_ttl_s: float, max_jobs: int) -> None:
        self._idle_ttl_s = idle_ttl_s
        self._max_jobs = max_jobs
        self._entries: dict[SeriesId, Entry] = {}
        # On-demand jobs without a reference, in the order in which they lost the last one.
        self._idle: dict[SeriesId, None] = {}
        self._on_demand = 0

    def __contains__(self, series: SeriesId) -> bool:
        return series in self._entries

    def entries(self) -> list[Entry]:
        """All jobs, in the order of their starts."""
        return list(self._entries.values())

    def pin(self, series: SeriesId) -> list[JobCommand]:
        """Ingest the series from now on, whoever asks for it."""
        entry = self._entries.get(series)
        if entry is None:
            self._entries[series] = Entry(series, pinned=True)
            return [Start(series)]
        if not entry.pinned:
            entry.pinned = True
            entry.idle_since_s = None
            self._idle.pop(series, None)
            self._on_demand -= 1
        return []

    def acquire(self, series: SeriesId) -> list[JobCommand]:
        """One reference more. Raises `NoCapacity`, and then nothing has changed."""
        entry = self._entries.get(series)
        commands: list[JobCommand] = []
        if entry is None:
            if self._max_jobs and self._on_demand >= self._max_jobs:
                longest = next(iter(self._idle), None)
                if longest is None:
                    raise NoCapacity
                commands.append(self._stop(longest))
            entry = self._entries[series] = Entry(series)
            self._on_demand += 1
            commands.append(Start(series))
        entry.references += 1
        entry.idle_since_s = None
        self._idle.pop(series, None)
        return commands

    def release(self, series: SeriesId, now_s: float) -> None:
        """One reference less."""
        entry = self._entries[series]
        assert entry.references > 0, f"{series} has no reference that could be given back"
        entry.references -= 1
        if not entry.references and not entry.pinned:
            entry.idle_since_s = now_s
            self._idle[series] = None

    def expire(self, now_s: float) -> list[JobCommand]:
        """Stop those that were idle for too long."""
        commands: list[JobCommand] = []
        for series in list(self._idle):
            since_s = self._entries[series].idle_since_s
            if since_s is not None and now_s - since_s < self._idle_ttl_s:
                break
            commands.append(self._stop(series))
        return commands

    def _stop(self, series: SeriesId) -> Stop:
        del self._entries[series]
        del self._idle[series]
        self._on_demand -= 1
        return Stop(series)
