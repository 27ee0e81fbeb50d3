"""A store with everything that a store has, ways to damage it, and the exchange that heals it, for tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import sin
from pathlib import Path
from random import Random

import apsw

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.factor.graph import FactorGraph
from klinesync.factor.plugin import FactorSettings
from klinesync.factor.registry import load_factors
from klinesync.market_data.store_healer import Sources, StoreHealer
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.registry import load_overlays
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore
from klinesync.storage.sqlite import InThreadSqliteDatabase

MINUTE = Timeframe.parse("1m")
SERIES = tuple(SeriesId.parse(f"binance:spot:{name}/USDT:1m") for name in ("BTC", "ETH"))
TARGETS = tuple(map(Timeframe.parse, ("5m", "1h")))
START = 1_700_006_400 // 86400 * 86400
COUNT = 1000
PAGE_BYTES = 4096
STEPS = 20


def candle(number: int, more: float = 0.0) -> Candle:
    """No two alike, with pivots."""
    noise = [abs(sin(number + 0.1 * column + more)) for column in range(5)]
    high = 2.0 + number / 1000 + abs(number % 60 - 30) + more + noise[0]
    prices = (1.0 + noise[1], high, 0.5 + noise[2] / 2, 1.5 + noise[3] / 2, noise[4])
    return Candle(START + number * 60, *prices, noise[0], number % 100, noise[4] / 2, None)


# By series, the candles that the exchange has.
EXCHANGE = {series: [candle(number, 0.25 * at) for number in range(COUNT)] for at, series in enumerate(SERIES)}


async def no_pause() -> None:
    """Transactions follow each other at once."""


def ledger_step() -> LedgerStep:
    factors = FactorGraph(load_factors(FactorSettings(pivot_window_major=5, pivot_window_minor=2)))
    return LedgerStep(factors, OverlayGraph(load_overlays(), factors.names))


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a service that write to a store."""

    database: InThreadSqliteDatabase
    pipeline: IngestPipeline
    derived: DerivedStep
    ledger: LedgerStep


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Parts]:
    """The store, with a pipeline that runs."""
    derived, ledger = DerivedStep(MINUTE, TARGETS), ledger_step()
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        pipeline = IngestPipeline(database, derived, ledger, lambda _: None, lambda: 2e9)
        task = asyncio.create_task(pipeline.run())
        try:
            yield Parts(database, pipeline, derived, ledger)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def make(path: Path) -> None:
    """The store of what the exchange has."""
    async with opened(path) as parts:
        for series, candles in EXCHANGE.items():
            for at in range(0, COUNT, 300):
                await parts.pipeline.submit(series, candles[at : at + 300], "rest")
        await ledgers_done(parts)


async def ledgers_done(parts: Parts) -> None:
    """Wait until factors and overlays have come to the heads."""
    async with asyncio.timeout(60):
        for _ in range(STEPS):  # of the pipeline's look for ledgers that lag
            await asyncio.sleep(0)
        while parts.ledger.due(float("inf")) is not None:
            await asyncio.sleep(0)


def content(store: CandleStore) -> dict[str, object]:
    """Candles, gaps, and the results of factors and overlays, by series."""
    found: dict[str, object] = {}
    for series in store.series():
        events, drawings = store.ledger.events(series, 0, MAX_TIME), store.ledger.drawings(series, 0, MAX_TIME)
        ledger = store.ledger.get(series)
        heads = None if ledger is None else (ledger.factor_head, ledger.overlay_head)
        found[str(series)] = store.between(series, 0, MAX_TIME), store.gaps(series), events, drawings, heads
    return found


async def heal(parts: Parts) -> None:
    """What the service does of its own: the healer, and the exchange behind it, until nothing is missing."""
    asked: list[SeriesId] = []
    healer = StoreHealer(parts.database, parts.pipeline, Sources(parts.derived.base_of, lambda _: True))
    healer.bind((asked.append,))
    await healer._resume()  # in vain where the quarantine itself is damaged
    await healer.heal()
    for series in SERIES:  # what the start asks the exchange for: gaps, and the tail
        stored, ledger = await parts.database.read(lambda store, of=series: (store.span(of), store.gaps(of)))  # type: ignore[misc]
        spans = [gap.span for gap in ledger]
        spans.append(Span(START if stored is None else stored.end, START + COUNT * 60))
        for span in spans:
            missing = [one for one in EXCHANGE[series] if span.holds(one.time)]
            if missing:
                await parts.pipeline.submit(series, missing, "rest")
        await parts.pipeline.refresh_series(series)
    healer._again_at_s.clear()
    await healer.heal()
    await ledgers_done(parts)


# --- damage


def spoiled(path: Path, rng: Random) -> str:
    """Damage the closed store in one place. Returns what was done, in words."""
    return rng.choice((flip_bit, flip_bit, flip_bit, nonsense_page, remove_chunk, spoil_chunk))(path, rng)


def flip_bit(path: Path, rng: Random) -> str:
    """Any bit of the file."""
    raw = bytearray(path.read_bytes())
    bit = rng.randrange(len(raw) * 8)
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    return f"bit {bit % 8} of byte {bit // 8 % PAGE_BYTES} of page {bit // 8 // PAGE_BYTES + 1} flipped"


def nonsense_page(path: Path, rng: Random) -> str:
    """A page of random bytes."""
    raw = bytearray(path.read_bytes())
    page = rng.randrange(len(raw) // PAGE_BYTES)
    raw[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = rng.randbytes(PAGE_BYTES)
    path.write_bytes(raw)
    return f"page {page + 1} is nonsense"


def remove_chunk(path: Path, rng: Random) -> str:
    """A row of packed candles is gone."""
    return _change_chunk(path, rng, lambda connection, chunk: _execute(connection, "DELETE FROM candle_chunk", chunk))


def spoil_chunk(path: Path, rng: Random) -> str:
    """A bit of packed candles, in a page that is as it was written: a fault of the machine's memory."""

    def flip(connection: apsw.Connection, chunk: int) -> None:
        found = connection.execute("SELECT candles FROM candle_chunk WHERE chunk_id = ?", (chunk,)).get
        assert isinstance(found, bytes)
        raw = bytearray(found)
        bit = rng.randrange(len(raw) * 8)
        raw[bit // 8] ^= 1 << bit % 8
        connection.execute("UPDATE candle_chunk SET candles = ? WHERE chunk_id = ?", (bytes(raw), chunk))

    return _change_chunk(path, rng, flip)


def _execute(connection: apsw.Connection, statement: str, chunk: int) -> None:
    connection.execute(f"{statement} WHERE chunk_id = ?", (chunk,))


def _change_chunk(path: Path, rng: Random, change: Callable[[apsw.Connection, int], None]) -> str:
    page_checksums.load()
    connection = apsw.Connection(str(path))
    chunks = [row[0] for row in connection.execute("SELECT chunk_id FROM candle_chunk")]
    chunk = rng.choice(chunks)
    assert isinstance(chunk, int)
    change(connection, chunk)
    connection.close()
    return f"chunk {chunk & 0xFFFFFFFF} of series {chunk >> 32} changed"


def copied(store: Path, folder: Path) -> Path:
    """A copy of a closed store."""
    path = folder / "store.sqlite"
    shutil.copyfile(store, path)
    return path
