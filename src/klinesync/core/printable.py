"""The one place that escapes control characters.

Text from outside (file names, cells of files, what an exchange says) goes through here before it is printed, logged or
answered, so that it can forge no line and send nothing to a terminal.
"""

from __future__ import annotations

import unicodedata

# What is shown of a text from outside, in characters, where it is part of a sentence.
MAX_SHOWN_CHARS = 100


def printable(text: str) -> str:
    """The same text on one line, with what is not printable escaped as in a Python literal: control characters
    (`\\x1b`, `\\n`), marks that turn the direction of writing (`\\u202e`), bytes of file names that are no UTF-8
    (`\\udcff`). Escaping twice changes nothing."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def shown(text: str, most: int = MAX_SHOWN_CHARS) -> str:
    """A text from outside as a part of a sentence: in quotes, printable, at most `most` characters of it."""
    cut = text if len(text) <= most else text[:most] + "…"
    return f"'{printable(cut)}'"


def _shown(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) == "Zs":  # spaces of all widths are no danger
        return char
    return char.encode("unicode_escape").decode("ascii")
