"""Structured mutation: payloads as they are recorded, with values, bytes and structure changed. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

# Longest mutated payload, in bytes: longer payloads find nothing new, and take long to read.
MAX_BYTES = 300_000
# Most changes of one payload.
MAX_CHANGES = 5
# A value of JSON, or a cell of a table.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_OPENING = re.compile(rb"[{\[]")

NESTING = (
    b"[" * 2_000 + b"]" * 2_000,
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b"[" * 100_000,
    b'[{"a":' * 50_000,
)
NUMBERS = (
    b"0", b"-0.0", b"-1", b"1e999", b"-1e999", b"1e-999", b"1e308", b"NaN", b"Infinity", b"-Infinity", b"1.5",
    b"9" * 25, b"9" * 400, b"9" * 5_000, b"-" + b"9" * 400, b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"253402300799", b"253402300800000", b"1000000000000000000", b"1" + b"0" * 22, b"0x10",
)  # fmt: skip
TEXTS = (
    b'""', b'"NaN"', b'"nan"', b'"inf"', b'"Infinity"', b'"-1"', b'"1_000"', b'" 1"', b'"0x10"', b'"1e999"',
    b'"' + b"9" * 400 + b'"', b'"' + b"9" * 5_000 + b'"', b'"' + b"x" * 70_000 + b'"',
    b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'"\xff\xfe"', b'"\\u0000"', b'"\x00"', b'"\\x"', b'"',
    b'"\\u001b[31m\\n"', b'"\xe2\x80\xae\xe2\x80\xa8"', b'"9999-12-31T23:59:59Z"',
    b'"binance:spot:BTC/USDT:1m"', b'"BTC/USDT"', '"币安人生USDT"'.encode(), b'"a/b:c:d"',
)  # fmt: skip
OTHERS = (b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b"[null]", b'{"":null}', b"[1,2,3,4,5,6]", b",", b":")
HOSTILE = (*NESTING, *NUMBERS, *TEXTS, *OTHERS)


def mutated(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds` with up to `MAX_CHANGES` changes."""
    payload = rng.choice(seeds)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        payload = rng.choice(_CHANGES)(rng, payload, rng.choice(seeds))[:MAX_BYTES]
    return payload


def _other_value(rng: Random, payload: bytes, other: bytes) -> bytes:
    """A value becomes hostile."""
    return _in_place_of_a_value(rng, payload, rng.choice(HOSTILE))


def _swapped_value(rng: Random, payload: bytes, other: bytes) -> bytes:
    """A value is replaced by a value of another payload."""
    values = _VALUE.findall(other)
    return _in_place_of_a_value(rng, payload, rng.choice(values)) if values else payload


def _in_place_of_a_value(rng: Random, payload: bytes, value: bytes) -> bytes:
    places = list(_VALUE.finditer(payload))
    if not places:
        return payload + value
    place = rng.choice(places)
    return payload[: place.start()] + value + payload[place.end() :]


def _more_values(rng: Random, payload: bytes, other: bytes) -> bytes:
    """An object or a list gets an extra value that no reader expects."""
    places = list(_OPENING.finditer(payload))
    if not places:
        return payload
    place, value = rng.choice(places), rng.choice(HOSTILE)
    field = b'"nobody reads this":' + value if place[0] == b"{" else value
    return payload[: place.end()] + field + b"," + payload[place.end() :]


def _other_bytes(rng: Random, payload: bytes, other: bytes) -> bytes:
    start = rng.randint(0, len(payload))
    return payload[:start] + rng.randbytes(rng.randint(0, 4)) + payload[start + rng.randint(0, 4) :]


def _flipped_bit(rng: Random, payload: bytes, other: bytes) -> bytes:
    if not payload:
        return payload
    at = rng.randrange(len(payload))
    return payload[:at] + bytes([payload[at] ^ 1 << rng.randrange(8)]) + payload[at + 1 :]


def _cut_off(rng: Random, payload: bytes, other: bytes) -> bytes:
    return payload[: rng.randint(0, len(payload))]


def _without_a_part(rng: Random, payload: bytes, other: bytes) -> bytes:
    start, end = sorted((rng.randint(0, len(payload)), rng.randint(0, len(payload))))
    return payload[:start] + payload[end:]


def _twice_a_part(rng: Random, payload: bytes, other: bytes) -> bytes:
    start, end = sorted((rng.randint(0, len(payload)), rng.randint(0, len(payload))))
    return payload[:end] + payload[start:]


def _joined(rng: Random, payload: bytes, other: bytes) -> bytes:
    return payload[: rng.randint(0, len(payload))] + other[rng.randint(0, len(other)) :]


# Decoders read values, so values are changed more often than bytes.
_CHANGES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _other_value, _other_value, _other_value, _other_value, _swapped_value, _swapped_value, _more_values, _more_values,
    _other_bytes, _flipped_bit, _cut_off, _without_a_part, _twice_a_part, _joined,
)  # fmt: skip
