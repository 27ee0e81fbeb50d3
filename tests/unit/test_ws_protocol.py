"""The exact messages of /ws/market."""

import json

import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.splice import Jump
from klinesync.ws import protocol
from klinesync.ws.frames import payload_of
from klinesync.ws.protocol import BadMessage, Ping, Subscribe, Unsubscribe, WsMessageParser

NAME = "binance:spot:BTC/USDT:1m"
SERIES = SeriesId.parse(NAME)
CANDLE = Candle(1700000040, 1.0, 2.0, 0.5, 1.5, 10.0)
CANDLE_JSON = {"candle_time": 1700000040, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
WITH_FLOW = Candle(*CANDLE.ohlcv, 15.0, 3, 4.0, None)
FLOW_JSON = {"quote_volume": 15.0, "trades": 3, "taker_buy_volume": 4.0, "taker_buy_quote_volume": None}
parse = WsMessageParser().parse


def message(**fields: object) -> str:
    return json.dumps(fields)


def test_messages_of_clients_are_parsed() -> None:
    assert parse(message(type="subscribe", series_id=NAME)) == Subscribe(SERIES, None, supports_batch=False, ack=False)
    full = message(type="subscribe", series_id=NAME, since=0, supports_batch=True, ack=True, later="ignored")
    assert parse(full) == Subscribe(SERIES, 0, supports_batch=True, ack=True)
    for fields, wanted in (("full", True), (None, False)):
        flow = message(type="subscribe", series_id=NAME, fields=fields)
        assert parse(flow) == Subscribe(SERIES, None, supports_batch=False, ack=False, full=wanted)
    assert parse(message(type="unsubscribe", series_id=NAME)) == Unsubscribe(SERIES)
    assert parse(b'{"type":"ping"}') == Ping()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "message is not JSON"),
        ("{", "message is not JSON"),
        (b"\xff\xfe", "message is not JSON"),
        ('{"type":"ping","x":NaN}', "message is not JSON"),
        ("[]", "message is not a JSON object"),
        ("1", "message is not a JSON object"),
        ("{}", "missing type"),
        ('{"type":null}', "missing type"),
        ('{"type":"trade"}', "unknown message type: trade"),
        ('{"type":1}', "unknown message type: 1"),
        ('{"type":"subscribe"}', "missing series_id"),
        ('{"type":"unsubscribe","series_id":""}', "missing series_id"),
        ('{"type":"subscribe","series_id":5}', "invalid series_id"),
        (message(type="subscribe", series_id=NAME, since="0"), "invalid since"),
        (message(type="subscribe", series_id=NAME, since=-1), "invalid since"),
        (message(type="subscribe", series_id=NAME, since=1.5), "invalid since"),
        (message(type="subscribe", series_id=NAME, since=True), "invalid since"),
        (message(type="subscribe", series_id=NAME, since=10**18), "invalid since"),
        (message(type="subscribe", series_id=NAME, supports_batch=1), "invalid supports_batch"),
        (message(type="subscribe", series_id=NAME, ack="yes"), "invalid ack"),
        (message(type="subscribe", series_id=NAME, fields="short"), "invalid fields"),
        (message(type="subscribe", series_id=NAME, fields=""), "invalid fields"),
        (message(type="subscribe", series_id=NAME, fields=["full"]), "invalid fields"),
        (message(type="subscribe", series_id=NAME, fields=True), "invalid fields"),
    ],
)
def test_a_bad_message_gets_the_protocols_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(text)
    assert str(caught.value) == sentence
    assert caught.value.code == "bad_request"


def test_a_malformed_series_id_is_refused_with_the_reason() -> None:
    with pytest.raises(BadMessage, match="four parts") as caught:
        parse(message(type="subscribe", series_id="BTCUSDT"))
    assert caught.value.series_id == "BTCUSDT"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (protocol.pong(), {"type": "pong"}),
        (
            protocol.subscribed(SERIES, None, "off"),
            {"type": "subscribed", "series_id": NAME, "head_time": None, "stream": "off"},
        ),
        (
            protocol.candle_closed(SERIES, CANDLE),
            {"type": "candle_closed", "series_id": NAME, "candle": CANDLE_JSON},
        ),
        (
            protocol.candle_closed(SERIES, CANDLE, revised=True),
            {"type": "candle_closed", "series_id": NAME, "candle": CANDLE_JSON, "revised": True},
        ),
        (
            protocol.candles_batch(SERIES, [CANDLE]),
            {"type": "candles_batch", "series_id": NAME, "candles": [CANDLE_JSON]},
        ),
        (
            protocol.candle_forming(SERIES, CANDLE),
            {"type": "candle_forming", "series_id": NAME, "candle": CANDLE_JSON},
        ),
        (
            protocol.candle_closed(SERIES, WITH_FLOW),
            {"type": "candle_closed", "series_id": NAME, "candle": CANDLE_JSON},
        ),
        (
            protocol.candle_closed(SERIES, WITH_FLOW, full=True),
            {"type": "candle_closed", "series_id": NAME, "candle": CANDLE_JSON | FLOW_JSON},
        ),
        (
            protocol.candles_batch(SERIES, [CANDLE], full=True),
            {"type": "candles_batch", "series_id": NAME, "candles": [CANDLE_JSON | dict.fromkeys(FLOW_JSON)]},
        ),
        (
            protocol.candle_forming(SERIES, WITH_FLOW, full=True),
            {"type": "candle_forming", "series_id": NAME, "candle": CANDLE_JSON | FLOW_JSON},
        ),
        (
            protocol.gap(SERIES, Jump(1700000100, 1700000220)),
            {
                "type": "gap",
                "series_id": NAME,
                "expected_next_time": 1700000100,
                "actual_time": 1700000220,
                "reason": "missing",
                "state": "unknown",
            },
        ),
        (
            protocol.system(SERIES, "stream.stale", "no frames for 15 s", {"since": 1700000100}),
            {
                "type": "system",
                "series_id": NAME,
                "event": "stream.stale",
                "message": "no frames for 15 s",
                "data": {"since": 1700000100},
            },
        ),
        (
            protocol.system(SERIES, "history.extended", "older history has come"),
            {
                "type": "system",
                "series_id": NAME,
                "event": "history.extended",
                "message": "older history has come",
                "data": {},
            },
        ),
        (
            protocol.error_message("bad_request", "message is not JSON"),
            {"type": "error", "code": "bad_request", "message": "message is not JSON"},
        ),
        (
            protocol.error_message("unknown_series", "x", NAME),
            {"type": "error", "code": "unknown_series", "message": "x", "series_id": NAME},
        ),
    ],
)
def test_messages_to_clients_have_the_contracts_shape(frame: bytes, expected: dict[str, object]) -> None:
    assert json.loads(payload_of(frame)) == expected
