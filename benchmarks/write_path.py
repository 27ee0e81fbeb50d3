"""The cost of the write path, beside a bare database that gets the same rows in the same transactions.

    python benchmarks/write_path.py --series 1000

Bulk import, one live candle at a time behind a short and a long history, the minute's end of many series, the size of
the store and the start of a service on it. Derived candles are on (5m 15m 1h 4h 1d), and every commit is durable.
`ratio` is our time divided by the bare database's in the same run: the machine drifts, so only ratios are comparable.
With `--profile` only the minute's end is run, and the profile of the writer thread is printed.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import pstats
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import aiohttp
import apsw
from bench_output import parser_of, write_figures
from bench_table import Figure
from derived import FIRST, USUAL, minutes

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import DAY_S
from klinesync.market.parts_writing import ledger_step
from klinesync.market.settings import ledger_settings
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.flags import load_flags
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_file import CACHE_KIB, WAL_AUTOCHECKPOINT_PAGES

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
BULK_CANDLES = 130_000
HISTORY = 2000
SINGLES = 250  # in a round
MINUTES = 20  # the last of a day: what earlier closes read is in memory at midnight, as in a service
NIGHTS = 3

Rows = list[tuple[SeriesId, Candle]]


class Store:
    """An open store of ours, and the pipeline that writes to it. `committed`: the commits published since the last
    `rows`."""

    def __init__(
        self, pipeline: IngestPipeline, ledger: LedgerStep, database: SqliteDatabase, committed: list[Applied]
    ) -> None:
        self.pipeline = pipeline
        self.ledger = ledger
        self.database = database
        self.committed = committed

    def rows(self) -> Rows:
        """The committed rows, which are then forgotten."""
        rows = [(applied.series, candle) for applied in self.committed for candle in applied.candles]
        self.committed.clear()
        return rows

    async def offer(self, batch: Sequence[tuple[SeriesId, Candle]]) -> None:
        """Submit live candles together; returns when they are durable and published."""
        offered = [self.pipeline.offer(series, (candle,)) for series, candle in batch]
        await asyncio.gather(*(written for written in offered if written is not None))
        assert None not in offered, "there was room for all of them"

    async def caught_up(self) -> None:
        """Wait until no ledger lags."""
        while self.ledger.behind():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)

    async def warmed(self) -> None:
        """Wait until the first candles' state is in memory, as a few seconds after the start of a service."""
        while self.ledger.has_cold:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)

    async def packed(self) -> None:
        """Pack older rows, as a service does some seconds after a minute's end."""
        await self.database.write(lambda store: store.pack_rows(most=sys.maxsize))

    async def on_writer(self, work: Callable[[], object]) -> None:
        """Run `work` on the writer's thread."""
        await self.database.write(lambda _: work())


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    committed: list[Applied] = []
    async with SqliteDatabase(path) as database:
        ledger = ledger_step(ledger_settings(load_flags({})))
        pipeline = IngestPipeline(database, DerivedStep(BTC.timeframe, USUAL), ledger, committed.append, time.time)
        task = asyncio.create_task(pipeline.run())
        try:
            yield Store(pipeline, ledger, database, committed)
        finally:
            task.cancel()
            await asyncio.wait([task])


class Bare:
    """The bare database: the same table and pragmas, prepared rows, one insert statement."""

    def __init__(self, path: Path) -> None:
        self._connection = connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._numbers = {
            SeriesId.parse(str(name)): number
            for name, number in connection.execute("SELECT series_id, series_no FROM series")
        }

    def insert(self, transactions: Sequence[Rows]) -> float:
        """Seconds that these transactions take."""
        for series in {series for rows in transactions for series, _ in rows}.difference(self._numbers):
            self._connection.execute("INSERT INTO series (series_id) VALUES (?)", (str(series),))
            self._numbers[series] = self._connection.last_insert_rowid()
        ready = [[(self._numbers[series], *candle) for series, candle in rows] for rows in transactions]
        begin = time.perf_counter()
        for rows in ready:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(f"INSERT INTO candle VALUES (?{', ?' * len(Candle._fields)})", rows)
            self._connection.execute("COMMIT")
        return time.perf_counter() - begin

    def close(self) -> None:
        self._connection.close()


def size_of(path: Path) -> int:
    """Bytes of a closed store."""
    return path.stat().st_size


def copy_for_bare(path: Path) -> Bare:
    """A bare database that starts as a copy of the closed store at `path`."""
    twin = path.with_suffix(".bare")
    shutil.copy(path, twin)
    return Bare(twin)


def report(name: str, ours: str, bare: str, ratio: float | None) -> None:
    print(f"{name:<80} {ours:>16} {bare:>16} {'' if ratio is None else f'{ratio:.1f}':>7}", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f} ms"


# --- what is measured


async def bulk(path: Path, candles: Sequence[Candle]) -> float:
    """Import into a new store at `path`; the base and derived candles a second that factors and overlays advance."""
    batches = [candles[at : at + 20_000] for at in range(0, len(candles), 20_000)]
    transactions: list[Rows] = []
    took_s = 0.0
    async with open_store(path) as store:
        for batch in batches:
            begin = time.perf_counter()
            await store.pipeline.submit(BTC, batch, "file")
            took_s += time.perf_counter() - begin
            transactions.append(store.rows())
        begin = time.perf_counter()
        await store.caught_up()
        caught_up_s = time.perf_counter() - begin
        rows = sum(map(len, transactions))
    async with SqliteDatabase(path.with_suffix(".bare")):
        pass  # the schema
    bare = Bare(path.with_suffix(".bare"))
    bare_s = bare.insert(transactions)
    bare.close()
    count = len(candles)
    report(
        f"bulk, {count:,} candles, 20,000 a transaction",
        f"{count / took_s / 1e3:,.0f} k/s",
        f"{count / bare_s / 1e3:,.0f} k/s",
        took_s / bare_s,
    )
    report(
        f"... factors and overlays, {rows:,} base and derived candles", f"{rows / caught_up_s / 1e3:,.0f} k/s", "", None
    )
    return rows / caught_up_s


async def one_by_one(
    folder: Path, candles: Sequence[Candle], history: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of a live candle in each round: ours, and of the bare database."""
    path = folder / f"history_{history}.sqlite"
    async with open_store(path) as store:
        await store.pipeline.submit(BTC, candles[:history], "file")
        await store.caught_up()
    bare = copy_for_bare(path)
    ours_s, bare_s, cpu_s = [], [], []
    async with open_store(path) as store:
        for at in range(history, history + rounds * SINGLES, SINGLES):
            transactions: list[Rows] = []
            begin, cpu = time.perf_counter(), time.process_time()
            for candle in candles[at : at + SINGLES]:
                await store.offer([(BTC, candle)])
                transactions.append(store.rows())
            ours_s.append((time.perf_counter() - begin) / SINGLES)
            cpu_s.append((time.process_time() - cpu) / SINGLES)
            bare_s.append(bare.insert(transactions) / SINGLES)
    bare.close()
    ours, floor = median(ours_s), median(bare_s)
    report(f"one live candle, behind {history:,} (CPU {ms(median(cpu_s))})", ms(ours), ms(floor), ours / floor)
    return ours_s, bare_s


async def fill(path: Path, candles: Sequence[Candle], names: Sequence[SeriesId]) -> None:
    """Make the store that each night begins with.

    candles: of a day, of which the last minutes are left out.
    """
    count = len(names)
    async with open_store(path) as store:
        begin = time.perf_counter()
        await asyncio.gather(
            *(store.pipeline.submit(series, candles[-HISTORY - MINUTES : -MINUTES], "file") for series in names)
        )
        took_s = time.perf_counter() - begin
        rows = len(store.rows())
        await store.caught_up()
    base = count * HISTORY
    report(f"filling {count:,} series with {HISTORY:,} candles each", f"{base / took_s / 1e3:,.0f} k/s", "", None)
    size = size_of(path)
    report("on disk, per candle stored (base and derived)", f"{size / rows:,.1f} B", "", None)
    report("on disk, per base candle", f"{size / base:,.1f} B", "", None)


Lap = tuple[float, float, float]


async def night(
    path: Path, candles: Sequence[Candle], names: Sequence[SeriesId], laps: dict[str, list[Lap]], profile: bool
) -> float:
    """Write the last minutes of a day into a copy of the store; the seconds until states were in memory.

    laps: by closing timeframes, to which seconds, CPU seconds and seconds of the bare database are added.
    """
    count = len(names)
    bare = copy_for_bare(path)
    async with open_store(Path(shutil.copy(path, path.with_suffix(".night")))) as store:
        begin = time.perf_counter()
        await asyncio.sleep(0.1)
        await store.warmed()
        warm_s = time.perf_counter() - begin
        report(f"states of {count * (1 + len(USUAL)):,} series in memory after opening", ms(warm_s), "", None)
        profiler = cProfile.Profile()
        if profile:
            await store.on_writer(profiler.enable)
        for candle in candles[-MINUTES:]:
            closing = [target.code for target in USUAL if (candle.time + 60) % target.seconds == 0]
            gc.collect()
            begin, cpu = time.perf_counter(), time.process_time()
            await store.offer([(series, candle) for series in names])
            took_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
            written = store.rows()
            assert len(written) == count * (1 + len(closing))
            await store.packed()
            laps.setdefault("closing " + " ".join(["1m", *closing]), []).append((took_s, cpu_s, bare.insert([written])))
        if profile:
            await store.on_writer(profiler.disable)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(20)
    bare.close()
    return warm_s


async def minutes_ends(
    path: Path, candles: Sequence[Candle], names: Sequence[SeriesId], nights: int, profile: bool
) -> list[Figure]:
    """The last minutes of a day, several times; `path` becomes the store before them."""
    await fill(path, candles, names)
    count = len(names)
    laps: dict[str, list[Lap]] = {}
    warm_s = [await night(path, candles, names, laps, profile) for _ in range(nights)]
    for closing_names, columns in laps.items():
        ours, cpu_s, floor = (median(column) for column in zip(*columns, strict=True))
        name = f"minute's end of {count:,} series, {closing_names} (CPU {cpu_s * 1e3:,.0f} ms)"
        report(name, ms(ours), ms(floor), ours / floor)
    all_close = " ".join(["closing 1m", *(target.code for target in USUAL)])
    return [
        Figure("start.warm", warm_s),
        *(
            Figure(row, [1e3 * ours for ours, _, _ in laps[key]], [1e3 * floor for *_, floor in laps[key]])
            for row, key in (("write.minute", "closing 1m"), ("write.midnight", all_close))
        ),
    ]


async def start(path: Path, series: Sequence[SeriesId]) -> float:
    """Seconds from the start of the process until it is ready. Its exchange is unreachable."""
    listed = path.with_suffix(".json")
    listed.write_text(json.dumps({"series_ids": [str(one) for one in series]}))
    nowhere = [
        f"--binance-{market}-{kind}-url={scheme}://127.0.0.1:9"
        for market in ("spot", "futures")
        for kind, scheme in (("rest", "http"), ("ws", "ws"))
    ]
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "klinesync", "serve", "--port=0", f"--database-url=sqlite:///{path}",
        f"--whitelist-path={listed}", *nowhere,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().split()[-1].rstrip("/")
        async with aiohttp.ClientSession() as session:
            ready = False
            while not ready:
                async with session.get(f"{url}/readyz") as answer:
                    ready = answer.status == 200
        return time.perf_counter() - begin
    finally:
        process.terminate()
        await process.wait()


async def run(count: int, rounds: int, profile: bool) -> list[Figure]:
    candles = minutes(BULK_CANDLES * 60 // DAY_S + 1, 0.0)[:BULK_CANDLES]
    day = minutes(1 + HISTORY * 60 // DAY_S + 1, 0.0)
    assert (FIRST + len(day) * 60) % DAY_S == 0
    with TemporaryDirectory(prefix="klinesync-bench-") as name:
        folder = Path(name)
        print(f"{'':<80} {'klinesync':>16} {'bare database':>16} {'ratio':>7}")
        store = folder / "minutes.sqlite"
        names = [SeriesId.parse(f"binance:spot:COIN{number}/USDT:1m") for number in range(count)]
        if profile:
            return await minutes_ends(store, day, names, 1, profile)
        advanced = [await bulk(folder / f"bulk_{number}.sqlite", candles) for number in range(rounds)]
        short, short_bare = await one_by_one(folder, candles, 1_000, 2 * rounds + 2)
        long, long_bare = await one_by_one(folder, candles, 100_000, 2 * rounds + 2)
        report("... behind 100,000 candles, of that behind 1,000", f"{median(long) / median(short):.2f}", "", None)
        ends = await minutes_ends(store, day, names, rounds, profile)
        empty = [await start(folder / "empty.sqlite", [BTC]) for _ in range(rounds)]
        report("start of a service on an empty store, to ready", f"{median(empty):.2f} s", "", None)
        full = [await start(store, names) for _ in range(rounds)]
        report(f"... on {count:,} series and {len(USUAL)} derived timeframes", f"{median(full):.2f} s", "", None)
    return [
        Figure("ledger.bulk", [rate / 1e3 for rate in advanced]),
        Figure("write.single", [1e3 * took_s for took_s in short], [1e3 * took_s for took_s in short_bare]),
        Figure("write.single_long", [1e3 * took_s for took_s in long], [1e3 * took_s for took_s in long_bare]),
        Figure("write.depth", [1e3 * took_s for took_s in long], [1e3 * took_s for took_s in short]),
        *ends,
        Figure("start.ready", full, empty),
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--series", type=int, default=1000, help="of the minute's end")
    parser.add_argument("--profile", action="store_true", help="what the writer thread does at the minute's end")
    parser.add_argument("--rounds", type=int, default=NIGHTS, help="of imports, nights and starts")
    chosen = parser.parse_args()
    write_figures(chosen.json, asyncio.run(run(chosen.series, chosen.rounds, chosen.profile)))


if __name__ == "__main__":
    main()
