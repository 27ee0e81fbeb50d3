"""Text from outside is shown on one line, without control characters that a terminal would execute."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadFlag, UpstreamError
from klinesync.core.printable import MAX_SHOWN_CHARS, printable, printable_values, shown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("BTC_USDT-1m.feather", "BTC_USDT-1m.feather"),
        ("Bücher/日本 語.csv", "Bücher/日本 語.csv"),
        ("a\nklinesync: done", "a\\nklinesync: done"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202efdp.csv", "\\u202efdp.csv"),
        ("line\u2028two", "line\\u2028two"),
        ("\udcff.csv", "\\udcff.csv"),
        ("a\u3000b\u00a0c", "a\u3000b\u00a0c"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped


@given(st.text(st.characters()))
def test_any_text_is_printed_on_one_line_and_escaped_once(text: str) -> None:
    safe = printable(text)
    assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in safe)
    assert len(safe.splitlines()) <= 1
    safe.encode()
    assert printable(safe) == safe


def test_of_a_long_text_the_beginning_is_shown() -> None:
    assert shown("x" * (MAX_SHOWN_CHARS + 1)) == "'" + "x" * MAX_SHOWN_CHARS + "…'"
    assert shown("a\tb") == "'a\\tb'"


def test_the_message_of_every_error_of_ours_is_printable() -> None:
    forged = "busy\n\x1b[31mERROR sold"
    assert str(UpstreamError(f"it answered 503: {forged}")) == "it answered 503: busy\\n\\x1b[31mERROR sold"
    assert str(BadFlag("port", forged)) == "flag port: busy\\n\\x1b[31mERROR sold"


def test_texts_in_the_fields_of_an_event_are_printable() -> None:
    facts = {"detail": "a\nb", "count": 3, "none": None, "names": ["x\x07"], "more": {"k\n": "\x1b"}}
    assert printable_values(facts) == {
        "detail": "a\\nb",
        "count": 3,
        "none": None,
        "names": ["x\\x07"],
        "more": {"k\\n": "\\x1b"},
    }
