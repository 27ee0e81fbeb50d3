"""Entry points of installed distributions, by which factors, overlays and exchanges come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points


def points_of(group: str) -> Sequence[EntryPoint]:
    """The entry points of a group, in no order."""
    return _by_group().get(group, ())


@cache
def _by_group() -> Mapping[str, Sequence[EntryPoint]]:
    """All entry points. The files of every installed distribution are read once a process, which takes some 10 ms."""
    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups}
