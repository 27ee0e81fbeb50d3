"""The store that a command writes: directly under the store's lock, or through the service that holds the lock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import Rejected, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Listing
from klinesync.history.files.importing import Now, Put
from klinesync.history.files.names import ARCHIVE_EXCHANGE
from klinesync.market.parts_writing import derived_step, ledger_step
from klinesync.market.settings import derived_timeframes, ledger_settings
from klinesync.market_data.listings import StoredListings
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep, no_ledger
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.flags import RuntimeFlags, sqlite_path
from klinesync.runtime.looking import is_file
from klinesync.storage.candles import CandleStore
from klinesync.storage.lock import StoreLocked
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader

# The source of candles from files, as revisions name it.
SOURCE = "file"


@contextlib.asynccontextmanager
async def writer(
    flags: RuntimeFlags,
    derived: DerivedStep,
    url: str | None,
    command: str,
    listings: Mapping[str, Sequence[Listing]] | None = None,
    *,
    checked: bool = False,
) -> AsyncIterator[tuple[Put, Now]]:
    """A function that stores candles, and the clock by which they must have closed: of the store and the system; with
    `url` of the running service at that address.

    flags: the configuration of the command.
    derived: the derived timeframes that the store's writer computes.
    url: the address of the service that holds the lock of the store; None: this command writes the store.
    command: name of this command, which the lock of the store shows to others.
    listings: lists of symbols by market, to be stored; None: none.
    checked: whether the caller has checked the candles by the rules of `check_candle`, as `rows.Judge` does.

    Raises `StoreLocked`.
    """
    if url is None:
        async with open_store(flags, derived, command) as (database, pipeline):
            for market, listed in (listings or {}).items():
                await StoredListings(database, ARCHIVE_EXCHANGE).keep(market, listed)
            yield lambda series, candles: _submit(pipeline, series, candles, checked=checked), _system_now
        return
    # Imported here: a command that writes the store needs no client.
    from klinesync.cli.service_client import service_client

    async with service_client(url, flags.api_token) as service:
        yield service.put, service.now


async def _system_now(_series: SeriesId) -> int:
    return int(SYSTEM_CLOCK.wall_s())


@contextlib.asynccontextmanager
async def open_store(
    flags: RuntimeFlags, derived: DerivedStep, command: str
) -> AsyncIterator[tuple[SqliteDatabase, IngestPipeline]]:
    """The locked store and its running pipeline. On leaving, a transaction that has begun is finished."""
    database = SqliteDatabase(sqlite_path(flags), command)
    try:
        await database.__aenter__()
    except StoreLocked as error:
        raise StoreLocked(f"{error}; --url sends the candles through the running service") from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(database)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        ledger = no_ledger_of(flags)
        pipeline = IngestPipeline(database, derived, ledger, _no_subscribers, SYSTEM_CLOCK.wall_s)
        running = group.create_task(pipeline.run(), name="pipeline")
        stack.callback(running.cancel)
        yield database, pipeline


def no_ledger_of(flags: RuntimeFlags) -> LedgerStep:
    """A step that computes no factors. Where order flow is filled in, it redoes the states of installed factors that
    read order flow; when one cannot be loaded, it may be such a factor, and ledgers are rewound."""
    try:
        step = ledger_step(ledger_settings(flags))
    except Rejected:
        return no_ledger(reads_flow=True)
    return no_ledger(redoes=step if step.factors.reads_flow else None)


async def _submit(pipeline: IngestPipeline, series: SeriesId, candles: Sequence[Candle], *, checked: bool) -> int:
    return len((await pipeline.submit(series, candles, SOURCE, checked=checked)).candles)


def _no_subscribers(_applied: Applied) -> None:
    return


def stored_derived_step(flags: RuntimeFlags, url: str | None = None) -> DerivedStep:
    """The derived timeframes with which the store was computed last. The flags decide for a new store, and for the
    store of the service at `url`. Raises `BadFlag`."""
    step = derived_step(*derived_timeframes(flags))
    path = sqlite_path(flags)
    if url is not None or not is_file(path):
        return step
    try:
        # The writer opens the store next, and migrates an old schema: that has the derived timeframes too.
        with SqliteReader(path, older=True) as store:
            settings, dormant = store.read(_derivations)
    except StoreError:
        return step  # the writer opens the store next, and raises the error
    if settings is not None:
        step = DerivedStep(*settings)
    step.dormant = {series: base for series, base in dormant.items() if series.timeframe not in step.targets}
    return step


def _derivations(
    store: CandleStore,
) -> tuple[tuple[Timeframe, tuple[Timeframe, ...]] | None, dict[SeriesId, SeriesId]]:
    """The base and derived timeframes of the store, and by derived series its base series."""
    bases = {series: store.derivation(series).base for series in store.series()}
    return store.derived_settings(), {series: base for series, base in bases.items() if base is not None}
