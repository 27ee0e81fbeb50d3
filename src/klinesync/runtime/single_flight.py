"""SingleFlight: concurrent callers share one fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs one fetch at a time, in the task of the first caller; the others get its result or its error.

    When the first caller is cancelled, another waiting caller fetches.
    """

    def __init__(self) -> None:
        self._flight: asyncio.Future[Result] | None = None

    async def get(self, fetch: Callable[[], Awaitable[Result]]) -> Result:
        """The result of the fetch in flight, or of `fetch`. Raises the errors of the fetch."""
        while self._flight is not None:
            flight = self._flight
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result()
        flight = self._flight = asyncio.get_running_loop().create_future()
        try:
            result = await fetch()
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # the first caller raises the error; perhaps no other caller waits
            raise
        else:
            flight.set_result(result)
            return result
        finally:
            self._flight = None
            if not flight.get_loop().is_closed():  # otherwise the process ends, and no caller waits
                flight.cancel()  # no effect on a settled future; wakes the others after a cancellation
