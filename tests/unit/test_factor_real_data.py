"""The structure chain on recorded minutes: a lively pair, one that hardly trades, and an outage of hours."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.feather as pa_feather
import pytest

from klinesync.core.candle import Candle
from support.candles import ohlcv
from support.structure_oracle import (
    confirmed_pens,
    extending_and_candidate,
    majors,
    minors,
    pen_row,
    structure_graph,
    switches,
    zones,
)

COUNT = 3_000


def lively(folder: Path) -> list[Candle]:
    table = pa_feather.read_table(folder / "spot" / "BTC_USDT-1m.feather").slice(40_000, COUNT)
    times = table["date"].to_numpy().astype("datetime64[s]").astype(np.int64).tolist()
    values = [table[name].to_numpy().tolist() for name in ("open", "high", "low", "close", "volume")]
    return [Candle(*row) for row in zip(times, *values, strict=True)]


def quiet_with_an_outage(folder: Path) -> list[Candle]:
    rows = msgspec.json.decode(
        gzip.decompress((folder / "gaps" / "BRD_BTC-1m.json.gz").read_bytes()),
        type=list[tuple[int, float, float, float, float, float]],
    )
    candles = [ohlcv(time // 1000, values) for time, *values in rows]
    first = next(i for i, (one, other) in enumerate(pairwise(candles)) if other.time - one.time > 3_600)
    return candles[first - COUNT // 2 : first + COUNT // 2]


@pytest.fixture(params=[lively, quiet_with_an_outage], ids=lambda read: read.__name__)
def candles(request: pytest.FixtureRequest, real_data: Path) -> list[Candle]:
    found: list[Candle] = request.param(real_data)
    assert len(found) == COUNT
    return found


@pytest.mark.parametrize(("major", "minor"), [(50, 5), (7, 2)])
def test_the_structure_of_recorded_minutes_is_that_of_brute_force(
    candles: list[Candle], major: int, minor: int
) -> None:
    graph = structure_graph(major, minor)
    states, said = graph.seed(), []
    for first in range(0, COUNT, 500):
        states, more = graph.advance_many(states, candles[first : first + 500])
        states = graph.decode(graph.encode(states))
        said += more
        known = candles[: first + 500]
        now = known[-1].time
        pens = confirmed_pens(known, major)
        dead, alive, _ = zones(pens)
        by_factor = {name: [event for factor, event in said if factor == name] for name in graph.names}
        assert by_factor["pivot"] == majors(known, major)
        assert by_factor["pen"] == pens
        assert by_factor["zhongshu"] == dead
        heads = graph.heads(states, known[-1])
        extending, candidate = extending_and_candidate(known, major)
        assert heads["pivot"] == {"minor": minors(known, major, minor), "_window_minor": minor}
        assert heads["pen"] == {
            "extending": None if extending is None else pen_row(extending, now),
            "candidate": None if candidate is None else pen_row(candidate, now),
        }
        assert heads["zhongshu"] == {"alive": alive}
    assert len(by_factor["pen"]) >= 10


def test_the_anchor_of_recorded_minutes_switches_as_the_definition_says(candles: list[Candle]) -> None:
    some = candles[COUNT // 2 - 150 : COUNT // 2 + 150]
    graph = structure_graph(3, 1)
    states, said = graph.advance_many(graph.seed(), some)
    expected, anchor = switches(some, 3)
    assert [event for factor, event in said if factor == "anchor"] == expected
    assert graph.heads(states, some[-1])["anchor"] == {"current_anchor_ref": anchor}
    assert len(expected) > 3
