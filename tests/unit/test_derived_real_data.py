"""Derived candles and the gap ledger on recorded minutes: Binance's own bars, and its outages."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from math import isclose
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.feather as pa_feather
import pytest

from klinesync.core.candle import Candle
from klinesync.core.derived import complete, fold, touched
from klinesync.core.gaps import Gap, GapState, arrived, begin_healing, confirm_empty, missing_candles, unproven
from klinesync.core.spans import Span, missing_spans
from klinesync.core.timeframe import Timeframe
from support.candles import ohlcv
from support.derived_candles import derive, roll_up

MINUTE = Timeframe.parse("1m")
FIVE, QUARTER, HOUR = (Timeframe.parse(code) for code in ("5m", "15m", "1h"))
TARGETS = tuple(Timeframe.parse(code) for code in ("3m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w", "1M"))
PROOF = "klines answered the rows around it and none inside"


def at(text: str) -> int:
    """UTC seconds of a date and time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def from_feather(path: Path) -> list[Candle]:
    table = pa_feather.read_table(path)
    time = table["date"].to_numpy().astype("datetime64[s]").astype(np.int64)
    values = [table[name].to_numpy() for name in ("open", "high", "low", "close", "volume")]
    return [Candle(*row) for row in zip(time.tolist(), *(column.tolist() for column in values), strict=True)]


def from_json(path: Path) -> list[Candle]:
    rows = msgspec.json.decode(
        gzip.decompress(path.read_bytes()), type=list[tuple[int, float, float, float, float, float]]
    )
    return [ohlcv(time // 1000, values) for time, *values in rows]


# --- Binance's own bars


@pytest.mark.parametrize("target", [FIVE, QUARTER], ids=str)
def test_minutes_roll_up_to_the_bars_of_the_exchange(real_data: Path, target: Timeframe) -> None:
    minutes = from_feather(real_data / "spot" / "BTC_USDT-1m.feather")
    theirs = from_feather(real_data / "spot" / f"BTC_USDT-{target}.feather")
    holes = missing_spans(
        MINUTE, minutes[0].time, target.next(target.floor(minutes[-1].time)), [m.time for m in minutes]
    )
    ours = complete(target, roll_up(minutes, MINUTE, (target,))[target], holes)

    assert len(ours) > 8_000
    assert len(theirs) - len(ours) in (0, 1)  # their last bar may end after our last minute
    for our, other in zip(ours, theirs, strict=False):
        assert our[:5] == other[:5]
        assert isclose(our.volume, other.volume, rel_tol=1e-9, abs_tol=1e-12)


# --- the outages: 284 minutes from 2021-04-25 04:01, and in BRD/BTC 150 more from 2021-04-20 02:00

OUTAGE = Span(at("2021-04-25 04:01"), at("2021-04-25 08:45"))
OUTAGES = {"BTC_USDT": [OUTAGE], "BRD_BTC": [Span(at("2021-04-20 02:00"), at("2021-04-20 04:30")), OUTAGE]}


@pytest.fixture(params=sorted(OUTAGES))
def symbol(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def minutes(real_data: Path, symbol: str) -> list[Candle]:
    return from_json(real_data / "gaps" / f"{symbol}-1m.json.gz")


@pytest.fixture
def stored(minutes: list[Candle]) -> Span:
    return Span(minutes[0].time, minutes[-1].time + 60)


@pytest.fixture
def noted(minutes: list[Candle]) -> list[Gap]:
    """The ledger after all minutes arrived, a hundred at a time."""
    gaps: list[Gap] = []
    extent: Span | None = None
    for first in range(0, len(minutes), 100):
        times = [candle.time for candle in minutes[first : first + 100]]
        gaps = arrived(gaps, MINUTE, extent, times).applied_to(gaps)
        extent = Span(minutes[0].time, times[-1] + 60)
    return gaps


@pytest.fixture
def confirmed(noted: list[Gap]) -> list[Gap]:
    """The ledger after healing found nothing and had the holes proven."""
    spans = [gap.span for gap in noted]
    healing = begin_healing(noted, spans).applied_to(noted)
    return confirm_empty(healing, spans, PROOF, at("2021-04-25 08:50")).applied_to(healing)


def test_the_ledger_notes_the_outages_and_nothing_else(noted: list[Gap], symbol: str) -> None:
    assert noted == [Gap(*span, GapState.UNKNOWN) for span in OUTAGES[symbol]]


def test_healing_that_finds_nothing_leaves_the_outages_confirmed(confirmed: list[Gap], symbol: str) -> None:
    assert confirmed == [
        Gap(*span, GapState.CONFIRMED_EMPTY, PROOF, at("2021-04-25 08:50")) for span in OUTAGES[symbol]
    ]
    assert missing_candles(MINUTE, confirmed) == {
        GapState.UNKNOWN: 0,
        GapState.HEALING: 0,
        GapState.CONFIRMED_EMPTY: 284 if symbol == "BTC_USDT" else 434,
        GapState.LOST: 0,
    }


def test_until_an_outage_is_confirmed_its_buckets_have_no_candle_and_all_others_have_theirs(
    minutes: list[Candle], noted: list[Gap], stored: Span, symbol: str
) -> None:
    holes = unproven(noted, stored, stored)
    assert holes == OUTAGES[symbol]
    for target, folded in roll_up(minutes, MINUTE, TARGETS).items():
        spoiled = {
            candle.time
            for candle in folded
            if any(candle.time < hole.end and hole.start < target.next(candle.time) for hole in holes)
        }
        assert spoiled
        assert complete(target, folded, holes) == [candle for candle in folded if candle.time not in spoiled]


def test_partly_empty_buckets_have_the_candle_of_the_minutes_that_exist(
    minutes: list[Candle], confirmed: list[Gap], stored: Span
) -> None:
    by_time = {candle.time: candle for candle in minutes}
    window = Span(at("2021-04-25 00:00"), at("2021-04-26 00:00"))
    rolled = roll_up([candle for candle in minutes if window.start <= candle.time < window.end], MINUTE, TARGETS)
    assert unproven(confirmed, stored, window) == []

    # 04:00 is the interrupted minute, 08:45 the first one afterwards.
    fives = {candle.time: candle for candle in complete(FIVE, rolled[FIVE], [])}
    interrupted = by_time[at("2021-04-25 04:00")]
    assert fives[interrupted.time] == interrupted
    assert at("2021-04-25 04:05") not in fives
    assert at("2021-04-25 08:40") not in fives
    resumed = fives[at("2021-04-25 08:45")]
    assert resumed.open == by_time[resumed.time].open
    assert resumed.close == by_time[resumed.time + 240].close

    hours = {candle.time: candle for candle in rolled[HOUR]}
    assert hours[at("2021-04-25 04:00")][1:] == interrupted[1:]
    assert [at(f"2021-04-25 0{hour}:00") in hours for hour in (3, 4, 5, 6, 7, 8, 9)] == [
        True, True, False, False, False, True, True,
    ]  # fmt: skip
    eight = [by_time[time] for time in range(at("2021-04-25 08:45"), at("2021-04-25 09:00"), 60)]
    assert hours[at("2021-04-25 08:00")].high == max(candle.high for candle in eight)
    assert hours[at("2021-04-25 08:00")].open == eight[0].open


def test_each_bucket_of_the_recording_is_judged_alike_from_its_minutes_and_from_the_ledger(
    minutes: list[Candle], confirmed: list[Gap], stored: Span
) -> None:
    """One method reads candles and the confirmed spans, the other only the ledger."""
    empty = [gap.span for gap in confirmed]
    for target in (FIVE, HOUR, *TARGETS[-4:]):
        end = target.next(target.floor(minutes[-1].time))
        window = Span(target.floor(minutes[0].time), end)
        folded = complete(target, roll_up(minutes, MINUTE, (target,))[target], unproven(confirmed, stored, window))
        by_open = {candle.time: candle for candle in folded}
        position = 0
        for time in touched(target, range(window.start, end, 60)):
            inside: list[Candle] = []
            while position < len(minutes) and minutes[position].time < target.next(time):
                inside.append(minutes[position])
                position += 1
            bucket = derive(target, MINUTE, time, inside, empty)
            assert bucket.candle == by_open.get(time)
            if bucket.missing:
                assert time < stored.start or target.next(time) > stored.end  # only those that the recording cuts
            elif bucket.candle is None:
                assert any(span.start <= time and target.next(time) <= span.end for span in empty)  # wholly empty


def test_minutes_without_trades_carry_their_price_and_no_volume(real_data: Path) -> None:
    minutes = from_json(real_data / "gaps" / "BRD_BTC-1m.json.gz")
    assert 0.38 < sum(candle.volume == 0 for candle in minutes) / len(minutes) < 0.42
    quiet = [candle for candle in fold(FIVE, minutes) if candle.volume == 0]
    assert quiet
    by_time = {candle.time: candle for candle in minutes}
    for candle in quiet:
        parts = [by_time[time] for time in range(candle.time, candle.time + 300, 60) if time in by_time]
        assert candle.open == parts[0].open
        assert candle.close == parts[-1].close
