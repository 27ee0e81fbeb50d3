"""The page's message types follow from the service's schemas, and the schemas from the service's answers."""

from __future__ import annotations

import json

import message_types
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klinesync.core.candle import MAX_TIME
from klinesync.ws.messages import ClientMessage
from klinesync.ws.protocol import BadMessage, WsMessageParser

NAME = "binance:futures:BTC/USDT:1m"


def test_the_types_of_the_page_are_those_of_the_service() -> None:
    assert message_types.FILE.read_text() == message_types.source(), "run `make types`"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer", "minimum": 0}, "number"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, "number"),
        ({"enum": ["b", "a"], "type": "string"}, '"a" | "b"'),
        ({"const": 1}, "1"),
        ({"type": "array", "items": {"$ref": "#/$defs/Row"}}, "readonly Row[]"),
        ({"type": "array", "items": {"enum": [1, -1]}}, "readonly (-1 | 1)[]"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "Readonly<Record<string, boolean>>"),
        ({"type": "object"}, "Readonly<Record<string, unknown>>"),
        ({"title": "anything"}, "unknown"),
    ],
)
def test_a_schema_becomes_a_type(schema: dict[str, object], expected: str) -> None:
    assert message_types.type_of(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "contentEncoding": "base64"},
        {"type": ["string", "null"]},
        {"allOf": [{"type": "string"}]},
        {"not": {}},
        {"$ref": "elsewhere.json"},
        {"type": "array", "prefixItems": [{"type": "string"}]},
        {"type": "object", "patternProperties": {}},
    ],
)
def test_a_schema_without_translation_is_refused_instead_of_widened(schema: dict[str, object]) -> None:
    with pytest.raises(message_types.UnknownSchema):
        message_types.type_of(schema)


def test_a_property_that_may_be_missing_is_optional() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "null"}}, "required": ["a"]}
    assert message_types.declaration("Row", schema) == (
        "export interface Row {\n  readonly a: string;\n  readonly b?: null;\n}"
    )


any_value: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(0, MAX_TIME) | st.just(NAME) | st.just([]) | st.just({})
)
client_messages: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {"type": st.sampled_from(["subscribe", "unsubscribe", "ping", "pong"]) | any_value},
    optional={
        "series_id": st.just(NAME) | any_value,
        "since": st.integers(0, MAX_TIME) | any_value,
        "supports_batch": st.booleans() | any_value,
        "ack": st.booleans() | any_value,
        "what": st.lists(st.sampled_from(["closed", "forming", "corrections", "all"]), min_size=1)
        | st.none()
        | st.just(1),
        "more": any_value,
    },
)


@given(client_messages)
@example({"type": "subscribe", "series_id": NAME, "since": True})
@example({"type": "subscribe", "series_id": NAME, "what": ["closed"], "ack": None})
def test_the_service_takes_what_the_types_allow_a_client_to_send_and_nothing_else(message: dict[str, object]) -> None:
    assert _is_parsed(message) == _has_the_shape(message)


def _is_parsed(message: dict[str, object]) -> bool:
    try:
        WsMessageParser().parse(json.dumps(message))
    except BadMessage:
        return False
    return True


def _has_the_shape(message: dict[str, object]) -> bool:
    try:
        msgspec.convert(message, ClientMessage)
    except msgspec.ValidationError:
        return False
    return True
