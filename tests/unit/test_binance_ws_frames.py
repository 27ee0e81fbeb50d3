"""Frames of the exchange: recorded ones are decoded, bad ones are quarantined with the reason."""

import json
from pathlib import Path

import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance import frames as binance_frames
from klinesync.exchanges.binance.frames import Answer, BadFrame, Shutdown, Stream, parse_frame, stream_name
from klinesync.exchanges.exchange import KlineEvent

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
STREAM = "btcusdt@kline_1m"
STREAMS = {STREAM: Stream("BTCUSDT", SERIES)}

KLINE: dict[str, object] = {
    "t": 1700000040000,
    "T": 1700000099999,
    "s": "BTCUSDT",
    "i": "1m",
    "f": 1,
    "L": 2,
    "o": "1.00000000",
    "c": "1.50000000",
    "h": "2.00000000",
    "l": "0.50000000",
    "v": "10.00000000",
    "n": 2,
    "x": False,
    "q": "15.0",
    "V": "5.0",
    "Q": "7.5",
    "B": "0",
}


def frame(*, stream: str = STREAM, sent_ms: int = 1700000050000, **changes: object) -> str:
    return frame_with(changes, stream, sent_ms)


def frame_with(changes: dict[str, object], stream: str = STREAM, sent_ms: int = 1700000050000) -> str:
    data = {"e": "kline", "E": sent_ms, "s": "BTCUSDT", "k": KLINE | changes}
    return json.dumps({"stream": stream, "data": data})


def test_a_kline_frame_is_understood() -> None:
    candle = Candle(1700000040, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 2, 5.0, 7.5)
    assert parse_frame(frame(), STREAMS) == KlineEvent(SERIES, candle, closed=False, event_ms=1700000050000)
    final = KlineEvent(SERIES, candle, closed=True, event_ms=1700000100005)
    assert parse_frame(frame(x=True, sent_ms=1700000100005), STREAMS) == final
    assert stream_name("BTCUSDT", SERIES) == STREAM
    assert stream_name("1000PEPEUSDT", SeriesId.parse("binance:futures:1000PEPE/USDT:1M")) == "1000pepeusdt@kline_1M"


FLOW_FIELDS = ("q", "n", "V", "Q")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"V": "10.1"}, "taker_buy_volume 10.1 is larger than volume 10.0"),
        ({"Q": "15.1"}, "taker_buy_quote_volume 15.1 is larger than quote_volume 15.0"),
        ({"q": "-1"}, "quote_volume -1.0 is negative"),
        ({"q": "nan"}, "quote_volume is nan"),
        ({"V": "inf"}, "taker_buy_volume is inf"),
        ({"n": -1}, "trades -1 is negative"),
        ({"n": 2**60}, "larger"),
        ({"n": 1.5}, "int"),
        ({"q": "much"}, "float"),
        ({"Q": []}, "array"),
    ],
)
def test_order_flow_that_is_invalid_costs_the_order_flow_alone(changes: dict[str, object], word: str) -> None:
    event = parse_frame(frame_with(changes), STREAMS)
    assert isinstance(event, KlineEvent)
    assert event.candle == Candle(1700000040, 1.0, 2.0, 0.5, 1.5, 10.0)
    assert event.flow_fault is not None
    assert word in event.flow_fault
    with pytest.raises((BadCandle, BadFrame), match=r"high|float"):
        parse_frame(frame_with(changes | {"h": "0.1" if word != "float" else "high"}), STREAMS)


@pytest.mark.parametrize("absent", FLOW_FIELDS)
@pytest.mark.parametrize("null", [True, False])
def test_order_flow_that_a_frame_lacks_is_null(absent: str, null: bool) -> None:
    text = frame_with({absent: None})
    event = parse_frame(text if null else text.replace(f'"{absent}": null, ', ""), STREAMS)
    assert isinstance(event, KlineEvent)
    assert event.flow_fault is None
    expected = dict(zip(FLOW_FIELDS, (15.0, 2, 5.0, 7.5), strict=True)) | {absent: None}
    assert event.candle.flow == tuple(expected.values())


def test_a_stream_that_is_not_followed_any_more_is_passed_over() -> None:
    assert parse_frame(frame(stream="ethusdt@kline_1m"), STREAMS) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"result":null,"id":7}', Answer(7, None)),
        ('{"error":{"code":2,"msg":"Invalid request"},"id":7}', Answer(7, "2 Invalid request")),
        ('{"error":{"code":3,"msg":"Invalid JSON"}}', Answer(None, "3 Invalid JSON")),
    ],
)
def test_answers_to_requests_are_understood(text: str, answer: Answer) -> None:
    assert parse_frame(text, STREAMS) == answer


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("[]", "array"),
        ("{}", "neither"),
        ('{"stream":5}', "int"),
        (json.dumps({"stream": STREAM, "data": {}}), "missing"),
        (json.dumps({"stream": STREAM, "data": []}), "array"),
        (frame(o="one"), "float"),
        (frame(o=None), "null"),
        (frame(t="soon"), "int"),
        (frame(x="false"), "neither true nor false"),
        (frame(x=0), "neither true nor false"),
        (frame(x=None), "neither true nor false"),
        (frame(i="5m"), "interval '5m'"),
        (frame(s="ETHUSDT"), "symbol 'ETHUSDT'"),
        (frame(sent_ms=1700000039999), "before its candle opens"),
        (frame(x=True, sent_ms=1700000098000), "before its end"),
        (frame(n="9" * binance_frames.MAX_FRAME_CHARS), "characters"),
    ],
)
def test_a_frame_that_is_not_the_protocols_is_quarantined(text: str, word: str) -> None:
    with pytest.raises(BadFrame, match=word):
        parse_frame(text, STREAMS)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"o": "nan"}, "open is nan"),
        ({"h": "inf"}, "high is inf"),
        ({"h": "0.1"}, "below"),
        ({"l": "0"}, "low is 0.0; a price is greater than 0"),
        ({"o": "-0.00", "l": "-0.00"}, "open is -0.0; a price is greater than 0"),
        ({"v": "-1"}, "negative"),
        ({"t": 1700000041000}, "grid"),
        ({"t": 1700000040001}, "whole second"),
        ({"t": 10**18}, "outside"),
    ],
)
def test_a_candle_that_must_not_get_in_is_quarantined(changes: dict[str, object], word: str) -> None:
    with pytest.raises(BadCandle, match=word):
        parse_frame(json.dumps({"stream": STREAM, "data": {"E": 1700000050000, "k": KLINE | changes}}), STREAMS)


@pytest.mark.parametrize(
    "text",
    [
        '{"e":"serverShutdown","E":1700000050000}',
        '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1700000050000}}',
    ],
)
def test_a_shutdown_is_announced_in_raw_and_in_combined_form(text: str) -> None:
    assert parse_frame(text, STREAMS) == Shutdown()


def test_every_recorded_frame_is_understood(real_data: Path) -> None:
    count = 0
    for path in sorted((real_data / "ws").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            recorded = json.loads(line)["frame"]
            event = recorded.get("data", recorded)
            kline = event["k"]
            if event["e"] != "kline" or kline["i"] not in Timeframe.known:
                continue
            series = SERIES.with_timeframe(Timeframe.parse(kline["i"]))
            text = json.dumps({"stream": STREAM, "data": event})
            parsed = parse_frame(text, {STREAM: Stream(kline["s"], series)})
            assert isinstance(parsed, KlineEvent)
            assert parsed.closed is kline["x"]
            assert parsed.flow_fault is None
            values = [float(kline[name]) for name in ("o", "h", "l", "c", "v")]
            assert parsed.candle.ohlcv == (kline["t"] // 1000, *values)
            flow = (float(kline["q"]), kline["n"], float(kline["V"]), float(kline["Q"]))
            assert parsed.candle.flow == flow
            count += 1
    assert count > 50
