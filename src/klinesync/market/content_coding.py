"""Content codings: negotiation, compression, decompression (RFC 9110, section 8.4.1). Pure."""

from __future__ import annotations

import sys
import zlib
from typing import Literal

import brotli  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["zstd", "br", "gzip"]
# Preference among codings of equal weight, most preferred first: zstd is the fastest on JSON for the same size.
PREFERRED: tuple[Coding, ...] = ("zstd", "br", "gzip")
# Longest part of an `Accept-Encoding` that is parsed, in characters. Browsers send about 30.
MAX_ACCEPT_CHARS = 1000
# Levels for bodies that are sent once: about 1 ms for 100 KB.
LEVELS: dict[Coding, int] = {"zstd": 3, "br": 4, "gzip": 5}
# Levels for bodies that are sent many times, and may take longer.
LEVELS_KEPT: dict[Coding, int] = {"zstd": 9, "br": 6, "gzip": 9}
# zlib's `wbits` for a gzip header and trailer.
GZIP_WINDOW = 31


def negotiate(accept_encoding: str) -> Coding | None:
    """The coding for an `Accept-Encoding`: the one with the highest weight, of several the first of `PREFERRED`. None
    when the client accepts none of them or prefers no coding, and for a malformed header."""
    weights: dict[str, float] = {}
    for part in accept_encoding[:MAX_ACCEPT_CHARS].lower().split(","):
        name, _, parameters = part.partition(";")
        weight = _weight(parameters.strip())
        if weight is None:
            return None
        weights[name.strip()] = weight
    default = weights.get("*", 0.0)
    accepted: list[tuple[float, Coding]] = []
    for coding in PREFERRED:
        weight = weights.get(coding, weights.get("x-gzip", default) if coding == "gzip" else default)
        if weight > 0 and weight >= weights.get("identity", 0.0):
            accepted.append((weight, coding))
    # Of equal weights `max` returns the first.
    return max(accepted, key=lambda pair: pair[0])[1] if accepted else None


def compress(body: bytes, coding: Coding, *, kept: bool = False) -> bytes:
    """The body in a coding. `kept`: whether the result is sent many times, and may take longer; False by default."""
    level = (LEVELS_KEPT if kept else LEVELS)[coding]
    match coding:
        case "zstd":
            return zstd.compress(body, level)
        case "br":
            return bytes(brotli.compress(body, quality=level))
        case "gzip":
            return zlib.compress(body, level, GZIP_WINDOW)


def decompress(body: bytes, coding: Coding) -> bytes:
    """The body from the bytes of `compress`."""
    match coding:
        case "zstd":
            return zstd.decompress(body)
        case "br":
            return bytes(brotli.decompress(body))
        case "gzip":
            return zlib.decompress(body, GZIP_WINDOW)


def _weight(parameters: str) -> float | None:
    """`q=0.5` -> 0.5; 1 without parameters; None when it is no weight."""
    if not parameters:
        return 1.0
    name, _, value = parameters.partition("=")
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if name.strip() == "q" and 0 <= weight <= 1 else None
