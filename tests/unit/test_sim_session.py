from __future__ import annotations

import json

import pytest

from klinesync.sim.session import Answer, Route, Session, parse_route

METHODS = "`SUBSCRIBE`, `UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY`"


def session(combined: bool = True) -> Session:
    return Session(Route("spot", True, combined, False, ()), combined)


def said(answer: Answer) -> object:
    assert answer.text is not None
    said: object = json.loads(answer.text)
    return said


@pytest.mark.parametrize(
    ("path", "query", "route"),
    [
        ("/ws", "", Route("spot", True, False, False, ())),
        ("/ws/btcusdt@kline_1m", "", Route("spot", True, False, False, ("btcusdt@kline_1m",))),
        ("/ws/a@kline_1m/b@kline_5m", "", Route("spot", True, False, False, ("a@kline_1m", "b@kline_5m"))),
        ("/ws/a%40kline_1m", "", Route("spot", True, False, False, ("a@kline_1m",))),
        ("/stream", "", Route("spot", True, True, False, ())),
        (
            "/stream",
            "streams=a@kline_1m/b@kline_1d@+08:00",
            Route("spot", True, True, False, ("a@kline_1m", "b@kline_1d@+08:00")),
        ),
        ("/stream", "timeUnit=MICROSECOND", Route("spot", True, True, True, ())),
        ("/stream", "streams=a&timeUnit=microsecond", Route("spot", True, True, True, ("a",))),
        ("/stream/ws/0", "", Route("spot", True, False, False, ("0",))),
        ("/market/ws/0", "", Route("futures", True, False, False, ("0",))),
        ("/market/stream", "streams=a%2Fb", Route("futures", True, True, False, ("a", "b"))),
        ("/market/stream", "timeUnit=MICROSECOND", Route("futures", True, True, False, ())),
        ("/public/stream", "", Route("futures", False, True, False, ())),
        ("/private/ws", "", Route("futures", False, False, False, ())),
        ("/futures-legacy/ws/a", "", Route("futures", False, False, False, ("a",))),
        ("/futures-legacy/stream", "streams=a", Route("futures", False, True, False, ("a",))),
    ],
)
def test_an_address_says_market_form_and_streams(path: str, query: str, route: Route) -> None:
    assert parse_route(path, query) == route


@pytest.mark.parametrize(
    "path", ["/", "/stream/nonsense", "/market", "/market/nonsense", "/wsx", "/api/v3", "/markets/ws"]
)
def test_an_address_that_the_exchange_does_not_have_is_no_route(path: str) -> None:
    assert parse_route(path, "") is None


@pytest.mark.parametrize("request_id", [1, 0, 2**53, "550e8400-e29b-41d4-a716-446655440000", None])
def test_an_id_is_echoed_as_it_was_sent(request_id: object) -> None:
    answer = session().receive(json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": request_id}))
    assert said(answer) == {"result": None, "id": request_id}
    assert answer.subscribe == ("btcusdt@kline_1m",)


def test_subscriptions_are_a_set_in_the_order_of_arrival_and_dead_names_are_in_it() -> None:
    connection = session()
    assert connection.receive('{"method":"SUBSCRIBE","params":["b","NOPE@x","b"],"id":1}').subscribe == ("b", "NOPE@x")
    assert connection.receive('{"method":"SUBSCRIBE","params":["b","c"],"id":2}').subscribe == ("c",)
    assert said(connection.receive('{"method":"LIST_SUBSCRIPTIONS","id":3}')) == {
        "result": ["b", "NOPE@x", "c"],
        "id": 3,
    }
    answer = connection.receive('{"method":"UNSUBSCRIBE","params":["b","never"],"id":4}')
    assert said(answer) == {"result": None, "id": 4}
    assert answer.unsubscribe == ("b",)
    assert said(connection.receive('{"method":"LIST_SUBSCRIPTIONS","id":5}')) == {"result": ["NOPE@x", "c"], "id": 5}


def test_the_combined_property_can_be_read_and_set() -> None:
    connection = session(combined=False)
    assert said(connection.receive('{"method":"GET_PROPERTY","params":["combined"],"id":1}')) == {
        "result": False,
        "id": 1,
    }
    answer = connection.receive('{"method":"SET_PROPERTY","params":["combined",true],"id":2}')
    assert said(answer) == {"result": None, "id": 2}
    assert answer.rewrap
    assert said(connection.receive('{"method":"GET_PROPERTY","params":["combined"],"id":3}')) == {
        "result": True,
        "id": 3,
    }


@pytest.mark.parametrize(
    ("text", "error", "echo"),
    [
        ('{"method":"SET_PROPERTY","params":["nope",true],"id":7}', (0, "Unknown property"), 7),
        ('{"method":"GET_PROPERTY","params":["nope"],"id":7}', (0, "Unknown property"), 7),
        ('{"method":"SET_PROPERTY","params":["combined",1],"id":7}', (1, "Invalid value type: expected Boolean"), 7),
        ('{"method":"GET_PROPERTY","params":[1],"id":7}', (2, "Invalid request: property name must be a string"), 7),
        ('{"method":"GET_PROPERTY","params":["combined",1],"id":7}', (2, "Invalid request: too many parameters"), 7),
        (
            '{"method":"SUBSCRIBE","params":["a"],"id":1.5}',
            (2, "Invalid request: request ID must be an unsigned integer"),
            None,
        ),
        (
            '{"method":"SUBSCRIBE","params":["a"],"id":true}',
            (2, "Invalid request: request ID must be an unsigned integer"),
            None,
        ),
        ('{"params":["a"],"id":7}', (2, "Invalid request: missing field `method` at line 1 column 1"), 7),
        (
            '{"method":"NOPE","id":7}',
            (2, f"Invalid request: unknown variant `NOPE`, expected one of {METHODS} at line 1 column 1"),
            7,
        ),
        ("{nope", (3, "Invalid JSON: expected value at line 1 column 1"), None),
    ],
)
def test_a_bad_request_is_told_nested_and_changes_nothing(text: str, error: tuple[int, str], echo: object) -> None:
    connection = session()
    answer = connection.receive(text)
    expected: dict[str, object] = {"error": {"code": error[0], "msg": error[1]}}
    if echo is not None:
        expected["id"] = echo
    assert said(answer) == expected
    assert not answer.subscribe
    assert answer.close is None
    assert connection.names == {}


def test_the_stream_beyond_1024_closes_the_connection() -> None:
    connection = session()
    names = [f"s{at}@kline_1m" for at in range(1024)]
    assert connection.receive(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1})).close is None
    answer = connection.receive('{"method":"SUBSCRIBE","params":["one_more"],"id":2}')
    assert said(answer) == {"error": {"code": 4, "msg": "Too many subscriptions"}}
    assert answer.close == (1008, "Invalid request")
