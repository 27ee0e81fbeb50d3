"""Around what cannot be read everything else is read; and a header that is damaged is written anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.storage import page_checksums, salvage
from klinesync.storage.disk import BadPage
from klinesync.storage.salvage import MAX_FAILURES, around_errors, mend_header
from klinesync.storage.sqlite_file import SqliteFile
from klinesync.storage.tables import Row

KEYS = 1 << 12
PAGE_ROWS = 7


@given(st.sets(st.integers(0, KEYS - 1), max_size=300), st.sets(st.integers(0, 42), max_size=6))
def test_all_rows_of_other_pages_are_read_each_once(keys: set[int], bad: set[int]) -> None:
    rows = sorted(keys)
    pages = {key: at // PAGE_ROWS for at, key in enumerate(rows)}

    failed = False

    def select(low: int, high: int, descending: bool) -> Sequence[Row]:
        nonlocal failed
        found = [key for key in rows if low <= key < high]
        found = found[::-1] if descending else found
        if any(pages[key] in bad for key in found[:5]):
            failed = True
            raise BadPage("a page of the file fails its checksum")
        return [(key,) for key in found[: salvage.ROWS_AT_ONCE]]

    told: list[Exception] = []
    found = [row[0] for row in around_errors(select, 0, KEYS, 1, told.append)]
    assert len(found) == len(set(found))
    sound = {key for key in rows if pages[key] not in bad}
    # A read of several rows fails as a whole; single rows are found by halving, as long as they lie apart.
    assert set(found) <= set(rows)
    assert sound <= set(found)
    assert len(told) == failed, "told once"


def test_a_table_that_cannot_be_read_at_all_takes_a_bounded_number_of_reads() -> None:
    reads = 0

    def select(low: int, high: int, descending: bool) -> Sequence[Row]:
        nonlocal reads
        reads += 1
        raise BadPage("a page of the file fails its checksum")

    assert list(around_errors(select, 0, 1 << 60, 1, lambda _: None)) == []
    assert reads <= MAX_FAILURES + 1


@pytest.mark.parametrize("at", [0, 5, 16, 18, 20, 21, 44, 56, 60, 68, 92])
def test_any_byte_of_the_header_is_mended(tmp_path: Path, at: int) -> None:
    path = tmp_path / "store.sqlite"
    file = SqliteFile(path)
    file.open()
    file.close()
    assert not mend_header(path)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    assert mend_header(path)
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM series").get == 0
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()
    assert page_checksums.is_checked(path)
