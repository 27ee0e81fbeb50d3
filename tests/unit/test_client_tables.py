"""Answers of a service as arrays of the Python client."""

from __future__ import annotations

import json

import msgspec
import pytest

from klinesync.client.tables import WirePage
from klinesync.core.candle import MAX_TRADES

SOUND = {"candle_time": 60, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 0.0}


def decoded(*candles: dict[str, float]) -> WirePage:
    return msgspec.json.decode(json.dumps({"candles": candles}), type=WirePage)


def test_a_page_is_an_array_of_its_candles() -> None:
    assert decoded(SOUND, SOUND | {"candle_time": 120}).table()["candle_time"].tolist() == [60, 120]


def test_order_flow_that_is_not_told_is_nan() -> None:
    page = decoded(SOUND | {"quote_volume": 0.5, "trades": MAX_TRADES}, SOUND)
    assert str(page.full_table().tolist()) == (
        f"[(60, 1.0, 2.0, 0.5, 1.5, 0.0, 0.5, {float(MAX_TRADES)}, nan, nan), "
        "(60, 1.0, 2.0, 0.5, 1.5, 0.0, nan, nan, nan, nan)]"
    )
    assert page.table().tolist() == [(60, 1.0, 2.0, 0.5, 1.5, 0.0)] * 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"low": 0.0}, "low is 0.0; a price is greater than 0"),
        ({"open": -1.0, "low": -1.0}, "open is -1.0; a price is greater than 0"),
        ({"high": 0.1}, "high 0.1 is below low 0.5"),
        ({"volume": -1.0}, "volume -1.0 is negative"),
        ({"trades": -1}, "trades -1 is negative"),
        ({"trades": 1.5}, "Expected `int"),
        ({"taker_buy_volume": 1.0}, "taker_buy_volume 1.0 is larger than volume 0.0"),
    ],
)
def test_a_page_with_an_impossible_candle_is_refused(changes: dict[str, float], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        decoded(SOUND, SOUND | changes)
