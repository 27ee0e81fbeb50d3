"""Strict JSON bodies: Python's own reader accepts NaN, Infinity and duplicate keys. Long bodies are validated off the
event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from klinesync.core.decoding import Undecodable, decode_json

# Bodies of more bytes are validated in a thread: validating takes some 10 ms a megabyte.
INLINE_BYTES = 64 << 10


class StrictJsonRequest(Request):
    """A request whose body is read strictly.

    model: what the route takes; None: no model.
    invalid: why a long body is no valid `model`; None while that is not known.
    """

    model: type[BaseModel] | None = None
    invalid: RequestValidationError | None = None

    async def json(self) -> object:
        """The body's value; that of a long body as a valid `model`. Raises 422 for malformed JSON, and for a long body
        that is invalid."""
        body = await self.body()
        try:
            value = decode_json(body, object)
        except Undecodable as error:
            raise HTTPException(422, f"body: {error}") from None
        if self.model is None or len(body) <= INLINE_BYTES:
            return value  # FastAPI validates it
        try:
            return await asyncio.to_thread(self.model.model_validate, value)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            self.invalid = RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in errors])
            raise HTTPException(422) from None  # of all exceptions FastAPI hands on this one alone


class StrictJsonRoute(APIRoute):
    """A route whose body is strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """The route's handler, with the strict reader."""
        handle = super().get_route_handler()
        kind = None if self.body_field is None else self.body_field.field_info.annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None

        async def handle_strictly(request: Request) -> Response:
            strict = StrictJsonRequest(request.scope, request.receive)
            strict.model = model
            try:
                return await handle(strict)
            except HTTPException:
                if strict.invalid is not None:
                    raise strict.invalid from None
                raise

        return handle_strictly
