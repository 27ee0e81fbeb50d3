"""EventStream: an answer of server-sent events, for as long as there are some and the client is there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Generic, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Event = TypeVar("Event")


class EventStream(StreamingResponse, Generic[Event]):
    """Server-sent events.

    events: what is told; closed at the end.
    text: one event as it is sent.
    place: takes one of the places for such streams; raises `RateLimited` where there is none, before the first byte.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        text: Callable[[Event], bytes],
        place: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._events = events
        self._text = text
        self._place = place
        super().__init__(self._texts(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry the events until they end or the client is gone. Raises `RateLimited`."""
        with self._place():
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)

    async def _texts(self) -> AsyncGenerator[bytes, None]:
        async for event in self._events:
            yield self._text(event)


def described(*events: str, id_is: str) -> dict[str, object]:
    """Such an answer for OpenAPI: the names of its events, and what their `id` is; `data` is JSON."""
    schema = {
        "type": "object",
        "properties": {
            "event": {"enum": list(events)},
            "id": {"type": "string", "description": f"`{id_is}`"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
    }
    return {"content": {"text/event-stream": {"schema": schema}}, "description": "server-sent events"}
