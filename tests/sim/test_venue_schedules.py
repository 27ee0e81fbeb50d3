"""Random schedules of cancels, timeouts, faults and stops over the gate and the polling of a venue, under virtual time.

Each ends with a living process, every pinned series up to date with final values, and a request rate that never
exceeded that of a healthy venue.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from sim.venue_world import Ended, Schedule, World, peak, troubled_peak

# Schedules without faults that show the healthy rate of a limiter, by seed; and the allowed excess of other schedules.
HEALTHY_SEEDS = (0, 1, 1477)  # the clients of the last one are among the busiest of two thousand
HEALTHY_SPREAD = 1.2
# Requests per minute to a venue that has not answered for a while.
TROUBLED_MOST = 20


@cache
def healthy_peak(rate_limit_s: float, folder: Path) -> int:
    """The largest request rate of any minute, of healthy polled venues."""
    calm = (Schedule(seed, rate_limit_s, streams=False, calm=True) for seed in HEALTHY_SEEDS)
    return max(peak(World(one, folder).run().asked) for one in calm)


def test_a_venue_schedule_ends_well(venue_seed: int, venue_folder: Path) -> None:
    schedule = Schedule.of(venue_seed)
    ended = World(schedule, venue_folder).run()
    assert ended.wrong == [], (schedule, ended.wrong)
    most = healthy_peak(schedule.rate_limit_s, venue_folder) * HEALTHY_SPREAD
    assert peak(ended.asked) <= most, (schedule, peak(ended.asked), most)
    assert troubled_peak(ended) <= TROUBLED_MOST, (schedule, troubled_peak(ended))


def test_a_venue_schedule_is_a_function_of_its_seed(venue_folder: Path) -> None:
    def once() -> Ended:
        return World(Schedule.of(7), venue_folder).run()

    assert once() == once()


def test_a_venue_schedule_can_fail(venue_folder: Path) -> None:
    rows_change_too_late = replace(Schedule.of(3), calm=True, late_ms=300_000)
    assert World(rows_change_too_late, venue_folder).run().wrong
