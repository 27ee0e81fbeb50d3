"""The commands that move history: import, export, backfill. Each gives an exit status."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from klinesync.cli.command import WrongUse
from klinesync.cli.progress import Say, bar
from klinesync.cli.service_client import service_client
from klinesync.core.candle import Applied, Candle
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import BadFlag, KlinesyncError, Rejected, StoreError, UnknownSeries, UpstreamError
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import TIMEOUT_S, BinanceRest, market_routes
from klinesync.exchanges.ccxt.offers import CcxtExchanges
from klinesync.exchanges.ccxt.source import CcxtSource
from klinesync.exchanges.exchange import Errand, HistoryPage, Listing, ListingShelf, Urgency
from klinesync.factor.indicator_names import parse_indicators
from klinesync.history.files.exporting import EVER, export
from klinesync.history.files.factor_columns import FactorColumns
from klinesync.history.files.importing import Manner, Now, Put, import_files, sentence, stoppable
from klinesync.history.files.planning import Imported, ImportFile, find, plan
from klinesync.history.files.readers import BadFile
from klinesync.history.files.sources import SymbolId
from klinesync.history.reading import Pages, read_pages, unreported
from klinesync.history.service import BackfillProgress, HistoryService
from klinesync.market.runtime_builder import history_shelves, kept_from, ledger_step
from klinesync.market_data.listings import StoredListings, SymbolNames, stored_listings
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.runtime.clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags, proxies_of, sqlite_path
from klinesync.runtime.http_client import HttpClient
from klinesync.runtime.looking import is_file
from klinesync.storage.database import CandleStore
from klinesync.storage.lock import StoreLocked
from klinesync.storage.own_files import refuse_own_file
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader

# What revisions say of candles that a file brought.
SOURCE = "file"
# So many more objects there must be before Python looks for garbage while candles pass through: several batches.
COLLECT_AFTER_OBJECTS = 500_000

# Nobody waits longer for the exchange's list of symbols when files are imported.
ASK_LISTING_TIMEOUT_S = 20.0

# Where files are that --source names.
_SHELF_FLAGS = {"freqtrade": "freqtrade_data_dir", "archive": "archive_url"}


async def import_paths(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """`klinesync import`: 1 when a file was refused, or something failed midway."""
    found = await stoppable(lambda stopped: find(arguments.path, arguments.series, arguments.exchange, stopped))
    names = _symbol_names(flags)
    planned, done = await plan(found, names.name)
    derived = _derived_step(flags, arguments.url)
    files = [file for file in planned if not (derived.derives(file.series) or file.series in derived.dormant)]
    done += [_derived(file, derived, named=file.path in arguments.path) for file in planned if file not in files]
    manner = Manner(strict=arguments.strict, unterminated=arguments.unterminated)
    imported: list[Imported] = []
    failure: KlinesyncError | None = None
    began_s = time.monotonic()

    def report() -> None:
        took_s = time.monotonic() - began_s
        _report([*done, *imported], len(files) - len(imported), took_s, as_json=arguments.json)

    try:
        async with _writer(flags, derived, arguments.url, "import", names.asked) as (put, now):
            with bar() as say, _seldom_collected():
                try:
                    await import_files(files, put, now, manner, imported, _progress_of(say, files))
                except KlinesyncError as error:
                    failure = error
    except asyncio.CancelledError:
        report()
        raise
    report()
    if failure is not None:
        stored = sum(one.stored for one in imported)
        are = "is" if stored == 1 else "are"
        what = f"{counted(stored, 'candle')} {are} stored, and running it again goes on"
        print(printable(f"klinesync: {failure}; {what}"), file=sys.stderr)
        return 1
    refused = [one.refused for one in (*done, *imported) if one.refused is not None]
    if refused:
        count = len(done) + len(imported)
        why = f": {refused[0]}" if len(refused) == 1 else ""
        refusal = refused[0] if count == 1 else f"{len(refused)} of {count} files refused{why}"
        print(printable(f"klinesync: {refusal}"), file=sys.stderr)
    return 1 if refused else 0


def _symbol_names(flags: RuntimeFlags) -> SymbolNames:
    """Names of symbols by the lists in the store, else by the exchange's."""
    path = sqlite_path(flags)

    def kept(market: str) -> Sequence[Listing]:
        if not is_file(path):
            return []
        try:
            with SqliteReader(path) as store:
                return store.read(lambda look: stored_listings(look, EXCHANGE, market))
        except StoreError:
            return []  # told by who opens it for writing, which may bring its schema up to date

    async def ask(market: str) -> Sequence[Listing]:
        clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
        async with _binance(flags, clocks) as rest:
            try:
                async with asyncio.timeout(ASK_LISTING_TIMEOUT_S):
                    return list((await rest.listings(market, 0.0)).values())
            except TimeoutError:
                why = rest.contact(market).failure or f"no answer within {ASK_LISTING_TIMEOUT_S:g} s"
                raise UpstreamError(why) from None

    return SymbolNames(kept, ask)


def _derived(file: ImportFile, derived: DerivedStep, *, named: bool) -> Imported:
    """A file with candles that are computed here: refused when it was named, passed over when it lies in a folder."""
    base = derived.dormant[file.series].timeframe if file.series in derived.dormant else derived.base
    why = f"{file.series} is derived from {base}: import the {base} candles instead"
    if named:
        return Imported(file.path, file.series, refused=str(BadFile(file.path, why)))
    return Imported(file.path, file.series, note=f"passed over: {why}")


def _progress_of(say: Say, files: Sequence[ImportFile]) -> Callable[[ImportFile, int, int], None]:
    number = {file: at for at, file in enumerate(files)}

    def told(file: ImportFile, stored: int, candles: int) -> None:
        which = f"{file.path.name} ({number[file] + 1} of {len(files)}): {counted(stored, 'candle')}"
        say(which, (number[file] + stored / max(candles, 1)) / len(files))

    return told


def _report(done: Sequence[Imported], not_begun: int, took_s: float, *, as_json: bool) -> None:
    candles = sum(one.stored for one in done)
    if as_json:
        found = [
            {
                "path": str(one.path),
                "series_id": None if one.series is None else str(one.series),
                "rows": one.rows,
                "candles": one.stored,
                "new": one.new,
                "quarantined": one.quarantined,
                "first_bad_rows": one.told,
                "first_time": one.first,
                "last_time": one.last,
                "refused": one.refused,
                "failed": one.failed,
                "note": one.note,
            }
            for one in done
        ]
        facts = {"files": found, "candles": candles, "not_begun": not_begun, "seconds": round(took_s, 3)}
        print(json.dumps(facts, indent=1))
        return
    refused = sum(one.refused is not None for one in done)
    for one in done:
        if one.refused is None or refused > 1:  # a single refusal is told on stderr
            print(sentence(one))
        for text in one.told if one.refused is None else ():
            print(printable(f"    {text}"))
    print(
        f"{counted(len(done), 'file')}, {counted(candles, 'candle')} in {took_s:.1f} s "
        f"({candles / max(took_s, 1e-3):,.0f} candles/s)"
    )


def export_series(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """`klinesync export`."""
    span = _span(arguments, EVER)
    factors = None
    if arguments.factors:
        indicators = parse_indicators(flags.indicators)
        factors = FactorColumns(ledger_step(flags, indicators), indicators, arguments.series_id)
    with SqliteReader(sqlite_path(flags)) as store, bar() as say:
        refuse_own_file(store.path, arguments.output)
        stored = store.read(lambda look: look.span(arguments.series_id))
        begin, end = (0, 1) if stored is None else (max(stored.start, span.start), min(stored.end, span.end))

        def told(upto: int, count: int) -> None:
            say(f"{arguments.series_id}: {counted(count, 'candle')}", (upto - begin) / max(end - begin, 1))

        exported = export(
            store,
            arguments.series_id,
            span,
            arguments.output,
            arguments.format,
            freqtrade=arguments.freqtrade,
            overwrite=arguments.overwrite,
            factors=factors,
            progress=told,
        )
    path, how = exported.path, exported.merged
    size = path.stat().st_size
    if arguments.json:
        facts: dict[str, object] = {
            "path": str(path),
            "series_id": str(arguments.series_id),
            "candles": exported.candles,
            "bytes": size,
            "merged": None
            if how is None
            else {"same": how.same, "different": how.different, "kept": how.kept, "first_different": how.told},
        }
        print(json.dumps(facts, indent=1))
        return 0
    candles = counted(exported.candles, "candle")
    beside = ""
    if how is not None:
        beside = (
            f", merged with the file that was there: {how.same} were the same, {how.different} had other values and "
            f"now have the store's, {how.kept} that the file alone has stay"
        )
    print(printable(f"{path}: {candles} of {arguments.series_id} ({size} bytes){beside}"))
    for text in () if how is None else how.told:
        print(printable(f"    {text}"))
    return 0


async def backfill(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """`klinesync backfill`: 1 when something is still missing that may yet be had, or when nothing of the span can be
    had any more."""
    began_s = time.monotonic()
    with bar() as say:
        if arguments.url is not None and arguments.source is None:
            found = await _backfill_service(flags, arguments, say)
        else:
            series = _derived_step(flags, arguments.url).base_of(arguments.series_id)
            frame = series.timeframe
            span = _span(arguments, Span(0, frame.shift(frame.latest_closed(int(time.time())), 1)))
            if arguments.url is None and arguments.source in (None, "rest"):
                found = await _backfill_store(flags, series, span, say, files=arguments.source is None)
            else:
                found = await _backfill_pages(flags, series, span, say, arguments.source, arguments.url)
    series = found.series
    seconds = round(time.monotonic() - began_s, 3)
    if arguments.json:
        facts = {
            "series_id": str(series),
            "from": found.span.start,
            "to": found.span.end,
            "candles": found.candles,
            "missing": found.missing,
            "lost": found.lost,
            "nothing_before": found.begins,
            "seconds": seconds,
        }
        print(json.dumps(facts, indent=1))
    else:
        print(
            f"{series}: {counted(found.candles, 'candle')} brought, {found.missing} still missing, in {seconds:.1f} s"
        )
        if found.begins is not None:
            print(printable(f"{series}: {series.exchange} has nothing before {date_text(found.begins)}"))
    if found.lost:
        are = "is" if found.lost == 1 else "are"
        print(
            printable(f"klinesync: {counted(found.lost, 'candle')} of {series} {are} lost: {found.lost_why}"),
            file=sys.stderr,
        )
    if found.missing:
        are = "is" if found.missing == 1 else "are"
        why = found.trouble or "what its source has is stored; run it again later"
        print(
            printable(f"klinesync: {counted(found.missing, 'candle')} of {series} {are} still missing: {why}"),
            file=sys.stderr,
        )
    all_lost = found.lost > 0 and found.lost == series.timeframe.count(*found.span)
    return 1 if found.missing or all_lost else 0


async def _backfill_store(
    flags: RuntimeFlags, series: SeriesId, span: Span, say: Say, *, files: bool
) -> BackfillProgress:
    """Into the store, by the service's own backfill: what is there already is not asked for, and what the exchange
    shows to be empty is noted. With `files`, those that the flags name are looked into first."""

    derived = _derived_step(flags)
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    monotonic = asyncio.get_running_loop().time

    def exchange_s(_: SeriesId) -> float:
        estimate_ms = clocks[series.market].estimate_ms(monotonic())
        return time.time() if estimate_ms is None else estimate_ms / 1000

    async with (
        _open_store(flags, derived, "backfill") as (database, pipeline),
        _rest(flags, series, clocks, StoredListings(database, EXCHANGE)) as rest,
        asyncio.TaskGroup() as group,
    ):
        shelves = history_shelves(flags, _archive_names(rest)) if files else []
        await _check_listed(rest, series, needed=not shelves and flags.enable_ccxt_backfill)
        service = HistoryService(
            history=rest.history,
            pipeline=pipeline,
            database=database,
            watch=_NobodyWatches(),
            rng=random.Random(),  # noqa: S311  # jitter, not a secret
            shelves=shelves,
            covers=lambda one: one.exchange == series.exchange,
            asks=lambda _: flags.enable_ccxt_backfill,
            kept_from=lambda one, head: kept_from(flags.retention_days, derived, one, head),
            now_s=exchange_s,
            reach=lambda one: rest.reach(one) if isinstance(rest, CcxtSource) else None,
        )
        running = group.create_task(service.run(), name="backfill")
        try:
            return await service.backfill(series, span, _told(say))
        finally:
            running.cancel()


async def _backfill_service(flags: RuntimeFlags, arguments: argparse.Namespace, say: Say) -> BackfillProgress:
    """By the running service, from its own sources and into its store."""
    async with service_client(arguments.url, flags.api_token) as service:
        try:
            return await service.backfill(arguments.series_id, arguments.from_, arguments.to, _told(say))
        except asyncio.CancelledError:
            print(f"klinesync: the service at {arguments.url} goes on with it", file=sys.stderr)
            raise


def _told(say: Say) -> Callable[[BackfillProgress], None]:
    return lambda how: say(
        f"{how.series}: {counted(how.candles, 'candle')}, {how.missing} missing", how.progress_pct / 100
    )


class _NobodyWatches:
    """A `HistoryWatch` where no health is told."""

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        return

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        return

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        return


async def _backfill_pages(
    flags: RuntimeFlags, series: SeriesId, span: Span, say: Say, source: str | None, url: str | None
) -> BackfillProgress:
    """All of the span from one source, whatever is stored."""
    began_s = time.monotonic()
    async with (
        _writer(flags, _derived_step(flags, url), url, "backfill") as (put, _),
        _pages(flags, series, span, source) as pages,
    ):
        brought = _Brought(series, span, put, say)
        await read_pages(pages, brought.write, unreported(series, span.start))
    total = series.timeframe.count(*span)
    elapsed_s = time.monotonic() - began_s
    return BackfillProgress(series, span, total, total - brought.candles, brought.candles, elapsed_s)


@dataclass(slots=True)
class _Brought:
    """The candles of `span` that pages have brought so far, each handed to `put` once: an exchange's pages overlap."""

    series: SeriesId
    span: Span
    put: Put
    say: Say
    candles: int = 0
    newest: int = -1

    async def write(self, page: HistoryPage) -> None:
        begin = max(self.newest + 1, self.span.start)
        candles = [candle for candle in page.candles if begin <= candle.time < self.span.end]
        if not candles:
            return
        await self.put(self.series, candles)
        self.newest = candles[-1].time
        self.candles += len(candles)
        part = (self.newest - self.span.start) / (self.span.end - self.span.start)
        self.say(f"{self.series}: {counted(self.candles, 'candle')}", part)


@contextlib.asynccontextmanager
async def _pages(flags: RuntimeFlags, series: SeriesId, span: Span, source: str | None) -> AsyncIterator[Pages]:
    """The pages of `source`: `freqtrade`, `archive`, else the exchange's REST. Raises `BadFlag`, `UnknownSeries`."""
    if source not in _SHELF_FLAGS and not flags.enable_ccxt_backfill:
        raise BadFlag("enable_ccxt_backfill", "it is off: history is read from files alone")
    if source == "freqtrade":
        flags = flags.model_copy(update={"market_history_source": "freqtrade"})
    async with _rest(flags, series, {"spot": ExchangeClock(), "futures": ExchangeClock()}) as rest:
        if source not in _SHELF_FLAGS:
            yield rest.history(series, span.start, Errand(Urgency.DEEP), span.end)
            return
        shelves = history_shelves(flags, _archive_names(rest))
        shelf = next((shelf for shelf in shelves if shelf.name == source), None)
        if shelf is None:
            raise BadFlag(_SHELF_FLAGS[source], f"it is needed for --source {source}")
        yield shelf.files.pages(series, span)


def _archive_names(rest: BinanceRest | CcxtSource) -> SymbolId:
    """The exchange's names of symbols, as an archive asks for them. Of ccxt's exchanges there is no archive."""

    async def symbol_id(series: SeriesId) -> str | None:
        return await rest.symbol_id(series) if isinstance(rest, BinanceRest) else None

    return symbol_id


async def _check_listed(rest: BinanceRest | CcxtSource, series: SeriesId, *, needed: bool) -> None:
    """Raises `UnknownSeries` for a series that its exchange does not list, and `UpstreamError` when it cannot be asked
    and there is nothing else to read from (`needed`)."""
    try:
        why = await rest.refusal(series)
    except UpstreamError:
        if needed:
            raise
        return
    if why is not None:
        raise UnknownSeries(str(series), why)


@contextlib.asynccontextmanager
async def _rest(
    flags: RuntimeFlags,
    series: SeriesId,
    clocks: Mapping[str, ExchangeClock],
    listings: ListingShelf | None = None,
) -> AsyncIterator[BinanceRest | CcxtSource]:
    """The REST of the series' exchange, which teaches `clocks`; `listings` keeps its symbols.

    Raises `UnknownSeries` when there is none."""
    if series.exchange != EXCHANGE:
        others = CcxtExchanges(
            final_margin_s=flags.rest_final_margin_s,
            monotonic=asyncio.get_running_loop().time,
            rng=random.Random(),  # noqa: S311  # jitter, not a secret
            environment_proxies=flags.enable_environment_proxies,
        )
        if (why := others.refusal(series.exchange)) is not None:
            raise UnknownSeries(str(series), why)
        source = others.source(series.exchange, clocks)
        try:
            yield source
        finally:
            await source.close()
            await others.stop()
        return
    async with _binance(flags, clocks, listings) as rest:
        yield rest


@contextlib.asynccontextmanager
async def _binance(
    flags: RuntimeFlags, clocks: Mapping[str, ExchangeClock], listings: ListingShelf | None = None
) -> AsyncIterator[BinanceRest]:
    """The REST of our own exchange, as `_rest` gives it."""
    async with HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), proxies_of(flags)) as session:
        yield BinanceRest(
            session,
            market_routes(flags.binance_spot_rest_url, flags.binance_futures_rest_url),
            clocks,
            final_margin_s=flags.rest_final_margin_s,
            monotonic=asyncio.get_running_loop().time,
            share=flags.binance_rest_weight_share,
            rng=random.Random(),  # noqa: S311  # jitter, not a secret
            shelf=listings,
        )


# --- where candles go


@contextlib.asynccontextmanager
async def _writer(
    flags: RuntimeFlags,
    derived: DerivedStep,
    url: str | None,
    command: str,
    listings: Mapping[str, Sequence[Listing]] | None = None,
) -> AsyncIterator[tuple[Put, Now]]:
    """Into the store, under its lock, and by the system's clock; or to the running service at `url`, by its.

    listings: our exchange's lists of symbols by market, kept in a store that is written here.
    """
    if url is None:
        async with _open_store(flags, derived, command) as (database, pipeline):
            for market, listed in (listings or {}).items():
                await StoredListings(database, EXCHANGE).keep(market, listed)
            yield lambda series, candles: _submit(pipeline, series, candles), _system_now
        return
    async with service_client(url, flags.api_token) as service:
        yield service.put, service.now


async def _system_now(_series: SeriesId) -> int:
    return int(time.time())


@contextlib.asynccontextmanager
async def _open_store(
    flags: RuntimeFlags, derived: DerivedStep, command: str
) -> AsyncIterator[tuple[SqliteDatabase, IngestPipeline]]:
    """The store, locked, and the running pipeline. Transactions that have begun are finished on the way out."""
    database = SqliteDatabase(sqlite_path(flags), command)
    try:
        await database.__aenter__()
    except StoreLocked as error:
        raise StoreLocked(f"{error}; --url sends the candles through the running service") from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(database)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        pipeline = IngestPipeline(database, derived, no_ledger(), _nobody_follows, time.time)
        running = group.create_task(pipeline.run(), name="pipeline")
        stack.callback(running.cancel)
        yield database, pipeline


async def _submit(pipeline: IngestPipeline, series: SeriesId, candles: Sequence[Candle]) -> int:
    return len((await pipeline.submit(series, candles, SOURCE)).candles)


def _nobody_follows(_applied: Applied) -> None:
    return


# --- the rest


def _derived_step(flags: RuntimeFlags, url: str | None = None) -> DerivedStep:
    """As the store was computed last; a store that does not say, and one behind a service, go by the flags."""
    targets = flags.derived_timeframes if flags.enable_derived_timeframes else ()
    try:
        step = DerivedStep(
            Timeframe.parse(flags.derived_base_timeframe), [Timeframe.parse(target) for target in targets]
        )
    except Rejected as error:
        raise BadFlag("derived_timeframes", str(error)) from None
    path = sqlite_path(flags)
    if url is not None or not is_file(path):
        return step
    try:
        with SqliteReader(path) as store:
            settings, dormant = store.read(_derivations)
    except StoreError:
        return step  # told by who opens it for writing, which may bring its schema up to date
    if settings is not None:
        step = DerivedStep(*settings)
    step.dormant = {series: base for series, base in dormant.items() if series.timeframe not in step.targets}
    return step


def _derivations(
    store: CandleStore,
) -> tuple[tuple[Timeframe, tuple[Timeframe, ...]] | None, dict[SeriesId, SeriesId]]:
    """The settings of the store, and its derived series with their bases."""
    bases = {series: store.derivation(series).base for series in store.series()}
    return store.derived_settings(), {series: base for series, base in bases.items() if base is not None}


def _span(arguments: argparse.Namespace, otherwise: Span) -> Span:
    start = otherwise.start if arguments.from_ is None else arguments.from_
    end = otherwise.end if arguments.to is None else arguments.to
    if start >= end:
        raise WrongUse(
            f"--from {date_text(start)} does not lie before --to {date_text(end)}", f"klinesync {arguments.name}"
        )
    return Span(start, end)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Candles are many small objects and never garbage in a circle: looking through them for that again and again takes
    as long as all the rest."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
