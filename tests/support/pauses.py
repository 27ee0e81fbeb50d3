"""Pauses of a database in the thread of the test, around each transaction."""

from __future__ import annotations

import asyncio


async def no_pause() -> None:
    """Nothing else runs."""


async def one_step() -> None:
    """Every other task that is ready takes a step."""
    await asyncio.sleep(0)
