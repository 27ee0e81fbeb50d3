"""Strict JSON bodies: Python's own reader accepts NaN, Infinity and duplicate keys."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from klinesync.core.decoding import Undecodable, decode_json


class StrictJsonRequest(Request):
    """A request whose body is read strictly."""

    async def json(self) -> object:
        """The body's value. Raises 422 for malformed JSON."""
        try:
            return decode_json(await self.body(), object)
        except Undecodable as error:
            raise HTTPException(422, f"body: {error}") from None


class StrictJsonRoute(APIRoute):
    """A route whose body is strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """The route's handler, with the strict reader."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictJsonRequest(request.scope, request.receive))

        return handle_strictly
