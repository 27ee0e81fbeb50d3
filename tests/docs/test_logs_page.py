"""Every log line of the service has an event of the list, and the page of logs has all events."""

from __future__ import annotations

import ast
import re
from typing import get_args

import logs_page

from klinesync.runtime.log_events import LogEvent

EVENTS = frozenset(get_args(LogEvent))


def test_every_line_has_an_event_of_the_list() -> None:
    lines = list(logs_page.lines())
    assert [line for line in lines if line.event not in EVENTS] == []
    assert len(lines) > 80


def test_every_event_is_logged_somewhere_and_has_a_meaning() -> None:
    assert {line.event for line in logs_page.lines()} >= EVENTS
    assert set(logs_page.MEANINGS) == EVENTS


def test_the_names_of_events_and_fields_have_one_form() -> None:
    for event in EVENTS:
        assert logs_page.EVENT.fullmatch(event), event
    for line in logs_page.lines():
        for field in line.fields:
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", field), line


def test_nothing_logs_past_the_events() -> None:
    for path in logs_page.SRC.rglob("*.py"):
        place = path.relative_to(logs_page.SRC)
        if place.parts[0] in logs_page.OTHER_PROGRAMS:
            continue
        made = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Assign) and "getLogger(__name__)" in ast.unparse(node.value)
        ]
        assert made == [], place
