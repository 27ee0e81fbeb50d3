"""The reference pages match the code: everything in the code is on its page, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import errors_page
import metrics_page
import msgspec
import pytest
import reference
import routes_table
import socket_tables

from klinesync.core.errors import (
    BadCandle,
    CannotListen,
    DerivedSeries,
    KlinesyncError,
    Rejected,
    StoreError,
    UnknownSeries,
    UpstreamError,
)
from klinesync.ingest.jobs import NoCapacity
from klinesync.market.error_codes import FrontDoorCode, http_status
from klinesync.market_data.event_streams import RateLimited
from klinesync.market_data.factor_services import LedgerOutOfSync
from klinesync.market_data.ws_services import TooManySubscriptions
from klinesync.runtime.metrics import METRICS
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.sqlite_file import StoreReplaced
from klinesync.ws.messages import Pong, ServerMessage
from klinesync.ws.protocol import BadMessage

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/klinesync").rglob("*.py"))
WEBSOCKET_PAGE = ROOT / "docs/reference/websocket.md"
# The error classes whose code clients see: in HTTP answers, and in messages.
SEEN_OVER_HTTP = (
    Rejected, BadCandle, DerivedSeries, RateLimited, StoreDamaged, StoreError, StoreReplaced, UnknownSeries,
    UpstreamError,
)  # fmt: skip
SEEN_IN_MESSAGES = (
    BadMessage, NoCapacity, RateLimited, StoreDamaged, StoreError, StoreReplaced, TooManySubscriptions, UnknownSeries,
)  # fmt: skip


@pytest.mark.parametrize("path", reference.PAGES, ids=lambda path: path.name)
def test_the_page_says_what_the_code_has(path: Path) -> None:
    assert path.read_text() == reference.PAGES[path](), "run `make reference`"


def test_every_code_of_an_http_error_is_on_the_page_and_no_other() -> None:
    out_of_sync = {LedgerOutOfSync(part).code for part in ("", "factor", "overlay")}
    seen = {error.code for error in SEEN_OVER_HTTP}
    assert {code for _, code in errors_page.HTTP} == set(get_args(FrontDoorCode)) | seen | out_of_sync


def test_every_code_of_the_front_door_is_made_somewhere() -> None:
    made = {text for path in SOURCES if path.parent.name == "market" for text in strings(path)}
    for code in get_args(FrontDoorCode):
        assert code in made, code


@pytest.mark.parametrize("error", SEEN_OVER_HTTP)
def test_the_status_of_an_error_class_is_the_one_on_the_page(error: type[KlinesyncError]) -> None:
    assert (http_status(error), error.code) in errors_page.HTTP


def test_an_error_that_no_request_should_meet_is_a_defect() -> None:
    assert http_status(CannotListen) is None


async def test_the_codes_of_each_route_are_on_the_page_of_errors(tmp_path: Path) -> None:
    found = await routes_table.document(tmp_path / "store.sqlite")
    told = set()
    for methods in routes_table._object(found["paths"]).values():
        for operation in routes_table._object(methods).values():
            for status, answer in routes_table._object(routes_table._object(operation)["responses"]).items():
                description = str(routes_table._object(answer).get("description", ""))
                told |= {(int(status), code) for code in re.findall(r"`([a-z_:]+)`", description) if status >= "400"}
    assert told <= set(errors_page.HTTP)
    assert set(errors_page.HTTP) - told == {
        (400, "bad_request"), (405, "method_not_allowed"), (408, "too_slow"), (414, "too_large"), (431, "too_large"),
        (500, "internal"), (503, "busy"), (503, "shutting_down"), (503, "too_many_connections"),
    }, "the page of routes says that any route may answer these"  # fmt: skip


def test_every_code_of_an_error_message_is_on_the_page_and_no_other() -> None:
    assert set(errors_page.WEBSOCKET) == {error.code for error in SEEN_IN_MESSAGES}


def test_every_event_has_a_meaning_and_is_sent_somewhere() -> None:
    assert set(socket_tables.EVENTS) == set(socket_tables.events())
    sent = {text for path in SOURCES for text in strings(path) if path.name != "messages.py"}
    for event in socket_tables.events():
        assert event in sent or event.startswith("stream."), event


def test_every_message_of_the_service_has_a_sample_of_its_exact_shape() -> None:
    (sample,) = re.findall(r"```json\n(.*?)```", WEBSOCKET_PAGE.read_text(), re.DOTALL)
    shown = set()
    for line in sample.splitlines():
        message = msgspec.json.decode(line, type=ServerMessage)
        assert msgspec.json.decode(line).keys() <= msgspec.to_builtins(message).keys(), line
        shown.add(type(message))
    assert shown == set(get_args(ServerMessage)) - {Pong}, "a pong has no fields"


def test_every_label_of_a_metric_is_explained() -> None:
    assert set(metrics_page.LABELS) == {label for metric in METRICS for label in metric.labels}


def test_every_metric_is_read_somewhere() -> None:
    read = {text for path in SOURCES for text in strings(path) if path.name != "metrics.py"}
    assert {metric.name for metric in METRICS} <= read
    assert {name for name in read if re.fullmatch(r"klinesync_[a-z_]+", name)} <= {metric.name for metric in METRICS}


def strings(path: Path) -> Iterator[str]:
    """The texts in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
