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
# Order of preference among codings of equal weight: on JSON zstd takes the least time for the same size.
PREFERRED: tuple[Coding, ...] = ("zstd", "br", "gzip")
# Longest part of an `Accept-Encoding` that is read, in characters. Browsers send thirty.
MAX_ACCEPT_CHARS = 1000
# What is computed for one client takes a millisecond for 100 KB; what is kept and sent to many may take longer.
LEVELS: dict[Coding, int] = {"zstd": 3, "br": 4, "gzip": 5}
LEVELS_KEPT: dict[Coding, int] = {"zstd": 9, "br": 6, "gzip": 9}
# zlib's window, with the head and the end that make it gzip.
GZIP_WINDOW = 31


def negotiate(accept_encoding: str) -> Coding | None:
    """The coding for a client that sends this `Accept-Encoding`: of those with the highest weight the first of
    `PREFERRED`. None when it takes none of them, or likes bytes as they are better, and for a header that cannot be
    read."""
    weights: dict[str, float] = {}
    for part in accept_encoding[:MAX_ACCEPT_CHARS].lower().split(","):
        name, _, parameters = part.partition(";")
        weight = _weight(parameters.strip())
        if weight is None:
            return None
        weights[name.strip()] = weight
    others = weights.get("*", 0.0)
    known: list[tuple[float, Coding]] = []
    for coding in PREFERRED:
        weight = weights.get(coding, weights.get("x-gzip", others) if coding == "gzip" else others)
        if weight > 0 and weight >= weights.get("identity", 0.0):
            known.append((weight, coding))
    # Of equal weights the first counts.
    return max(known, key=lambda one: one[0])[1] if known else None


def compress(body: bytes, coding: Coding, *, kept: bool = False) -> bytes:
    """The body in that coding. `kept`: the result is sent many times, so it may take longer to make it smaller."""
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
