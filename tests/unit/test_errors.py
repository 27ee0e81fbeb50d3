"""Rules for every error of the tree, whatever text from outside it contains."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import MAX_SENTENCE_CHARS, BadFlag, UpstreamError
from klinesync.core.printable import printable


@given(st.text(max_size=5 * MAX_SENTENCE_CHARS) | st.integers(0, 5 * MAX_SENTENCE_CHARS).map("[".__mul__))
def test_a_sentence_has_a_bounded_length_and_one_line(text: str) -> None:
    for error in (BadFlag(text, "it is not known"), UpstreamError(f"the exchange says: {text}")):
        sentence = str(error)
        assert len(sentence) <= MAX_SENTENCE_CHARS
        assert printable(sentence) == sentence


def test_a_sentence_that_is_too_long_keeps_its_beginning_and_what_is_wrong() -> None:
    sentence = str(BadFlag("x" * 10_000, "it is not known"))
    assert sentence.startswith("flag xxx")
    assert sentence.endswith("xxx: it is not known")
    assert len(sentence) == MAX_SENTENCE_CHARS
