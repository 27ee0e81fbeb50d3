"""EventStream: an answer of server-sent events, until the events end or the client disconnects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Generic, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Event = TypeVar("Event")


class EventStream(StreamingResponse, Generic[Event]):
    """Server-sent events.

    events: the events; closed at the end.
    text: encodes an event.
    place: takes one of the limited places for streams; raises `RateLimited` when all are taken.
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
        """Send the events until they end or the client disconnects. Raises `RateLimited` before the first byte."""
        with self._place():
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)

    async def _texts(self) -> AsyncGenerator[bytes, None]:
        async for event in self._events:
            yield self._text(event)


def described(*events: str, id_is: str) -> dict[str, object]:
    """The description of such an answer for OpenAPI: the names of its events; `id_is`: the field that is their `id`."""
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
