"""JobTable: which series are ingested, and for whom. Values in, commands out.

A series of the whitelist is pinned: ingested for as long as the service runs. Any other is ingested on demand: the
first reference starts it, and when the last one is gone it goes on idle for a while, then stops. At most so many jobs
on demand at once; when all are taken, the one that has been idle longest makes room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId

Kind = Literal["whitelist", "ondemand"]
# Shares that add up to 1 do so up to this.
ROUNDING = 1e-9


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
    """All on-demand jobs are taken, and each has a subscriber; or the exchange has no room for one more. `detail`: a
    sentence about it, where there is more to say."""

    code = "capacity"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__("ondemand_ingest_capacity")
        self.detail = detail


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


class Room(Protocol):
    """What the exchange has room for."""

    def load(self, series: SeriesId) -> float:
        """The share of the exchange's requests that following the series takes; all of them together may take 1."""
        ...

    def too_many(self, series: SeriesId, count: int) -> str:
        """A sentence about `count` series, the last one of them `series`, for which there is no room."""
        ...


class JobTable:
    """The jobs. `idle_ttl_s`: how long one on demand goes on without a reference; `max_jobs`: most of them, 0 for no
    limit; `room`: what the exchange has room for beside, None: for any number. What is pinned always has room. Series
    are base series; monotonic times never go back."""

    def __init__(self, idle_ttl_s: float, max_jobs: int, room: Room | None = None) -> None:
        self._idle_ttl_s = idle_ttl_s
        self._max_jobs = max_jobs
        self._room = room
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
            commands += [self._stop(one) for one in self._making_room(series)]
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

    def _making_room(self, series: SeriesId) -> list[SeriesId]:
        """The idle series that make room for this one, the longest idle first. Raises `NoCapacity`."""
        idle, stopped = iter(self._idle), list[SeriesId]()
        if self._max_jobs and self._on_demand >= self._max_jobs:
            longest = next(idle, None)
            if longest is None:
                raise NoCapacity
            stopped.append(longest)
        if self._room is None or not (load := self._room.load(series)):
            return stopped
        left = 1.0 - sum(self._room.load(one) for one in self._entries if one not in stopped)
        while load > left + ROUNDING:
            longest = next(idle, None)
            if longest is None:
                raise NoCapacity(self._room.too_many(series, len(self._entries) + 1))
            stopped.append(longest)
            left += self._room.load(longest)
        return stopped

    def _stop(self, series: SeriesId) -> Stop:
        del self._entries[series]
        del self._idle[series]
        self._on_demand -= 1
        return Stop(series)
