"""Counts in words: `1 file`, `2 files`."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 file`, `2 files`. `plural` where it does not end in an s alone: `counted(2, "series", "series")`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
