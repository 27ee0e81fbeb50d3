"""JobTable: the ingest jobs and their references. Pure: calls in, commands out.

A series of the whitelist is pinned: ingested for as long as the service runs. Other series are ingested on demand: the
first reference starts a job; after the last release the job is idle for a while, then stops. The number of on-demand
jobs is limited; at the limit the job with the longest idle time is stopped for a new job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId

Kind = Literal["whitelist", "ondemand"]
# Tolerance of the sum of shares, for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to ingest the series."""

    series: SeriesId


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop ingesting the series."""

    series: SeriesId


JobCommand = Start | Stop


class NoCapacity(Rejected):
    """The limit of on-demand jobs or of the exchange is reached, and every job has a subscriber. `detail`: a sentence
    about the exchange's limit; None for the limit of the flag."""

    code = "capacity"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__("ondemand_ingest_capacity")
        self.detail = detail


@dataclass(slots=True)
class Entry:
    """An ingested series.

    series: the series.
    pinned: whether the whitelist has the series.
    references: number of references.
    idle_since_s: since when there is no reference, monotonic seconds; None while there is one, or if pinned.
    """

    series: SeriesId
    pinned: bool = False
    references: int = 0
    idle_since_s: float | None = None

    @property
    def kind(self) -> Kind:
        return "whitelist" if self.pinned else "ondemand"


class Room(Protocol):
    """The limits of the exchange."""

    def load(self, series: SeriesId) -> float:
        """The share of the exchange's request budget that following the series takes; all series may take 1."""
        ...

    def too_many(self, series: SeriesId, count: int) -> str:
        """A sentence about `count` series, the last of them `series`, that exceed the exchange's limit."""
        ...


class JobTable:
    """The ingest jobs of base series. Pinned series always have room; monotonic times never go back.

    idle_ttl_s: idle time before an on-demand job stops, in seconds.
    max_jobs: most on-demand jobs; 0: no limit.
    room: limits of the exchange; None: no limit.
    """

    def __init__(self, idle_ttl_s: float, max_jobs: int, room: Room | None = None) -> None:
        self._idle_ttl_s = idle_ttl_s
        self._max_jobs = max_jobs
        self._room = room
        self._entries: dict[SeriesId, Entry] = {}
        # On-demand jobs without a reference, the longest idle first.
        self._idle: dict[SeriesId, None] = {}
        self._on_demand = 0

    def __contains__(self, series: SeriesId) -> bool:
        return series in self._entries

    def entries(self) -> list[Entry]:
        """All jobs, in the order of their starts."""
        return list(self._entries.values())

    def pin(self, series: SeriesId) -> list[JobCommand]:
        """Ingest the series from now on, without references."""
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
        """Add a reference. Raises `NoCapacity`, without a change."""
        entry = self._entries.get(series)
        commands: list[JobCommand] = []
        if entry is None:
            commands += [self._stop(idle) for idle in self._idle_to_stop(series)]
            entry = self._entries[series] = Entry(series)
            self._on_demand += 1
            commands.append(Start(series))
        entry.references += 1
        entry.idle_since_s = None
        self._idle.pop(series, None)
        return commands

    def release(self, series: SeriesId, now_s: float) -> None:
        """Give back a reference."""
        entry = self._entries[series]
        assert entry.references > 0, f"{series} has no reference that could be given back"
        entry.references -= 1
        if not entry.references and not entry.pinned:
            entry.idle_since_s = now_s
            self._idle[series] = None

    def expire(self, now_s: float) -> list[JobCommand]:
        """Stop jobs whose idle time is over."""
        commands: list[JobCommand] = []
        for series in list(self._idle):
            since_s = self._entries[series].idle_since_s
            if since_s is not None and now_s - since_s < self._idle_ttl_s:
                break
            commands.append(self._stop(series))
        return commands

    def _idle_to_stop(self, series: SeriesId) -> list[SeriesId]:
        """The idle series to stop for a new series, the longest idle first. Raises `NoCapacity`."""
        idle, stopped = iter(self._idle), list[SeriesId]()
        if self._max_jobs and self._on_demand >= self._max_jobs:
            longest = next(idle, None)
            if longest is None:
                raise NoCapacity
            stopped.append(longest)
        if self._room is None or not (load := self._room.load(series)):
            return stopped
        free = 1.0 - sum(self._room.load(entry) for entry in self._entries if entry not in stopped)
        while load > free + ROUNDING:
            longest = next(idle, None)
            if longest is None:
                raise NoCapacity(self._room.too_many(series, len(self._entries) + 1))
            stopped.append(longest)
            free += self._room.load(longest)
        return stopped

    def _stop(self, series: SeriesId) -> Stop:
        del self._entries[series]
        del self._idle[series]
        self._on_demand -= 1
        return Stop(series)
