"""Unexpected exceptions, raised in tasks at the point where they wait."""

from __future__ import annotations

import asyncio


class Unexpected(Exception):
    """An exception that no code catches by name."""


def throw_into(task: asyncio.Task[None]) -> bool:
    """Raise `Unexpected` where the task waits; False when the task waits for nothing that can raise."""
    waits_for = getattr(task, "_fut_waiter", None)
    if waits_for is None or waits_for.done() or isinstance(waits_for, asyncio.Task):
        return False
    waits_for.set_exception(Unexpected(task.get_name()))
    return True
