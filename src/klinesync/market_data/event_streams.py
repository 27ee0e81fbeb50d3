"""EventStreams: limits the open event streams of a kind, and ends them when the service stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from klinesync.core.errors import Rejected


class RateLimited(Rejected):
    """Too many requests of a kind. `retry_after_s`: seconds until a retry may succeed."""

    code = "rate_limited"

    def __init__(self, what: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what)


class EventStreams:
    """The open event streams of a kind.

    kind: noun for the sentence of a refusal.
    most: most open streams.
    retry_after_s: seconds after which a refused client may retry.
    """

    def __init__(self, kind: str, most: int, retry_after_s: float) -> None:
        self._kind = kind
        self.most = most
        self._retry_after_s = retry_after_s
        self._open = 0
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the service stops."""
        return self._ended.is_set()

    def end(self) -> None:
        """End every stream, because the service stops."""
        self._ended.set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for a stream. Raises `RateLimited` when all are taken."""
        if self._open >= self.most:
            raise RateLimited(f"{self.most} streams of {self._kind} are open, which is the most", self._retry_after_s)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def pause(self, longest_s: float) -> None:
        """Sleep for `longest_s` seconds, or until the streams end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._ended.wait()
