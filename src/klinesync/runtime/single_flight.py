"""SingleFlight: concurrent callers share one fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class SingleFlight(Generic[Found]):
    """Runs one fetch at a time, in the task of the first caller; the others get its result or its error.

    When the first caller is cancelled, another waiting caller fetches.
    """

    def __init__(self) -> None:
        self._flight: asyncio.Future[Found] | None = None

    async def get(self, fetch: Callable[[], Awaitable[Found]]) -> Found:
        """The result of the fetch in flight, or of `fetch`. Raises the errors of the fetch."""
        while self._flight is not None:
            flight = self._flight
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result()
        flight = self._flight = asyncio.get_running_loop().create_future()
        try:
            found = await fetch()
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # it is the caller's; perhaps nobody else waits for it
            raise
        else:
            flight.set_result(found)
            return found
        finally:
            self._flight = None
            if not flight.get_loop().is_closed():  # else the process ends, and nobody waits any more
                flight.cancel()  # when it was not settled
