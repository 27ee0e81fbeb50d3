"""The one way to read JSON from outside: any bytes are decoded, or raise `Undecodable`.

A decoder alone raises several errors: its own, UnicodeDecodeError for text that is not UTF-8, RecursionError for deep
nesting. Callers turn `Undecodable` into the error of their own contract.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")

# Whole numbers of 64 bits. No field has larger ones, and converting a very large one to a float raises.
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
# Longest part of a decoder's message that is kept, in characters: the message has names of fields and the path to a
# nested value, which have any length.
MAX_REASON_CHARS = 300


class Undecodable(ValueError):
    """Data that cannot be read. The message says why."""


def reason_of(error: Exception) -> str:
    """A decoder's message about data from outside, of a bounded length."""
    return str(error)[:MAX_REASON_CHARS]


def decoded(decoder: msgspec.json.Decoder[T], data: bytes | str | msgspec.Raw) -> T:
    """The value that `decoder` reads from any data. Raises `Undecodable`."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:  # also bytes that are no UTF-8
        raise Undecodable(reason_of(error)) from None
    except RecursionError:
        raise Undecodable("it is nested too deep") from None


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """Any data as a value of `kind`. Raises `Undecodable`."""
    return decoded(msgspec.json.Decoder(kind), data)
