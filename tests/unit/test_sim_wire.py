from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.timeframe import Timeframe
from klinesync.sim.exchange import Grid, Listing
from klinesync.sim.recorded import RecordedTape
from klinesync.sim.streams import text_frame
from klinesync.sim.symbol import Symbol, has_digits, number_text, split_name
from klinesync.sim.tape import Market, Row, rows_of
from klinesync.sim.wire import KlineTemplate, kline_rows

ROW = Row(1_700_000_040, 37_000.1, 37_010.0, 36_999.9, 37_005.5, 12.345, 456_789.12, 7, 5.5, 203_500.25, 100)
UNTRADED = ROW._replace(time=1_700_000_100, open=37_005.5, high=37_005.5, low=37_005.5, close=37_005.5,
                        volume=0.0, quote=0.0, trades=0, taker_volume=0.0, taker_quote=0.0, first_id=107)  # fmt: skip


def listing(market: Market) -> Listing:
    return Listing(Symbol(market, "BTCUSDT", "BTC", "USDT", 1, 3), RecordedTape(rows_of([ROW, UNTRADED]), 0), 1)


def template(market: Market, interval: str = "1m", *, continuous: bool = False) -> KlineTemplate:
    return KlineTemplate(listing(market), Grid(Timeframe.parse(interval)), continuous=continuous)


@settings(deadline=None)
@given(st.integers(0, 12), st.floats(min_value=0, max_value=1e15, allow_nan=False))
def test_a_number_written_reads_back_as_the_same_double(digits: int, value: float) -> None:
    text = number_text(digits)(value)
    assert float(text) == value
    assert "e" not in text.lower()


@settings(deadline=None)
@given(st.integers(0, 8), st.lists(st.integers(0, 10**14)))
def test_decimals_are_recognised_and_written_with_so_many_digits(digits: int, ticks: list[int]) -> None:
    values = [tick / 10**digits for tick in ticks]
    column = rows_of([ROW._replace(volume=value) for value in values]).volume
    if all(tick < 2**52 for tick in ticks):
        assert has_digits(column, digits)
    if has_digits(column, digits):
        assert [float(f"{value:.{digits}f}") for value in values] == values


def test_spot_numbers_have_eight_decimals_and_futures_the_symbols_own() -> None:
    spot = json.loads(template("spot").event(ROW, closed=True, sent_ms=1, micro=False))["k"]
    assert (spot["o"], spot["v"], spot["q"]) == ("37000.10000000", "12.34500000", "456789.12000000")
    futures = json.loads(template("futures").event(ROW, closed=True, sent_ms=1, micro=False))["k"]
    assert (futures["o"], futures["h"], futures["v"], futures["q"]) == ("37000.1", "37010.0", "12.345", "456789.1200")


def test_a_kline_event_has_the_keys_of_the_exchange_in_their_order() -> None:
    event = json.loads(template("spot", "5m").event(ROW, closed=False, sent_ms=1_700_000_041_234, micro=False))
    assert list(event) == ["e", "E", "s", "k"]
    assert list(event["k"]) == ["t", "T", "s", "i", "f", "L", "o", "c", "h", "l", "v", "n", "x", "q", "V", "Q", "B"]
    assert (event["e"], event["E"], event["s"]) == ("kline", 1_700_000_041_234, "BTCUSDT")
    kline = event["k"]
    assert (kline["t"], kline["i"], kline["f"], kline["L"], kline["n"], kline["x"], kline["B"]) == (
        1_700_000_040_000, "5m", 100, 106, 7, False, "0",
    )  # fmt: skip


def test_an_untraded_candle_has_no_trade_ids() -> None:
    kline = json.loads(template("spot").event(UNTRADED, closed=True, sent_ms=1, micro=False))["k"]
    assert (kline["f"], kline["L"], kline["n"], kline["v"], kline["x"]) == (-1, -1, 0, "0.00000000", True)


def test_a_continuous_event_names_pair_and_contract_and_has_no_symbol_inside() -> None:
    event = json.loads(template("futures", continuous=True).event(ROW, closed=True, sent_ms=5, micro=False))
    assert list(event) == ["e", "E", "ps", "ct", "k"]
    assert (event["e"], event["ps"], event["ct"]) == ("continuous_kline", "BTCUSDT", "PERPETUAL")
    assert "s" not in event["k"]


def test_microseconds_are_asked_for() -> None:
    event = json.loads(template("spot").event(ROW, closed=True, sent_ms=1_700_000_100_002, micro=True))
    kline = event["k"]
    assert (event["E"], kline["t"], kline["T"]) == (1_700_000_100_002_000, 1_700_000_040_000_000, 1_700_000_099_999_999)
    of_spot = listing("spot")
    rows = json.loads(kline_rows(of_spot, Grid(Timeframe.parse("1m")), rows_of([ROW]), micro=True))
    assert (rows[0][0], rows[0][6]) == (1_700_000_040_000_000, 1_700_000_099_999_999)


def test_a_rest_row_has_twelve_values() -> None:
    rows = json.loads(kline_rows(listing("futures"), Grid(Timeframe.parse("1m")), rows_of([ROW, UNTRADED])))
    assert rows[0] == [
        1_700_000_040_000, "37000.1", "37010.0", "36999.9", "37005.5", "12.345", 1_700_000_099_999,
        "456789.1200", 7, "5.500", "203500.2500", "0",
    ]  # fmt: skip
    assert rows[1][8] == 0
    assert kline_rows(listing("spot"), Grid(Timeframe.parse("1m")), rows_of([])) == b"[]"


def test_numbers_with_more_decimals_than_usual_are_not_cut() -> None:
    odd = ROW._replace(volume=0.1234567890123)
    rows = json.loads(kline_rows(listing("spot"), Grid(Timeframe.parse("1m")), rows_of([ROW, odd])))
    assert [float(row[5]) for row in rows] == [ROW.volume, odd.volume]


@pytest.mark.parametrize(("size", "head"), [(0, b"\x81\x00"), (125, b"\x81\x7d"), (126, b"\x81\x7e\x00\x7e"),
                                            (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00")])  # fmt: skip
def test_a_text_frame_says_its_length(size: int, head: bytes) -> None:
    frame = text_frame(b"x" * size)
    assert frame[: len(head)] == head
    assert frame[len(head) :] == b"x" * size


def test_names_are_split_at_the_quote_asset() -> None:
    assert split_name("BTCUSDT") == ("BTC", "USDT")
    assert split_name("BRDBTC") == ("BRD", "BTC")
    assert split_name("ETHFDUSD") == ("ETH", "FDUSD")
    assert split_name("USDT") is None
    assert split_name("NOSUCH") is None


def test_our_events_are_written_as_recorded_ones_are(real_data: Path) -> None:
    """Key order, types and number formats of every recorded Binance frame, written by us from its values."""
    seen = 0
    for path in sorted((real_data / "ws").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            frame = entry["frame"].get("data", entry["frame"])
            if entry["market"] not in ("spot", "usdm") or frame["k"]["i"] == "1s":
                continue
            kline = frame["k"]
            decimals = {key: len(kline[key].partition(".")[2]) for key in ("o", "v", "q")}
            market: Market = "spot" if entry["market"] == "spot" else "futures"
            symbol = Symbol(market, frame["s"], "X", "USDT", decimals["o"], decimals["v"])
            row = Row(
                kline["t"] // 1000, float(kline["o"]), float(kline["h"]), float(kline["l"]), float(kline["c"]),
                float(kline["v"]), float(kline["q"]), kline["n"], float(kline["V"]), float(kline["Q"]), kline["f"],
            )  # fmt: skip
            made = Listing(symbol, RecordedTape(rows_of([row]), 0), 1)
            ours = KlineTemplate(made, Grid(Timeframe.parse(kline["i"])), continuous=False)
            text = ours.event(row, closed=kline["x"], sent_ms=frame["E"], micro=False)
            assert text.decode() == json.dumps(frame, separators=(",", ":"))
            seen += 1
    assert seen > 60
