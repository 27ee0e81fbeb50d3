"""Waiting for a condition, a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Nothing here takes longer on a loaded machine.
PATIENCE_S = 60.0
POLL_S = 0.005


async def until(
    holds: Callable[[], bool], what: str = "the condition", patience_s: float = PATIENCE_S, poll_s: float = POLL_S
) -> None:
    """Wait until `holds`, which is asked every `poll_s`; fails with `what` after `patience_s` seconds."""
    try:
        async with asyncio.timeout(patience_s):
            while not holds():
                await asyncio.sleep(poll_s)
    except TimeoutError:
        raise AssertionError(f"not within {patience_s:g} s: {what}") from None
