"""WebSocket frames as a server sends them (RFC 6455, section 5.2): whole, unmasked, not compressed. Pure."""

from __future__ import annotations

from struct import Struct

_TEXT = 0x81  # the final fragment of a text message
_SHORT_MAX = 125
_MEDIUM_MAX = 0xFFFF
_medium_head = Struct("!BBH").pack
_long_head = Struct("!BBQ").pack


def text_frame(payload: bytes) -> bytes:
    """`payload`, which is UTF-8, as one text frame."""
    length = len(payload)
    if length <= _SHORT_MAX:
        return bytes((_TEXT, length)) + payload
    if length <= _MEDIUM_MAX:
        return _medium_head(_TEXT, 126, length) + payload
    return _long_head(_TEXT, 127, length) + payload


def payload_of(frame: bytes) -> bytes:
    """The payload of one frame that `text_frame` made."""
    length = frame[1]
    return frame[2 if length <= _SHORT_MAX else 4 if length == 126 else 10 :]
