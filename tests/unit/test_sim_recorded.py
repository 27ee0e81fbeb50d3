from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet
import pytest

from klinesync.core.candle import Candle, check_candle
from klinesync.core.errors import BadCandle
from klinesync.core.timeframe import Timeframe
from klinesync.sim.exchange import Grid, make_exchange
from klinesync.sim.recorded import BadRecording, RecordedTape, Recording, choose_start, load_recordings
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Row, rows_of
from klinesync.sim.wire import kline_rows

DAY_S = 86_400
FIRST_S = 1_748_736_000  # 2025-06-01
CANDLES = [
    (FIRST_S, 100.5, 101.25, 100.0, 101.0, 3.5),
    (FIRST_S + 60, 101.0, 101.0, 101.0, 101.0, 0.0),
    (FIRST_S + 180, 99.0, 104.0, 98.75, 99.5, 0.125),
]
Unit = Literal["s", "ms", "us", "ns"]
Values = tuple[int, float, float, float, float, float]


def table(unit: Unit = "ns", candles: list[Values] = CANDLES) -> pa.Table:
    time, *values = zip(*candles, strict=True)
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    date = pa.array([value * scale for value in time], pa.timestamp(unit, "UTC"))
    return pa.table(
        [date, *(pa.array(column, pa.float64()) for column in values)],
        names=["date", "open", "high", "low", "close", "volume"],
    )


def json_rows(candles: list[Values] = CANDLES) -> bytes:
    return json.dumps([[time * 1000, *values] for time, *values in candles]).encode()


def archive(path: Path, *, header: bool, micro: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = 1_000_000 if micro else 1000
    lines = [
        f"{time * scale},{o},{h},{lo},{c},{v},{(time + 60) * scale - 1},{v * 100},{7 if v else 0},{v / 2},{v * 50},0"
        for time, o, h, lo, c, v in CANDLES
    ]
    if header:
        lines.insert(
            0,
            "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
            "taker_buy_quote_volume,ignore",
        )
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(path.name.replace(".zip", ".csv"), "\n".join(lines) + "\n")


def kept(recording: Recording) -> list[tuple[float, ...]]:
    return [tuple(row[:6]) for row in recording.rows.rows()]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_freqtrade_feather_files_of_any_resolution_are_read(tmp_path: Path, unit: Unit) -> None:
    pa_feather.write_feather(table(unit), str(tmp_path / "BTC_USDT-1m.feather"))
    (recording,) = load_recordings(tmp_path, 1)
    assert recording.symbol == Symbol("spot", "BTCUSDT", "BTC", "USDT", 2, 3)
    assert kept(recording) == CANDLES


def test_parquet_json_and_gzipped_json_are_read_like_feather(tmp_path: Path) -> None:
    pa_parquet.write_table(table(), tmp_path / "BTC_USDT-1m.parquet")
    (tmp_path / "ETH_BTC-1m.json").write_bytes(json_rows())
    futures = tmp_path / "futures"
    futures.mkdir()
    (futures / "SOL_USDT_USDT-1m-futures.json.gz").write_bytes(gzip.compress(json_rows()))
    recordings = load_recordings(tmp_path, 1)
    assert [(recording.symbol.market, recording.symbol.name) for recording in recordings] == [
        ("futures", "SOLUSDT"), ("spot", "BTCUSDT"), ("spot", "ETHBTC"),
    ]  # fmt: skip
    assert all(kept(recording) == CANDLES for recording in recordings)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("micro", [True, False])
def test_archives_are_read_with_all_their_columns(tmp_path: Path, header: bool, micro: bool) -> None:
    tree = tmp_path / "data" / "spot" / "daily" / "klines" / "BTCUSDT" / "1m"
    archive(tree / "BTCUSDT-1m-2025-06-01.zip", header=header, micro=micro)
    archive(tmp_path / "data/futures/um/monthly/klines/LINKUSDT/1m/LINKUSDT-1m-2025-06.zip", header=header, micro=micro)
    futures, spot = load_recordings(tmp_path, 1)
    assert (futures.symbol.market, futures.symbol.name) == ("futures", "LINKUSDT")
    assert (spot.symbol.market, spot.symbol.name) == ("spot", "BTCUSDT")
    assert kept(spot) == CANDLES
    assert spot.rows.trades.tolist() == [7, 0, 7]
    assert spot.rows.quote.tolist() == [350.0, 0.0, 12.5]
    assert spot.rows.taker_volume.tolist() == [1.75, 0.0, 0.0625]
    assert kept(load_recordings(tree, 1)[0]) == CANDLES, "anywhere in the tree will do"


def test_what_freqtrade_leaves_out_is_guessed_the_same_every_time(tmp_path: Path) -> None:
    pa_feather.write_feather(table(), str(tmp_path / "BTC_USDT-1m.feather"))
    (recording,), (again,), (other) = (load_recordings(tmp_path, seed) for seed in (1, 1, 2))
    assert recording.rows.quote.tolist() == again.rows.quote.tolist()
    assert recording.rows.taker_volume.tolist() != other[0].rows.taker_volume.tolist()
    assert recording.rows.trades.tolist()[1] == 0
    assert (recording.rows.trades[[0, 2]] >= 4).all(), "open, high, low and close differ: four trades at least"
    assert np.array_equal(recording.rows.first_id[1:], recording.rows.first_id[:-1] + recording.rows.trades[:-1])


def test_other_timeframes_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("BTC_USDT-5m.feather", "BTC_USDT_USDT-1m-mark.feather", "notes.txt", "ETHUSDT-5m-2025-06-01.zip"):
        (tmp_path / name).write_bytes(b"not a candle")
    with pytest.raises(BadRecording, match="holds no 1m candles"):
        load_recordings(tmp_path, 1)


def test_a_named_pipe_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "BTC_USDT-1m.feather")
    with pytest.raises(BadRecording, match="holds no 1m candles"):
        load_recordings(tmp_path, 1)


def test_a_missing_directory_and_an_unreadable_file_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="nowhere does not exist"):
        load_recordings(tmp_path / "nowhere", 1)
    for name in (
        "A_USDT-1m.feather",
        "A_USDT-1m.parquet",
        "A_USDT-1m.json",
        "A_USDT-1m.json.gz",
        "AUSDT-1m-2025-06.zip",
    ):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(b"ARROW1 cut off")
        with pytest.raises(BadRecording, match=f"{name} cannot be read"):
            load_recordings(folder, 1)


@pytest.mark.parametrize(
    "bad",
    [
        (FIRST_S + 7, 1.0, 1.0, 1.0, 1.0, 1.0),
        (FIRST_S, 1.0, 0.5, 2.0, 1.0, 1.0),
        (FIRST_S, 1.0, 1.0, 1.0, 1.0, -1.0),
        (FIRST_S, 0.0, 1.0, 0.0, 1.0, 1.0),
        (FIRST_S, 1.0, 1e101, 1.0, 1.0, 1.0),
    ],
)
def test_candles_that_none_can_be_are_refused_with_the_reason_that_every_check_gives(
    tmp_path: Path, bad: Values
) -> None:
    (tmp_path / "BTC_USDT-1m.json").write_bytes(json_rows([bad]))
    with pytest.raises(BadCandle) as why:
        check_candle(Candle(*bad), Timeframe.parse("1m"))
    with pytest.raises(BadRecording, match=re.escape(f"BTC_USDT-1m.json cannot be replayed: {why.value}")):
        load_recordings(tmp_path, 1)


def recording(first_s: int, minutes: int, name: str = "BTCUSDT") -> Recording:
    rows = [Row(first_s + 60 * at, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, 0.0, 0.0, at) for at in range(minutes)]
    return Recording(Symbol("spot", name, name[:-4], "USDT", 0, 0), rows_of(rows))


@pytest.mark.parametrize("host_now_s", [1_795_371_000.0, 1_795_400_000.5, 1_700_000_000.0])
def test_the_hosts_now_lies_two_thirds_into_the_recording_by_whole_days(host_now_s: float) -> None:
    shift_s, now_s = choose_start([recording(FIRST_S, 30 * 1440)], host_now_s, None)
    assert now_s == host_now_s
    assert shift_s % DAY_S == 0
    assert abs((host_now_s - shift_s) - (FIRST_S + 20 * DAY_S)) <= DAY_S / 2


def test_one_shift_serves_all_recordings_by_what_they_share() -> None:
    host_now_s = 1_795_371_000.0
    pair = [recording(FIRST_S, 30 * 1440), recording(FIRST_S + 27 * DAY_S, 30 * 1440, "ETHUSDT")]
    shift_s, _ = choose_start(pair, host_now_s, None)
    assert FIRST_S + 27 * DAY_S <= host_now_s - shift_s < FIRST_S + 30 * DAY_S
    apart = [recording(FIRST_S, 1440), recording(FIRST_S + 90 * DAY_S, 9 * 1440, "ETHUSDT")]
    shift_s, _ = choose_start(apart, host_now_s, None)
    assert abs((host_now_s - shift_s) - (FIRST_S + 96 * DAY_S)) <= DAY_S / 2


def test_a_recording_shorter_than_a_day_starts_two_thirds_in_when_the_time_of_day_does_not_fit() -> None:
    short = [recording(FIRST_S, 90)]
    shift_s, now_s = choose_start(short, 1_795_371_000.0, None)
    assert shift_s % DAY_S == 0
    assert now_s - shift_s == FIRST_S + 3600
    assert 0 <= 1_795_371_000.0 - now_s < DAY_S


def test_a_start_in_recorded_time_is_met_exactly_and_not_in_the_hosts_future() -> None:
    start_s = FIRST_S + 5 * DAY_S + 4321
    shift_s, now_s = choose_start([recording(FIRST_S, 30 * 1440)], 1_795_371_000.0, start_s)
    assert shift_s % DAY_S == 0
    assert now_s == start_s + shift_s
    assert 0 <= 1_795_371_000.0 - now_s < DAY_S
    with pytest.raises(BadRecording, match="lies outside the recordings, which reach from 2025-06-01T00:00:00Z"):
        choose_start([recording(FIRST_S, 1440)], 1_795_371_000.0, FIRST_S - 60)


def test_holes_stay_holes_and_the_tape_is_shifted(tmp_path: Path) -> None:
    (tmp_path / "BTC_USDT-1m.json").write_bytes(json_rows())
    (recorded,) = load_recordings(tmp_path, 1)
    tape = RecordedTape(recorded.rows, DAY_S)
    assert tape.minutes(0, 2 * FIRST_S).time.tolist() == [FIRST_S + DAY_S + at for at in (0, 60, 180)]
    assert len(tape.minutes(FIRST_S + DAY_S + 120, FIRST_S + DAY_S + 180)) == 0
    assert (tape.first_s, tape.end_s) == (FIRST_S + DAY_S, FIRST_S + DAY_S + 240)


def test_recorded_candles_go_through_rest_and_read_back_bit_for_bit(real_data: Path) -> None:
    """Every value of every recorded candle, to text and back."""
    for folder in ("spot", "futures_um", "gaps", "archive"):
        recordings = load_recordings(real_data / folder, 1)
        exchange = make_exchange(
            [(recording.symbol, RecordedTape(recording.rows, 0)) for recording in recordings], 1, 0, "recorded"
        )
        for recording in recordings:
            listing = exchange.listings(recording.symbol.market)[recording.symbol.name]
            end_ms = (recording.span.end + 60) * 1000
            rows = listing.klines(Grid(Timeframe.parse("1m")), 0, None, 10**6, end_ms)
            read = json.loads(kline_rows(listing, Grid(Timeframe.parse("1m")), rows))
            for column, name in ((1, "open"), (2, "high"), (3, "low"), (4, "close"), (5, "volume"), (7, "quote")):
                texts = np.array([float(row[column]) for row in read])
                assert np.array_equal(texts, getattr(recording.rows, name)), (recording.symbol, name)
            assert [row[0] // 1000 for row in read] == recording.rows.time.tolist()
            if recording.symbol.market == "spot" and folder == "spot":
                assert {len(row[1].partition(".")[2]) for row in read} == {8}


def test_folded_candles_are_the_exchanges_own(real_data: Path) -> None:
    """Our 5m and 15m candles against those that were recorded from the exchange."""
    recording = next(
        recording for recording in load_recordings(real_data / "spot", 1) if recording.symbol.name == "BTCUSDT"
    )
    listing = make_exchange([(recording.symbol, RecordedTape(recording.rows, 0))], 1, 0, "recorded").spot["BTCUSDT"]
    for code in ("5m", "15m"):
        theirs = pa_feather.read_table(str(real_data / "spot" / f"BTC_USDT-{code}.feather"))
        ours = listing.klines(Grid(Timeframe.parse(code)), 0, None, 10**6, (recording.span.end + 10**6) * 1000)
        time = theirs.column("date").cast(pa.int64()).to_numpy() // 10**9
        both = np.isin(time, ours.time[:-1])
        assert both.sum() > 8000
        chosen = np.isin(ours.time, time[both])
        for name in ("open", "high", "low", "close"):
            assert np.array_equal(getattr(ours, name)[chosen], theirs.column(name).to_numpy()[both])
        assert np.allclose(ours.volume[chosen], theirs.column("volume").to_numpy()[both], rtol=0, atol=1e-8)
