"""The OpenAPI document against a running service: every answer to any request is a documented one.

Requests are drawn from the document, valid and invalid ones, the same in every run.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from klinesync.sim.server import SimConfig, SimServer
from support.running_service import running_service
from support.thorough import examples

TOKEN = "a-token-of-some-length"
BTC = "binance:spot:BTC/USDT:1m"
OPERATIONS = 24
# Endless answers, which have tests of their own.
ENDLESS = ("/api/market/status/stream",)
EXAMPLES = examples(10)
EXAMPLES_WITH_TOKEN = examples(3)
TIMEOUT_S = 30.0

Case = schemathesis.Case[Any]
Operation = schemathesis.APIOperation[Any, Any, Any, Any]


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "token"])
def token(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


@pytest.fixture(scope="module")
def service_url(token: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with all its routes that follows a simulated exchange; in a thread of its own, since the requests are
    made by a library that blocks."""
    started: Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    flags = {"whitelist": BTC, "enable_debug_api": "on"} | ({} if token is None else {"api_token": token})

    async def serve(store: Path) -> None:
        stop = asyncio.Event()
        async with (
            SimServer(SimConfig(speed=60, symbols=2)) as exchange,
            running_service(store, exchange, **flags) as service,
        ):
            started.put((service.url, asyncio.get_running_loop(), stop))
            await stop.wait()

    store = tmp_path_factory.mktemp("schemathesis") / "store.sqlite"
    thread = threading.Thread(target=lambda: asyncio.run(serve(store)), name="service")
    thread.start()
    url, loop, stop = started.get(timeout=TIMEOUT_S)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@pytest.fixture(scope="module")
def document(service_url: str) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{service_url}/openapi.json", timeout=TIMEOUT_S)


def test_every_answer_is_documented(document: BaseSchema, token: str | None, subtests: pytest.Subtests) -> None:
    answered: dict[str, set[int]] = defaultdict(set)
    found = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    operations = [operation for operation in found if operation.path not in ENDLESS]
    assert len(found) == len(operations) + len(ENDLESS)
    assert len(operations) == OPERATIONS
    for operation in operations:
        with subtests.test(operation.label):
            hold_against_the_document(operation, token, answered[operation.label])
    if token is None:
        for label, statuses in answered.items():
            assert 200 in statuses, f"{label} was never asked for anything that is there"


def hold_against_the_document(operation: Operation, token: str | None, answered: set[int]) -> None:
    """Send generated requests of one operation, valid and invalid ones."""
    # A request that the document allows may still be refused with a sentence: the document cannot express every rule.
    excluded: list[CheckFunction] = [positive_data_acceptance]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    modes = [GenerationMode.POSITIVE]
    if {"parameters", "requestBody"} & set(operation.definition.raw):
        modes.append(GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES if token is None else EXAMPLES_WITH_TOKEN,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases=st.tuples(*(operation.as_strategy(mode) for mode in modes)))
    def send(cases: tuple[Case, ...]) -> None:
        # A drawn name is never a series.
        for part in (cases[0].query, cases[0].body):
            if isinstance(part, dict) and "series_id" in part:
                part["series_id"] = BTC
        for case in cases:
            if operation.path.endswith("/stream") and isinstance(case.query.get("max_events", 2), int):
                case.query["max_events"] = 1  # an endless stream otherwise
            answer = case.call(headers=headers, timeout=TIMEOUT_S)
            # A body that is too large is refused before it is parsed; schemathesis' check does not know that status.
            too_large = [negative_data_rejection] if answer.status_code == 413 else []
            case.validate_response(answer, headers=headers, excluded_checks=[*excluded, *too_large])
            answered.add(answer.status_code)
            if answer.status_code >= 400:
                described = operation.definition.raw["responses"][str(answer.status_code)]["description"]
                assert f"`{answer.json()['code']}`" in described, "the document lists the codes of each status"

    send()
