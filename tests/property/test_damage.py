"""A damaged chunk never gives times out of order, and the holes of a page are declared, whether known before or not."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import MAX_TRADES, Candle
from klinesync.core.gaps import Gap, GapState, declared
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.rows import of_store
from klinesync.storage.chunks import (
    CHUNK_CANDLES,
    HEADER_BYTES,
    Grid,
    as_candles,
    count_of,
    first_time,
    pack,
    seed_of,
    unpack,
    unpack_between,
    unpack_columns,
)

MINUTE = Timeframe.parse("1m")
GRID = Grid(0, CHUNK_CANDLES * 60, 60)


SEED = seed_of("binance:spot:BTC/USDT:1m", GRID.start)

VALUES = st.floats(0.0, 1e100)
FLOW = st.tuples(st.none() | VALUES, st.none() | st.integers(0, MAX_TRADES), st.none() | VALUES, st.none() | VALUES)


@st.composite
def chunks(draw: st.DrawFn) -> list[Candle]:
    """The candles of a chunk of `GRID`, of any values."""
    minutes = sorted(draw(st.sets(st.integers(0, CHUNK_CANDLES - 1), min_size=1, max_size=12)))
    if draw(st.booleans()):
        minutes = list(range(max(0, minutes[0] - len(minutes)), minutes[0]))
    minutes = minutes or [0]
    return [
        Candle(minute * 60, *draw(st.tuples(VALUES, VALUES, VALUES, VALUES, VALUES)), *draw(FLOW)) for minute in minutes
    ]


@given(chunks(), st.integers(-5, CHUNK_CANDLES), st.integers(-5, CHUNK_CANDLES))
def test_a_chunk_gives_the_bits_that_were_packed(candles: list[Candle], first: int, last: int) -> None:
    packed = pack(candles, SEED)
    assert [repr(row) for row in unpack(packed, SEED)] == [repr(row) for row in candles]
    assert first_time(packed) == candles[0].time
    assert count_of(packed[:HEADER_BYTES], len(packed)) == len(candles)
    window = [row for row in candles if first * 60 <= row.time < last * 60]
    assert unpack_between(packed, first * 60, last * 60, as_candles, SEED, GRID) == window
    six = unpack_between(packed, first * 60, last * 60, list, SEED, GRID, full=False)
    assert six == [row.ohlcv for row in window]
    columns = unpack_columns(packed, first * 60, last * 60, SEED, GRID)
    assert [repr(row) for row in of_store(columns).candles()] == [repr(row) for row in window]


@given(chunks(), st.data())
def test_a_chunk_with_flipped_bits_is_refused(candles: list[Candle], data: st.DataObject) -> None:
    packed = bytearray(pack(candles, SEED))
    for bit in data.draw(st.sets(st.integers(0, len(packed) * 8 - 1), min_size=1, max_size=3)):
        packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError):  # the damaged part of the chunk does not matter
        unpack_between(bytes(packed), 0, 1 << 40, as_candles, SEED, GRID)
    with pytest.raises(ValueError):
        unpack_columns(bytes(packed), 0, 1 << 40, SEED, GRID)


@given(chunks(), st.integers(0, 100))
def test_a_chunk_that_was_cut_is_refused(candles: list[Candle], cut: int) -> None:
    packed = pack(candles, SEED)
    with pytest.raises(ValueError):
        unpack(packed[: len(packed) - 1 - cut % len(packed)], SEED)


@pytest.mark.parametrize(
    "seed", [seed_of("binance:spot:ETH/USDT:1m", GRID.start), seed_of("binance:spot:BTC/USDT:1m", GRID.end)]
)
def test_a_chunk_of_another_series_or_time_is_refused(seed: int) -> None:
    packed = pack([Candle(0, 1.0, 2.0, 0.5, 1.5, 1.0)], SEED)
    with pytest.raises(ValueError, match="checksum"):
        unpack(packed, seed)


def format_0(candles: Sequence[Candle]) -> bytes:
    """A chunk in the format of a store of version 7."""
    columns = list(zip(*(row.ohlcv for row in candles), strict=True))
    count = len(candles)
    return struct.pack(f"<{count}q", *columns[0]) + b"".join(
        struct.pack(f"<{count}d", *column) for column in columns[1:]
    )


@given(chunks(), st.integers(-5, CHUNK_CANDLES), st.integers(-5, CHUNK_CANDLES))
def test_a_chunk_of_format_0_is_read_as_it_is(candles: list[Candle], first: int, last: int) -> None:
    packed = format_0(candles)
    assert first_time(packed) == candles[0].time
    assert count_of(packed[:HEADER_BYTES], len(packed)) == len(candles)
    window = [Candle(*row.ohlcv) for row in candles if first * 60 <= row.time < last * 60]
    assert unpack_between(packed, first * 60, last * 60, as_candles, SEED, GRID) == window
    columns = unpack_columns(packed, first * 60, last * 60, SEED, GRID)
    assert [repr(row) for row in of_store(columns).candles()] == [repr(row) for row in window]


@given(st.sets(st.integers(0, CHUNK_CANDLES - 1), min_size=1), st.data())
def test_a_chunk_of_format_0_with_flipped_bits_is_refused_or_gives_ascending_times_of_its_own(
    minutes: set[int], data: st.DataObject
) -> None:
    packed = bytearray(format_0([Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in sorted(minutes)]))
    for bit in data.draw(st.lists(st.integers(0, len(minutes) * 64 - 1), max_size=3)):
        packed[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.integers(0, len(packed)))
    packed = packed[: len(packed) - cut] if data.draw(st.booleans()) else packed
    try:
        rows = unpack_between(bytes(packed), 0, 1 << 40, as_candles, SEED, GRID)
    except ValueError:
        return
    times = [row.time for row in rows]
    assert times == sorted(set(times))
    assert all(0 <= time < GRID.end for time in times)


@pytest.mark.parametrize("size", [0, 1, 47, 49, 95])
def test_bytes_that_are_no_whole_candles_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"no (whole candles|chunk)"):
        unpack_between(bytes(size), 0, 1, as_candles, SEED, GRID)


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4))
def test_every_missing_time_of_a_page_is_in_one_of_its_gaps_and_no_other_time_is(
    stored: set[int], spans: list[tuple[int, int]]
) -> None:
    states = list(GapState)
    ledger: list[Gap] = []
    at = 0
    for number, (pause, length) in enumerate(spans):
        start = at + pause
        ledger.append(Gap(start * 60, (start + length) * 60, states[number % len(states)]))
        at = start + length
    times = [minute * 60 for minute in sorted(stored)]
    found = declared(MINUTE, Span(0, 61 * 60), times, ledger)
    by_time: dict[int, GapState] = {}
    for gap in found:
        for time in range(gap.start, gap.end, 60):
            assert time not in by_time
            by_time[time] = gap.state
    assert by_time.keys() == {minute * 60 for minute in range(61)} - set(times)
    for time, state in by_time.items():
        known = [gap.state for gap in ledger if gap.start <= time < gap.end]
        assert state is (known[0] if known else GapState.UNKNOWN)
