"""The draw delta: which drawings an answer has, by the reader's cursor."""

from __future__ import annotations

import math

import msgspec
import pytest

from klinesync.core.series_id import SeriesId
from klinesync.overlay.delta import Cursor, DrawDelta, active, compose, nothing, points_of
from klinesync.overlay.instruction import Drawing, Instruction, Marker, Point

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")


def stored(version_id: int, time: int, visible_time: int, name: str | None = None) -> Instruction:
    sign = Marker("toy.mark", time, "aboveBar", "red", "circle")
    return Instruction.numbered(version_id, Drawing(name or f"toy.mark:{time}", visible_time, sign))


HEAD = Drawing("toy.head", 600, Marker("toy.head", 600, "aboveBar", "red", "circle"))
STORED = [stored(1, 120, 240), stored(2, 300, 420), stored(3, 480, 600)]
POINTS = {"ema_21": [Point(480, 1.0), Point(540, 2.0), Point(600, 3.0)], "rsi_14": []}


def asked(cursor: Cursor | None = None, cursor_epoch: int | None = None, start_time: int = 180) -> DrawDelta:
    return compose(
        SERIES,
        4,
        start_time=start_time,
        at_time=600,
        version_id=3,
        stored=STORED,
        rendered=[HEAD],
        points=POINTS,
        cursor=cursor,
        cursor_epoch=cursor_epoch,
    )


def patched(delta: DrawDelta) -> list[tuple[str, int]]:
    return [(one.instruction_id, one.version_id) for one in delta.instruction_catalog_patch]


EVERYTHING = [("toy.mark:300", 2), ("toy.mark:480", 3), ("toy.head", 3)]


def test_without_a_cursor_the_whole_window_is_returned() -> None:
    delta = asked()
    assert patched(delta) == EVERYTHING
    assert delta.active_ids == ["toy.mark:300", "toy.mark:480", "toy.head"]
    assert delta.series_points == POINTS


def test_the_answer_is_the_wires_object() -> None:
    told = msgspec.json.decode(msgspec.json.encode(asked(Cursor(2, 540), 4)))
    assert told == {
        "schema_version": 1,
        "series_id": "binance:spot:BTC/USDT:1m",
        "to_candle_id": "binance:spot:BTC/USDT:1m:600",
        "to_candle_time": 600,
        "epoch": 4,
        "active_ids": ["toy.mark:300", "toy.mark:480", "toy.head"],
        "instruction_catalog_patch": [
            {
                "version_id": 3,
                "instruction_id": name,
                "kind": "marker",
                "visible_time": 600,
                "definition": {
                    "type": "marker",
                    "feature": feature,
                    "time": time,
                    "position": "aboveBar",
                    "color": "red",
                    "shape": "circle",
                    "text": "",
                    "size": 1.0,
                },
            }
            for name, feature, time in (("toy.mark:480", "toy.mark", 480), ("toy.head", "toy.head", 600))
        ],
        "series_points": {"ema_21": [{"time": 600, "value": 3.0}], "rsi_14": []},
        "next_cursor": {"version_id": 3, "point_time": 600},
    }


def test_a_reader_at_the_head_gets_the_active_ids_only() -> None:
    delta = asked(Cursor(3, 600), 4)
    assert patched(delta) == []
    assert delta.series_points == {"ema_21": [], "rsi_14": []}
    assert len(delta.active_ids) == 3


@pytest.mark.parametrize("epoch", [3, 5])
def test_a_cursor_of_another_epoch_gets_everything_again(epoch: int) -> None:
    assert patched(asked(Cursor(3, 600), epoch)) == EVERYTHING


@pytest.mark.parametrize("cursor", [Cursor(4, 600), Cursor(3, 660)])
def test_a_cursor_ahead_of_the_stored_drawings_gets_everything_again(cursor: Cursor) -> None:
    assert patched(asked(cursor)) == EVERYTHING


def test_a_cursor_without_an_epoch_is_accepted() -> None:
    assert patched(asked(Cursor(2, 540))) == EVERYTHING[1:]


def test_only_the_newer_of_two_versions_is_returned_and_active() -> None:
    old, new = stored(1, 300, 360, "toy.mark:x"), stored(2, 120, 420, "toy.mark:x")
    assert active([old, new], [], 180, 600) == []
    assert active([old, new], [], 60, 600) == ["toy.mark:x"]
    delta = compose(SERIES, 1, start_time=60, at_time=600, version_id=2, stored=[old, new], rendered=[], points={})
    assert patched(delta) == [("toy.mark:x", 2)]


def test_a_series_without_candles_has_nothing_to_show() -> None:
    assert msgspec.json.decode(msgspec.json.encode(nothing(SERIES, 2))) == {
        "schema_version": 1,
        "series_id": "binance:spot:BTC/USDT:1m",
        "epoch": 2,
        "to_candle_id": None,
        "to_candle_time": None,
        "active_ids": [],
        "instruction_catalog_patch": [],
        "series_points": {},
        "next_cursor": {"version_id": 0, "point_time": 0},
    }


def test_points_leave_out_the_warm_up_and_known_points() -> None:
    outputs = {"ema_2": [math.nan, 1.0, 2.0], "macd_1.macd": [math.nan] * 3}
    assert points_of([0, 60, 120], outputs) == {"ema_2": [Point(60, 1.0), Point(120, 2.0)], "macd_1.macd": []}
    assert points_of([0, 60, 120], outputs, after=60) == {"ema_2": [Point(120, 2.0)], "macd_1.macd": []}
    with pytest.raises(ValueError, match="zip"):
        points_of([0, 60], outputs)
