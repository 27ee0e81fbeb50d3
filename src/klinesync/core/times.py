"""Points in time as people and programs write them, parsed once at the edge to unix seconds (UTC)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import isfinite
from typing import SupportsIndex, TypeAlias

from klinesync.core.errors import Rejected

# Unix seconds, a datetime (UTC when naive), or ISO 8601 text (UTC when without a zone).
Time: TypeAlias = SupportsIndex | float | datetime | str

# Unix seconds from this value (the year 5138) on are refused, as milliseconds that were not divided.
MAX_SECONDS = 100_000_000_000
_COMPACT_DATE = re.compile(r"[12]\d{7}")


class BadTime(Rejected):
    """A value that is no point in time."""

    code = "bad_time"


def unix_seconds(value: Time) -> int:
    """The point in time as whole unix seconds, rounded down.

    `value`: unix seconds (any integer or float type), a datetime, or text: ISO 8601 (`2026-11-29`, `20261129`,
    `2026-11-29 08:00`, `2026-11-29T08:00:00Z`) or unix seconds. Without a zone the time is UTC. Raises `BadTime`.
    """
    if isinstance(value, str):
        return _checked(_parsed(value.strip()), value)
    if isinstance(value, datetime):
        return _checked(_seconds(value), value)
    if isinstance(value, bool):
        raise BadTime(f"{value} is no time; give unix seconds, a datetime or ISO 8601 text")
    if isinstance(value, float):
        if not isfinite(value):
            raise BadTime(f"{value} is no time; give unix seconds, a datetime or ISO 8601 text")
        return _checked(int(value // 1), value)
    try:
        return _checked(value.__index__(), value)
    except (AttributeError, TypeError):
        kind = type(value).__name__
        raise BadTime(f"a {kind} is no time; give unix seconds, a datetime or ISO 8601 text") from None


def _parsed(text: str) -> int:
    if text.isascii() and text.isdecimal() and not _COMPACT_DATE.fullmatch(text):
        if len(text) > 20:
            raise BadTime(f"{text[:40]!r} is no time; give unix seconds or ISO 8601")
        return int(text)
    try:
        return _seconds(datetime.fromisoformat(text))
    except ValueError:
        raise BadTime(
            f"{text[:40]!r} is no time; write 2026-11-29, 2026-11-29T08:00 (UTC unless a zone is given) or unix seconds"
        ) from None


def _seconds(moment: datetime) -> int:
    try:
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
    except OverflowError:
        raise BadTime(f"{moment} is out of range") from None


def _checked(seconds: int, given: object) -> int:
    if seconds < 0:
        raise BadTime(f"{_shown(given)} lies before 1970")
    if seconds >= MAX_SECONDS:
        hint = "give seconds"
        if seconds // 1000 < MAX_SECONDS:
            hint = f"are these milliseconds? Unix seconds have ten digits: {seconds // 1000}"
        raise BadTime(f"{_shown(given)} is too far ahead; {hint}")
    return seconds


def _shown(given: object) -> str:
    """The value for an error message. Python writes no integer of more than 4,300 digits."""
    try:
        text = str(given)
    except ValueError:
        return "an integer of thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}…"
