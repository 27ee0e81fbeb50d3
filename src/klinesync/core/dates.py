"""Times as people write and read them. Inside, a time is UTC seconds since 1970-01-01."""

from __future__ import annotations

import re
from datetime import UTC, datetime

# Last second of the year 9999, the last year of ISO 8601 dates.
LAST_TIME = 253_402_300_799
# Digits of a date without dashes: 20261129.
_DATE_DIGITS = 8
# Most digits of nanoseconds.
MAX_DIGITS = 20
# A number of so many digits or more is milliseconds or finer: as seconds, 11 digits are the year 2286 and later.
_MILLISECOND_DIGITS = 12
_FORMS = (
    "write a date (2026-11-29 or 20261129), a date and time (2026-11-29T18:00, UTC where no zone is given) "
    "or unix seconds"
)
_DIVISORS = ((19, 10**9, "nanoseconds"), (16, 10**6, "microseconds"), (_MILLISECOND_DIGITS, 10**3, "milliseconds"))


def date_text(time_s: int) -> str:
    """A time as a date: `2026-11-29 18:00 UTC`, with seconds where they are not 0. A number beyond all dates stays a
    number."""
    try:
        moment = datetime.fromtimestamp(time_s, UTC)
    except (ValueError, OverflowError, OSError):
        return str(time_s)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment.second else f"{moment:%Y-%m-%d %H:%M} UTC"


def parse_time(text: str) -> int:
    """The time that `text` names, in UTC seconds: ISO 8601 (UTC when no zone is given) or unix seconds; eight digits
    are a date. Raises ValueError with a sentence, also for milliseconds and finer."""
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) != _DATE_DIGITS:
        return _unix_seconds(text)
    try:
        moment = datetime.fromisoformat(text)
        time_s = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise ValueError(f"{_shown(text)} is neither ISO 8601 nor unix seconds; {_FORMS}") from None
    if time_s < 0:
        raise ValueError(f"{_shown(text)} lies before 1970-01-01")
    return time_s


def _unix_seconds(text: str) -> int:
    for digits, divisor, unit in _DIVISORS:
        if len(text) >= digits:
            time_s = int(text[:MAX_DIGITS]) // divisor
            meant = f"write {time_s} or {iso(time_s)}" if len(text) <= MAX_DIGITS and time_s <= LAST_TIME else _FORMS
            raise ValueError(f"{_shown(text)} is not unix seconds but {unit}; {meant}")
    return int(text)


def iso(time_s: int) -> str:
    """A time as `2026-11-29T18:00:00Z`; a number beyond all dates stays a number."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(time_s)


def _shown(text: str) -> str:
    return repr(re.sub(r"(.{40}).+", r"\1…", text, flags=re.DOTALL))
