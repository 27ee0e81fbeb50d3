"""Bodies of requests are read strictly; long ones are validated off the event loop."""

from __future__ import annotations

import json
import threading
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

from klinesync.market.strict_json import INLINE_BYTES, StrictJsonRoute

THREADS: list[int] = []


def noted(value: int) -> int:
    """The value; notes the thread that validates it."""
    THREADS.append(threading.get_ident())
    return value


class Numbers(BaseModel):
    numbers: Annotated[list[Annotated[int, Field(ge=0), AfterValidator(noted)]], Field(min_length=1)]
    text: str = ""


@pytest.fixture
def app() -> FastAPI:
    """An application that answers with the sum of the numbers, or with the place of the first invalid value."""
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/sum")
    async def add(body: Numbers) -> int:
        return sum(body.numbers)

    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse([list(item["loc"]) for item in error.errors()], 422)

    application = FastAPI()
    application.include_router(router)
    application.add_exception_handler(RequestValidationError, refused)
    return application


async def post(app: FastAPI, body: object, *, long: bool) -> tuple[int, object]:
    """The status and the answer."""
    text = body if isinstance(body, str) else json.dumps(body)
    if long:
        text += " " * INLINE_BYTES
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/sum", content=text, headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("long", [False, True])
async def test_a_long_body_is_validated_in_another_thread(app: FastAPI, long: bool) -> None:
    THREADS.clear()
    assert await post(app, {"numbers": [1, 2, 3]}, long=long) == (200, 6)
    assert len(THREADS) == 3, "once"
    assert (threading.get_ident() not in THREADS) is long


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"numbers": [1, -2, "x"]}, [["body", "numbers", 1], ["body", "numbers", 2]]),
        ({"numbers": []}, [["body", "numbers"]]),
        ({}, [["body", "numbers"]]),
        ([1], [["body"]]),
    ],
)
async def test_an_invalid_body_names_the_same_places_whatever_its_length(
    app: FastAPI, body: object, places: object, long: bool
) -> None:
    assert await post(app, body, long=long) == (422, places)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("text", ['{"numbers": [NaN]}', '{"numbers": [1]', "[1, 2"])
async def test_malformed_json_is_refused(app: FastAPI, text: str, long: bool) -> None:
    status, answer = await post(app, text, long=long)
    assert status == 422
    assert isinstance(answer, dict)
    assert str(answer["detail"]).startswith("body: ")
