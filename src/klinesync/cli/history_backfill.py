"""`klinesync backfill`: history from an exchange or from files, into the store or through a running service."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from klinesync.cli.arguments import span_of
from klinesync.cli.history_exchange import exchanges_of
from klinesync.cli.history_store import open_store, stored_derived_step, writer
from klinesync.cli.progress import Say, bar
from klinesync.cli.service_client import service_client
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import BadFlag, UnknownSeries, UpstreamError
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, HistoryPage, Urgency
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.history.files.importing import Put
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import Pages, Shelf, read_pages, unreported
from klinesync.history.requested import BackfillProgress
from klinesync.history.service import HistoryService
from klinesync.market.parts_history import freqtrade_files, history_shelves
from klinesync.market.settings import history_settings
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.market_data.series_scope import kept_from
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.flags import RuntimeFlags

# By `--source`, the flag that names the place of its files.
_SHELF_FLAGS = {"freqtrade": "freqtrade_data_dir", "archive": "archive_url"}


async def backfill(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """Read history. Returns 1 when candles are still missing that a later run may read, or when all of the span is
    lost."""
    began_s = SYSTEM_CLOCK.monotonic_s()
    with bar() as say:
        if arguments.url is not None and arguments.source is None:
            result = await _backfill_service(flags, arguments, say)
        else:
            series = stored_derived_step(flags, arguments.url).base_of(arguments.series_id)
            frame = series.timeframe
            span = span_of(arguments, Span(0, frame.shift(frame.latest_closed(int(SYSTEM_CLOCK.wall_s())), 1)))
            if arguments.url is None and arguments.source in (None, "rest"):
                result = await _backfill_store(flags, series, span, say, files=arguments.source is None)
            else:
                result = await _backfill_pages(flags, series, span, say, arguments.source, arguments.url)
    series = result.series
    seconds = round(SYSTEM_CLOCK.monotonic_s() - began_s, 3)
    if arguments.json:
        facts = {
            "series_id": str(series),
            "from": result.span.start,
            "to": result.span.end,
            "candles": result.candles,
            "missing": result.missing,
            "lost": result.lost,
            "nothing_before": result.begins,
            "seconds": seconds,
        }
        print(json.dumps(facts, indent=1))
    else:
        print(f"{series}: {counted(result.candles, 'candle')} read, {result.missing} still missing, in {seconds:.1f} s")
        if result.begins is not None:
            print(printable(f"{series}: {series.exchange} has no candles before {date_text(result.begins)}"))
    if result.lost:
        _complain(series, result.lost, "lost", result.lost_why)
    if result.missing:
        why = result.trouble or "the source has no more candles now; run it again later"
        _complain(series, result.missing, "still missing", why)
    all_lost = result.lost > 0 and result.lost == series.timeframe.count(*result.span)
    return 1 if result.missing or all_lost else 0


def _complain(series: SeriesId, count: int, state: str, reason: str | None) -> None:
    are = "is" if count == 1 else "are"
    print(printable(f"klinesync: {counted(count, 'candle')} of {series} {are} {state}: {reason}"), file=sys.stderr)


async def _backfill_store(
    flags: RuntimeFlags, series: SeriesId, span: Span, say: Say, *, files: bool
) -> BackfillProgress:
    """Read missing candles into the store, with the service's own backfill, which also notes spans that the exchange
    proves empty. `files`: whether the files that the flags name are read first."""
    derived = stored_derived_step(flags)
    async with (
        open_store(flags, derived, "backfill") as (database, pipeline),
        exchanges_of(flags, database) as registry,
        asyncio.TaskGroup() as group,
    ):
        shelves = _shelves(flags, registry) if files else []
        await _check_listed(registry, series, derived, needed=not shelves and flags.enable_ccxt_backfill)
        service = HistoryService(
            HistoryPorts(
                history=registry.history,
                pipeline=pipeline,
                database=database,
                watch=_NoHealthWatch(),
                rng=random.Random(),  # noqa: S311  # jitter, not a secret
                shelves=shelves,
                covers=lambda other: other.exchange == series.exchange,
                asks=lambda _: flags.enable_ccxt_backfill,
                kept_from=lambda other, head: kept_from(flags.retention_days, derived, other, head),
                now_s=ExchangeTime(registry.clocks, SYSTEM_CLOCK).now_s,
                reach=registry.reach,
            )
        )
        running = group.create_task(service.run(), name="backfill")
        try:
            return await service.backfill(series, span, _progress_of(say))
        finally:
            running.cancel()


async def _backfill_service(flags: RuntimeFlags, arguments: argparse.Namespace, say: Say) -> BackfillProgress:
    """Let the running service read from its sources into its store."""
    async with service_client(arguments.url, flags.api_token) as service:
        try:
            return await service.backfill(arguments.series_id, arguments.from_, arguments.to, _progress_of(say))
        except asyncio.CancelledError:
            print(f"klinesync: the service at {arguments.url} continues the backfill", file=sys.stderr)
            raise


def _progress_of(say: Say) -> Callable[[BackfillProgress], None]:
    return lambda progress: say(
        f"{progress.series}: {counted(progress.candles, 'candle')}, {progress.missing} missing",
        progress.progress_pct / 100,
    )


class _NoHealthWatch:
    """A `HistoryWatch` for a command, which shows no health of series."""

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        return

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        return

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        return


async def _backfill_pages(
    flags: RuntimeFlags, series: SeriesId, span: Span, say: Say, source: str | None, url: str | None
) -> BackfillProgress:
    """Read all candles of the span from one source, also stored ones."""
    began_s = SYSTEM_CLOCK.monotonic_s()
    async with (
        writer(flags, stored_derived_step(flags, url), url, "backfill") as (put, _),
        _pages(flags, series, span, source) as pages,
    ):
        pages_writer = _PagesWriter(series, span, put, say)
        await read_pages(pages, pages_writer.write, unreported(series, span.start))
    total = series.timeframe.count(*span)
    elapsed_s = SYSTEM_CLOCK.monotonic_s() - began_s
    return BackfillProgress(series, span, total, total - pages_writer.candles, pages_writer.candles, elapsed_s)


@dataclass(slots=True)
class _PagesWriter:
    """Hands the candles of pages within `span` to `put`, each once, because an exchange's pages overlap.

    series: of the candles.
    span: the requested span.
    put: stores candles.
    say: shows progress.
    candles: how many were handed on.
    newest: open time of the newest of them; -1 before the first.
    """

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
    async with exchanges_of(flags) as registry:
        if source not in _SHELF_FLAGS:
            if (why := registry.series_refusal(series)) is not None:
                raise UnknownSeries(str(series), why)
            yield registry.history(series, span.start, Errand(Urgency.DEEP), span.end)
            return
        shelves = _shelves(flags, registry)
        shelf = next((shelf for shelf in shelves if shelf.name == source), None)
        if shelf is None:
            raise BadFlag(_SHELF_FLAGS[source], f"the flag is required for --source {source}")
        yield shelf.files.pages(series, span)


def _shelves(flags: RuntimeFlags, registry: ExchangeRegistry) -> list[Shelf]:
    """The file sources that the flags name, in their order of reading. Raises `BadFlag`."""
    settings = history_settings(flags)
    return history_shelves(settings, freqtrade_files(settings), registry.symbol_id)


async def _check_listed(registry: ExchangeRegistry, series: SeriesId, derived: DerivedStep, *, needed: bool) -> None:
    """Raises `UnknownSeries` for a series that its exchange does not list; and `UpstreamError` when the exchange cannot
    be asked and is the only source (`needed`). `derived`: tells how to have the series computed instead."""
    try:
        await registry.known(series)
    except UnknownSeries as error:
        raise UnknownSeries(str(series), error.reason + derived.hint(series)) from None
    except UpstreamError:
        if needed:
            raise
