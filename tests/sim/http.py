"""Answers of HTTP as values, for doubles of exchanges under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

from klinesync.runtime.http_client import Body


class Whole:
    """The body of an answer, already complete."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), n):
            yield self._body[start : start + n]


class Answer:
    """One answer, or an error in its place.

    trouble: is raised in place of the answer.
    wait_s: how long the answer takes, in seconds.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        trouble: Exception | None = None,
        wait_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers or {}
        self.content: Body = Whole(body)
        self._trouble = trouble
        self._wait_s = wait_s

    async def __aenter__(self) -> Answer:
        await asyncio.sleep(self._wait_s)
        if self._trouble is not None:
            raise self._trouble
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""
