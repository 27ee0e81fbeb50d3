"""Values of the flag `indicators`: names, parameters, labels, panes, and the sentences of refusals."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest

from klinesync.core.errors import BadFlag
from klinesync.factor.indicator import MAX_CHUNK
from klinesync.factor.indicator_admission import REFUSED, UNUSABLE, why_refused
from klinesync.factor.indicator_names import MAX_INDICATORS, parse_indicators
from klinesync.factor.indicator_talib import function_names, look_up
from klinesync.runtime.flags import RuntimeFlags

DEFAULT = "SMA(20),EMA(21),BBANDS(20),MACD(12,26,9),RSI(14),ATR(14)"


def test_the_default_of_the_flag_gives_its_six_indicators() -> None:
    indicators = parse_indicators(DEFAULT)
    assert [indicator.name for indicator in indicators] == [
        "sma_20",
        "ema_21",
        "bbands_20",
        "macd_12_26_9",
        "rsi_14",
        "atr_14",
    ]
    assert [indicator.pane for indicator in indicators] == ["price", "price", "price", "own", "own", "own"]
    assert [indicator.chunk for indicator in indicators] == [512, 512, 512, 1024, 512, 512]
    assert parse_indicators(RuntimeFlags.model_fields["indicators"].default) == indicators


def test_outputs_are_named_as_talib_names_them_and_a_single_one_like_the_indicator() -> None:
    macd, bands, rsi = parse_indicators("MACD(12,26,9),BBANDS(20,2.5),RSI(14)")
    assert [(output.key, output.label, output.style) for output in macd.outputs] == [
        ("macd_12_26_9.macd", "MACD(12,26,9) macd", "line"),
        ("macd_12_26_9.macdsignal", "MACD(12,26,9) macdsignal", "dashed"),
        ("macd_12_26_9.macdhist", "MACD(12,26,9) macdhist", "histogram"),
    ]
    assert [output.key for output in bands.outputs] == [
        "bbands_20_2.5.upperband",
        "bbands_20_2.5.middleband",
        "bbands_20_2.5.lowerband",
    ]
    assert [(output.key, output.label) for output in rsi.outputs] == [("rsi_14", "RSI(14)")]
    assert macd.title == "Moving Average Convergence/Divergence"


def test_a_name_shows_the_parameters_that_were_given_and_the_others_are_talibs_defaults() -> None:
    plain, some, all_of_them = parse_indicators("BBANDS, bbands ( 21 ),BBands(22,2,3.50,1)")
    assert [one.name for one in (plain, some, all_of_them)] == ["bbands", "bbands_21", "bbands_22_2_3.5_1"]
    assert [one.label for one in (plain, some, all_of_them)] == ["BBANDS", "BBANDS(21)", "BBANDS(22,2,3.5,1)"]
    assert plain.parameters == (20, 2.0, 2.0, 0)
    assert all_of_them.parameters == (22, 2.0, 3.5, 1)
    assert isinstance(all_of_them.parameters[1], float)


def test_inputs_are_the_prices_of_talibs_metadata() -> None:
    close, range_, flow, body = parse_indicators("EMA(9),ATR(9),MFI(9),BOP")
    assert close.inputs == ("close",)
    assert range_.inputs == ("high", "low", "close")
    assert flow.inputs == ("high", "low", "close", "volume")
    assert body.inputs == ("open", "high", "low", "close")


def test_a_list_and_a_text_say_the_same_and_nothing_is_no_indicator() -> None:
    assert parse_indicators(["SMA(20)", "MACD(12,26,9)"]) == parse_indicators("SMA(20) , MACD(12,26,9)")
    assert parse_indicators("") == parse_indicators([]) == ()


def test_average_deviation_has_its_own_pane_although_talib_puts_it_with_prices() -> None:
    assert parse_indicators("AVGDEV")[0].pane == "own"


def test_the_fingerprint_tells_parameters_apart_and_names_the_version_of_talib() -> None:
    one, other = parse_indicators("EMA(20),EMA(21)")
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint.startswith("EMA(20)/512@ta-lib-")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("OBV", "OBV cannot be followed: it adds up the whole history"),
        ("sar(0.02)", "SAR cannot be followed: which way it points can depend on candles of any age"),
        ("MAVP", "MAVP cannot be followed: it needs a column of periods besides the prices"),
        ("EMAA(2)", "'EMAA(2)': TA-Lib has no function EMAA; did you mean EMA or TEMA?"),
        ("XYZZY", "'XYZZY': TA-Lib has no function XYZZY"),
        ("EMA(20", "'EMA(20' is no indicator; write NAME or NAME(PARAMETER,…), for example MACD(12,26,9)"),
        ("EMA 20", "'EMA 20' is no indicator"),
        ("EMA(20)x", "'EMA(20)x' is no indicator"),
        ("A" * 300, "is no indicator"),
        ("EMA(20,3)", "EMA was given 2 parameters; it takes timeperiod=30"),
        ("BOP(1)", "BOP was given 1 parameters; it takes none"),
        ("EMA(x)", "EMA: timeperiod is a whole number, not 'x'"),
        ("EMA(2.5)", "EMA: timeperiod is a whole number, not '2.5'"),
        ("EMA(1_0)", "EMA: timeperiod is a whole number, not '1_0'"),
        ("EMA(٢٠)", "EMA: timeperiod is a whole number, not '٢٠'"),
        ("T3(5,nan)", "T3: vfactor is a number, not 'nan'"),
        ("T3(5,1e999)", "T3: vfactor 1e999 lies outside ±100000"),
        ("T3(5,9)", "T3(5,9): vfactor cannot be 9"),
        ("EMA(0)", "EMA(0): timeperiod cannot be 0; TA-Lib takes 1 … 100000"),
        ("EMA(-2147483648)", "EMA: timeperiod -2147483648 lies outside ±100000"),
        ("BBANDS(20,2,2,99)", "BBANDS(20,2,2,99): matype cannot be 99; TA-Lib takes 0 … 13"),
        ("BBANDS(20,2,2,6)", "BBANDS: matype 6 is KAMA, refused: in a market without direction"),
        ("MACDEXT(12,7)", "MACDEXT: fastmatype 7 is MAMA, refused:"),
        ("APO(9,49,5)", "APO: matype 5 is TRIMA, refused: its rounding shows in differences of averages"),
        ("SMA(1366)", "SMA(1366) looks back on 1366 candles; 1365 is the most"),
        ("SMA(20),sma( 20 )", "SMA(20) is listed twice"),
        ("BBANDS(20),BBANDS(20,2.0)", "BBANDS(20,2) is the same as BBANDS(20); list one of them"),
        (",".join(f"EMA({period})" for period in range(2, 3 + MAX_INDICATORS)), "65 indicators are more than 64"),
    ],
)
def test_what_cannot_be_an_indicator_is_refused_with_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(BadFlag) as refused:
        parse_indicators(text)
    assert str(refused.value).startswith("flag indicators: ")
    assert reason in str(refused.value)


def test_the_longest_period_fits_into_the_longest_chunk() -> None:
    assert parse_indicators("SMA(1365)")[0].chunk == MAX_CHUNK


def test_the_service_requires_neither_pandas_nor_polars() -> None:
    """talib imports both where they are installed: 1.8 s and 92 MB without any use for the service."""
    required = [one for one in requires("klinesync") or () if "extra ==" not in one]
    assert any(one.lower().startswith("ta-lib") for one in required)
    assert not [one for one in required if one.lower().startswith(("pandas", "polars"))]


def test_the_reference_names_every_function_with_its_defaults_and_every_refusal_with_its_reason() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "indicators.md").read_text()
    _, functions, refused = re.split(r"^## (?:The functions|Refused, and why)$", text, flags=re.MULTILINE)
    listed = {
        name: parameters.strip() for name, parameters in re.findall(r"`([A-Z0-9_]+)`([^;`]*?)[;.](?=\s)", functions)
    }
    named = [look_up(name) for name in function_names() if why_refused(name) is None]
    assert {name: " ".join(parameters.split()) for name, parameters in listed.items()} == {
        one.name: ", ".join(f"{parameter.name} {parameter.default:.12g}" for parameter in one.parameters)
        for one in named
        if one is not None
    }
    rows = dict(re.findall(r"^\| (`.*`) \| (.*) \|$", refused, flags=re.MULTILINE))
    assert {name: reason for names, reason in rows.items() for name in re.findall(r"`(\w+)`", names)} == {
        **REFUSED,
        **UNUSABLE,
    }
