"""Whatever rots of a store is told, is never served, and is healed with the exchange there: everything is equal again.

A bit is flipped anywhere in the file, a page is nonsense, a row of packed candles is gone or changed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import apsw
import pytest

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.market_data.verify import verify
from klinesync.market_data.verify_ledger import LedgerVerifier
from klinesync.storage import page_checksums
from klinesync.storage.repair import repair
from klinesync.storage.sqlite_reader import SqliteReader
from support.rotten_store import (
    EXCHANGE,
    MINUTE,
    SERIES,
    TARGETS,
    content,
    copied,
    heal,
    ledger_step,
    make,
    opened,
    spoiled,
)
from support.thorough import LONG

SEEDS = 200 if LONG else 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store."""
    path = tmp_path_factory.mktemp("sound") / "store.sqlite"
    asyncio.run(make(path))
    return path


@pytest.fixture(scope="module")
def expected(sound: Path) -> dict[str, object]:
    """What is in it."""
    with SqliteReader(sound) as store:
        return store.read(content)


def findings(path: Path) -> list[str]:
    """What `verify` finds, as it does without `--repair`; a store that cannot be opened is a finding too."""
    try:
        with SqliteReader(path) as store:
            found = store.file_problems()
            for audit in verify(store, MINUTE, TARGETS, ledger=LedgerVerifier(ledger_step(), ())):
                found += [f"{audit.series}: {kind}" for kind in audit.kinds]
            return found
    except StoreError as error:
        return [str(error)]


def served(path: Path) -> dict[str, list[Candle]]:
    """The candles that readers get, as far as the store can be read."""
    found: dict[str, list[Candle]] = {}
    try:
        with SqliteReader(path) as store:
            for series in store.read(lambda look: look.series()):
                try:
                    found[str(series)] = store.read(
                        lambda look, of=series: look.oldest(of, 10_000, since=-1, strict=False)  # type: ignore[misc]
                    )
                except StoreError:
                    found[str(series)] = []
    except StoreError:
        pass
    return found


def true_candles(expected: dict[str, object]) -> dict[str, set[Candle]]:
    return {name: set(parts[0]) for name, parts in expected.items()}  # type: ignore[index]


def test_a_sound_store_is_as_the_exchange_has_it(sound: Path, expected: dict[str, object]) -> None:
    assert findings(sound) == []
    for series in SERIES:
        assert true_candles(expected)[str(series)] == set(EXCHANGE[series])


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_what_rots_is_told_is_never_served_and_is_healed(
    sound: Path, expected: dict[str, object], seed: int, tmp_path: Path
) -> None:
    path = copied(sound, tmp_path)
    before = path.read_bytes()
    what = spoiled(path, Random(seed))
    assert path.read_bytes() != before
    true = true_candles(expected)

    told = findings(path)
    for name, candles in served(path).items():
        assert name in true, what
        assert set(candles) <= true[name], what
    assert told, f"nobody tells that {what}"

    # The service heals what it can without a stop; then the command does the rest, and the next start heals its holes.
    try:
        async with opened(path) as parts:
            for series in true:
                await parts.database.read(lambda store, of=series: read_all(store, of))  # type: ignore[misc]
            await heal(parts)
    except StoreError:
        pass  # it cannot start, or not write
    if findings(path):
        done = repair(path, 2_000_000_000)
        assert done.aside is not None, f"{what}: {told}"
        assert done.aside.exists()
        for name, candles in served(path).items():
            assert set(candles) <= true[name], what
        async with opened(path) as parts:
            await heal(parts)
    assert findings(path) == [], f"{what}: {told}"
    with SqliteReader(path) as store:
        assert store.read(content) == expected, what


def read_all(store: object, series: str) -> None:
    from klinesync.storage.candles import CandleStore

    assert isinstance(store, CandleStore)
    store.oldest(SeriesId.parse(series), MAX_TIME, since=-1, strict=False)


async def test_candles_that_are_gone_from_the_beginning_of_a_series_are_missed_and_healed(
    sound: Path, expected: dict[str, object], tmp_path: Path
) -> None:
    """Nothing lies before them, so that they leave no hole between stored candles."""
    path = copied(sound, tmp_path)
    page_checksums.load()
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM candle_chunk WHERE chunk_id = (SELECT min(chunk_id) FROM candle_chunk)")
    connection.close()
    assert f"{SERIES[0]}: hole_not_in_ledger" in findings(path)
    done = repair(path, 2_000_000_000)
    assert list(done.lost) == [SERIES[0]]
    async with opened(path) as parts:
        await heal(parts)
    assert findings(path) == []
    with SqliteReader(path) as store:
        assert store.read(content) == expected
