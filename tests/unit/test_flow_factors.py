"""CVD, VWAP and TAKER_RATIO: values by hand."""

from __future__ import annotations

from math import isnan

import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import BadFlag
from klinesync.factor.flow import FLOW_NAMES, flow
from klinesync.factor.graph import FactorGraph
from klinesync.factor.indicator_names import MAX_INDICATORS, parse_listed
from klinesync.factor.plugin import FactorSettings
from klinesync.factor.registry import load_factors
from klinesync.market import parts_writing
from klinesync.market.settings import ledger_settings
from klinesync.runtime.flags import load_flags

MIDNIGHT = 86_400 * 20_000
NAMES = ("cvd", "vwap", "taker_ratio")


def candle(time: int, volume: float, bought: float | None, price: float = 10.0) -> Candle:
    """high, low and close are 2 above, 1 below and 2 above `price`: the typical price is 1 above."""
    values = (time, price, price + 2, price - 1, price + 2, volume)
    return Candle(*values) if bought is None else Candle(*values, volume * price, 3, bought, bought * price)


def values(*candles: Candle) -> dict[str, list[float | None]]:
    graph = FactorGraph(flow(FactorSettings(indicators=NAMES)))
    _, lines = graph.fold_outputs(graph.seed(), candles)
    return {key: [None if isnan(value) else value for value in line] for key, line in lines.items()}


def test_cvd_sums_what_takers_bought_minus_what_they_sold() -> None:
    minutes = [candle(MIDNIGHT + 60 * at, 10.0, bought) for at, bought in enumerate((7.0, 1.0, 5.0, 10.0, 0.0))]
    assert values(*minutes)["cvd"] == [4.0, -4.0, -4.0, 6.0, -4.0]


def test_vwap_weights_typical_prices_by_volume() -> None:
    minutes = [candle(MIDNIGHT, 1.0, None, 10.0), candle(MIDNIGHT + 60, 3.0, None, 20.0)]
    assert values(*minutes)["vwap"] == [11.0, (11.0 * 1.0 + 21.0 * 3.0) / 4.0]


def test_the_taker_ratio_is_that_of_one_candle() -> None:
    assert values(candle(0, 8.0, 6.0), candle(60, 8.0, 0.0), candle(120, 8.0, 8.0))["taker_ratio"] == [0.75, 0.0, 1.0]


def test_sums_start_anew_at_midnight_utc() -> None:
    found = values(
        candle(MIDNIGHT - 60, 10.0, 10.0, 10.0),
        candle(MIDNIGHT, 10.0, 6.0, 20.0),
        candle(MIDNIGHT + 60, 30.0, 15.0, 30.0),
    )
    assert found["cvd"] == [10.0, 2.0, 2.0]
    assert found["vwap"] == [11.0, 21.0, (21.0 * 10 + 31.0 * 30) / 40]


@pytest.mark.parametrize("step_s", [86_400, 3 * 86_400, 7 * 86_400])
def test_a_candle_of_a_day_or_more_is_a_day_of_its_own(step_s: int) -> None:
    found = values(*(candle(MIDNIGHT + step_s * at, 10.0, 6.0, 10.0 * (at + 1)) for at in range(3)))
    assert found["cvd"] == [2.0, 2.0, 2.0]
    assert found["vwap"] == [11.0, 21.0, 31.0]


def test_a_day_whose_first_candle_is_missing_starts_anew_too() -> None:
    assert values(candle(MIDNIGHT - 60, 10.0, 9.0), candle(MIDNIGHT + 120, 10.0, 6.0))["cvd"] == [8.0, 2.0]


def test_cvd_is_unknown_from_the_first_unknown_candle_until_the_next_day() -> None:
    found = values(
        candle(MIDNIGHT - 180, 10.0, 6.0), candle(MIDNIGHT - 120, 10.0, None), candle(MIDNIGHT - 60, 10.0, 6.0),
        candle(MIDNIGHT, 10.0, 6.0),
    )  # fmt: skip
    assert found["cvd"] == [2.0, None, None, 2.0]
    assert found["taker_ratio"] == [0.6, None, 0.6, 0.6]
    assert found["vwap"] == [11.0] * 4


def test_without_volume_there_is_no_ratio_and_before_the_first_volume_no_vwap() -> None:
    found = values(candle(MIDNIGHT, 0.0, 0.0), candle(MIDNIGHT + 60, 4.0, 1.0), candle(MIDNIGHT + 120, 0.0, 0.0, 99.0))
    assert found == {"cvd": [0.0, -2.0, -2.0], "taker_ratio": [None, 0.25, None], "vwap": [None, 11.0, 11.0]}


# --- how they are turned on


def test_the_flag_lists_them_beside_the_functions_of_ta_lib() -> None:
    listed = parse_listed(" vwap ,SMA(20),CVD(),RSI(14)")
    assert [indicator.name for indicator in listed.indicators] == ["sma_20", "rsi_14"]
    assert listed.factors == ("vwap", "cvd")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("CVD(3)", "CVD takes no parameters, and was given 3"),
        ("CVD, cvd", "cvd is listed twice"),
        ("CVDD", "'CVDD': TA-Lib has no function CVDD; did you mean CVD?"),
        (",".join(["CVD", *(f"EMA({at})" for at in range(2, 66))]), f"65 indicators are more than {MAX_INDICATORS}"),
    ],
)
def test_what_is_wrong_with_the_flag_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadFlag) as refused:
        parse_listed(text)
    assert sentence in str(refused.value)


def test_those_of_the_flag_come_through_the_entry_points() -> None:
    found = {factor.name for factor in load_factors(FactorSettings(indicators=("vwap", "ema_21")))}
    assert "vwap" in found, "run `make setup`: the entry points are not installed"
    assert not found & {"cvd", "taker_ratio"}
    assert {factor.label for factor in flow(FactorSettings(indicators=NAMES))} == set(FLOW_NAMES)


def test_an_installation_without_their_entry_point_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_writing, "load_factors", lambda _: [])
    with pytest.raises(BadFlag, match="the built-in factor cvd is not registered; install klinesync again"):
        parts_writing.ledger_step(ledger_settings(load_flags({"indicators": "CVD"})))
