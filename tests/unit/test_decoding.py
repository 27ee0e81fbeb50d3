"""JSON from outside: any bytes are either decoded, or lead to the one declared error."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.decoding import MAX_REASON_CHARS, Int64, Undecodable, decode_json, decoded


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    stamp: Int64
    text: str = ""


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 2_000 + b"]" * 2_000,
        b"[" * 100_000,
        b'{"a":' * 2_000,
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        "\ud800",
        b"9" * 5_000,
        b"1e999",
        b"NaN",
        b"Infinity",
        b"",
    ],
)
def test_what_cannot_be_read_is_the_one_error(data: bytes | str) -> None:
    with pytest.raises(Undecodable):
        decode_json(data, object)
    inside = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    with pytest.raises(Undecodable):
        decode_json(b'{"stamp":' + inside + b"}", Sample)


def test_whole_numbers_have_64_bits() -> None:
    assert decode_json(b'{"stamp":9223372036854775807}', Sample).stamp == 2**63 - 1
    assert decode_json(b'{"stamp":-9223372036854775808}', Sample).stamp == -(2**63)
    for number in (b"9223372036854775808", b"-9223372036854775809", b"9" * 400):
        with pytest.raises(Undecodable):
            decode_json(b'{"stamp":' + number + b"}", Sample)


def test_the_reason_has_a_bounded_length() -> None:
    with pytest.raises(Undecodable) as refused:
        decode_json(json.dumps({"stamp": 1, "x" * 100_000: 1}), Sample)
    assert len(str(refused.value)) <= MAX_REASON_CHARS


@given(st.binary(max_size=100) | st.text(st.characters(), max_size=100))
def test_any_data_are_read_or_are_the_one_error(data: bytes | str) -> None:
    decoder = msgspec.json.Decoder(object)
    try:
        value = decoded(decoder, data)
    except Undecodable:
        return
    assert decoder.decode(msgspec.json.encode(value)) == value
