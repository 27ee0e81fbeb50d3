"""JobTable against a model of pinned series, references and idle times."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from klinesync.core.series_id import SeriesId
from klinesync.ingest.jobs import JobCommand, JobTable, NoCapacity, Start, Stop

SERIES = [SeriesId.parse(f"binance:spot:S{number}/USDT:1m") for number in range(6)]
TTL_S = 60.0
some_series = st.sampled_from(SERIES)


@dataclass
class Model:
    """One on-demand job: its references, and when it lost the last one."""

    references: int = 0
    idle_since_s: float | None = None


@dataclass
class World:
    pinned: set[SeriesId] = field(default_factory=set)
    pinned_references: dict[SeriesId, int] = field(default_factory=dict)
    jobs: dict[SeriesId, Model] = field(default_factory=dict)
    running: set[SeriesId] = field(default_factory=set)


class JobsMachine(RuleBasedStateMachine):
    max_jobs = 3

    def __init__(self) -> None:
        super().__init__()
        self.table = JobTable(TTL_S, self.max_jobs)
        self.world = World()
        self.now_s = 0.0

    def carry_out(self, commands: list[JobCommand]) -> None:
        for command in commands:
            match command:
                case Start(series):
                    assert series not in self.world.running, "started twice"
                    self.world.running.add(series)
                case Stop(series):
                    assert series in self.world.running, "stopped though it did not run"
                    self.world.running.remove(series)

    @rule(series=some_series)
    def pin(self, series: SeriesId) -> None:
        self.carry_out(self.table.pin(series))
        if series not in self.world.pinned:
            self.world.pinned.add(series)
            model = self.world.jobs.pop(series, None)
            self.world.pinned_references[series] = model.references if model else 0

    @rule(series=some_series)
    def acquire(self, series: SeriesId) -> None:
        world = self.world
        if series in world.pinned:
            world.pinned_references[series] += 1
            assert self.table.acquire(series) == []
            return
        if series not in world.jobs and self.max_jobs and len(world.jobs) >= self.max_jobs:
            idle = {one: model.idle_since_s for one, model in world.jobs.items() if model.idle_since_s is not None}
            if not idle:
                before = [(entry.series, entry.references) for entry in self.table.entries()]
                with pytest.raises(NoCapacity):
                    self.table.acquire(series)
                assert [(entry.series, entry.references) for entry in self.table.entries()] == before
                return
            commands = self.table.acquire(series)
            assert isinstance(commands[0], Stop)
            assert idle[commands[0].series] == min(idle.values()), "the longest idle one makes room"
            del world.jobs[commands[0].series]
        else:
            commands = self.table.acquire(series)
            assert (Start(series) in commands) == (series not in world.jobs)
        self.carry_out(commands)
        model = world.jobs.setdefault(series, Model())
        model.references += 1
        model.idle_since_s = None

    @rule(data=st.data())
    @precondition(lambda self: self.held())
    def release(self, data: st.DataObject) -> None:
        series = data.draw(st.sampled_from(self.held()))
        self.table.release(series, self.now_s)
        if series in self.world.pinned:
            self.world.pinned_references[series] -= 1
            return
        model = self.world.jobs[series]
        model.references -= 1
        if not model.references:
            model.idle_since_s = self.now_s

    def held(self) -> list[SeriesId]:
        pinned = [series for series, count in self.world.pinned_references.items() if count]
        return sorted([*pinned, *(series for series, model in self.world.jobs.items() if model.references)], key=str)

    @rule(seconds=st.sampled_from([0.0, 1.0, TTL_S / 2, TTL_S, 10 * TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.carry_out(self.table.expire(self.now_s))
        for series, model in list(self.world.jobs.items()):
            if model.idle_since_s is not None and self.now_s - model.idle_since_s >= TTL_S:
                del self.world.jobs[series]

    @invariant()
    def what_runs_is_what_is_wanted(self) -> None:
        world = self.world
        assert world.running == world.pinned | world.jobs.keys()
        assert {entry.series for entry in self.table.entries()} == world.running
        for entry in self.table.entries():
            if entry.pinned:
                assert entry.references == world.pinned_references[entry.series]
                assert entry.idle_since_s is None
            else:
                assert entry.references == world.jobs[entry.series].references
                assert (entry.idle_since_s is None) == bool(entry.references)

    @invariant()
    def the_limit_holds(self) -> None:
        if self.max_jobs:
            assert sum(entry.kind == "ondemand" for entry in self.table.entries()) <= self.max_jobs


class UnlimitedJobsMachine(JobsMachine):
    max_jobs = 0


TestJobs = JobsMachine.TestCase
TestUnlimitedJobs = UnlimitedJobsMachine.TestCase


def test_a_reference_cannot_be_released_twice() -> None:
    table = JobTable(TTL_S, 0)
    table.acquire(SERIES[0])
    table.release(SERIES[0], 0.0)
    with pytest.raises(AssertionError):
        table.release(SERIES[0], 0.0)


def test_with_a_ttl_of_zero_a_job_ends_at_the_next_expiry() -> None:
    table = JobTable(0.0, 0)
    table.acquire(SERIES[0])
    table.release(SERIES[0], 5.0)
    assert table.expire(5.0) == [Stop(SERIES[0])]


class FewFit:
    """An exchange with room for that many series."""

    def __init__(self, fit: int) -> None:
        self.fit = fit

    def load(self, series: SeriesId) -> float:
        return 1.0 / self.fit if self.fit else 0.0

    def too_many(self, series: SeriesId, count: int) -> str:
        return f"{self.fit} fit, and {count} are too many"


@given(st.integers(1, 12), st.integers(0, 6), st.integers(0, 6))
def test_on_demand_jobs_and_the_whitelist_together_keep_the_exchanges_limit(fit: int, pinned: int, idle: int) -> None:
    names = [SeriesId.parse(f"simex:spot:S{number}/USDT:1m") for number in range(40)]
    table = JobTable(TTL_S, 0, FewFit(fit))
    for series in names[:pinned]:
        assert table.pin(series) == [Start(series)], "what is pinned is never refused"
    room = max(0, fit - pinned)
    idle = min(idle, room)
    for number in range(room):
        table.acquire(names[pinned + number])
    for number in range(idle):
        table.release(names[pinned + number], float(number))
    for number in range(idle):
        commands = table.acquire(names[20 + number])
        assert commands == [Stop(names[pinned + number]), Start(names[20 + number])], "the longest idle one makes room"
    with pytest.raises(NoCapacity) as refused:
        table.acquire(names[39])
    assert (refused.value.code, str(refused.value)) == ("capacity", "ondemand_ingest_capacity")
    assert refused.value.detail == f"{fit} fit, and {max(fit, pinned) + 1} are too many"
    if pinned:
        assert table.acquire(names[0]) == [], "what runs needs no room"


def test_an_exchange_without_known_limits_has_room() -> None:
    table = JobTable(TTL_S, 0, FewFit(0))
    for number in range(100):
        table.acquire(SeriesId.parse(f"simex:spot:S{number}/USDT:1m"))
