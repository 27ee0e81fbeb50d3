"""The generated parts of the documents, each between two markers. `python tests/docs/reference.py` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def with_part(text: str, name: str, part: str) -> str:
    """The text of a page with one generated part written anew.

    text: of the whole page, which has `<!-- NAME: begin -->` and `<!-- NAME: end -->` on lines of their own.
    name: of the part.
    part: what stands between the two lines.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    assert found, f"the page has no line {begin!r}"
    assert closed, f"the page has no line {end!r}"
    return before + begin + part + end + after


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; `|` in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def sentence(docstring: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    assert docstring, "everything that the reference shows has a docstring"
    text = " ".join(docstring.split())
    first, stop, _ = text.partition(". ")
    return first + "." if stop else text
