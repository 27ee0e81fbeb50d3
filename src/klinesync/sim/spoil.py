"""Frames that are not what they should be: one event, spoilt in one way."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from klinesync.sim.faults import Variant
from klinesync.sim.wire import combined

HUGE_BYTES = 1 << 20  # what many WebSocket libraries take at most, unless told otherwise
_YEAR_MS = 365 * 86_400_000


class Spoilt(NamedTuple):
    """How an event is spoilt; `symbol` is the one that it names wrongly."""

    variant: Variant
    symbol: str


def spoil(event: bytes, how: Spoilt, stream: str | None, *, micro: bool) -> tuple[bytes, bool]:
    """The payload of the spoilt frame, and whether it is a binary one. `stream` is None on a raw connection."""
    variant = how.variant
    if variant in ("broken_json", "binary"):
        whole = event if stream is None else combined(stream, event)
        return (whole, True) if variant == "binary" else (whole[: len(whole) // 2], False)
    body: dict[str, object] = msgspec.json.decode(event)
    kline = body["k"]
    assert isinstance(kline, dict)
    match variant:
        case "wrong_types":
            kline |= {"t": str(kline["t"]), "o": None, "h": [], "l": {}, "c": True, "v": 1.5}
        case "wrong_symbol":
            body["ps" if "ps" in body else "s"] = how.symbol
            if "s" in kline:
                kline["s"] = how.symbol
        case "wrong_interval":
            kline["i"] = "1m" if kline["i"] == "5m" else "5m"
        case "closed_text":
            kline["x"] = "false"
        case "nan":
            kline |= {"c": "NaN", "h": "Infinity", "v": "nan"}
        case "future":
            ahead = _YEAR_MS * (1000 if micro else 1)
            body["E"] = _later(body["E"], ahead)
            kline |= {"t": _later(kline["t"], ahead), "T": _later(kline["T"], ahead)}
        case "huge":
            body["pad"] = "x" * HUGE_BYTES
    payload = msgspec.json.encode(body)
    return (payload if stream is None else combined(stream, payload)), False


def _later(value: object, ahead: int) -> int:
    assert isinstance(value, int)
    return value + ahead
