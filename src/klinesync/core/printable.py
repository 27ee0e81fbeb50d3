"""The one place that escapes control characters.

Text from outside (file names, cells of files, messages of an exchange) is escaped here before it is printed, logged or
sent, so that it can forge no line and send no control sequence to a terminal. Every log record and the message of every
`KlinesyncError` are escaped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

# Longest part of a text from outside that a sentence shows, in characters.
MAX_SHOWN_CHARS = 100


def printable(text: str) -> str:
    """The text on one line, with unprintable characters escaped as in a Python literal: control characters
    (`\\x1b`, `\\n`), marks that turn the direction of writing (`\\u202e`), bytes of file names that are no UTF-8
    (`\\udcff`). Escaping twice changes nothing."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def is_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. A file name may have other bytes, which Python decodes to surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def shown(text: str, most: int = MAX_SHOWN_CHARS) -> str:
    """A text from outside as part of a sentence: in quotes, printable, cut to `most` characters."""
    cut = text if len(text) <= most else text[:most] + "…"
    return f"'{printable(cut)}'"


def printable_values(values: Mapping[str, object]) -> dict[str, object]:
    """The same fields of an event, each text in them printable, also texts in lists and mappings."""
    return {printable(name): _printable_value(value) for name, value in values.items()}


def _printable_value(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): _printable_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable_value(item) for item in value]
    return value


def _shown(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) == "Zs":  # spaces of all widths are no danger
        return char
    return char.encode("unicode_escape").decode("ascii")
