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
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.flags import RuntimeFlags

# The flag that says where the files of each `--source` lie.
_SHELF_FLAGS = {"freqtrade": "freqtrade_data_dir", "archive": "archive_url"}


async def backfill(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """Read history. Returns 1 when candles are still missing that may yet come, or when all of the span is lost."""
    began_s = SYSTEM_CLOCK.monotonic_s()
    with bar() as say:
        if arguments.url is not None and arguments.source is None:
            found = await _backfill_service(flags, arguments, say)
        else:
            series = stored_derived_step(flags, arguments.url).base_of(arguments.series_id)
            frame = series.timeframe
            span = span_of(arguments, Span(0, frame.shift(frame.latest_closed(int(SYSTEM_CLOCK.wall_s())), 1)))
            if arguments.url is None and arguments.source in (None, "rest"):
                found = await _backfill_store(flags, series, span, say, files=arguments.source is None)
            else:
                found = await _backfill_pages(flags, series, span, say, arguments.source, arguments.url)
    series = found.series
    seconds = round(SYSTEM_CLOCK.monotonic_s() - began_s, 3)
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
    """Into the store, by the service's own backfill: stored candles are not asked for again, and spans that the
    exchange proves empty are noted. `files`: the files that the flags name are read first."""
    derived = stored_derived_step(flags)
    async with (
        open_store(flags, derived, "backfill") as (database, pipeline),
        exchanges_of(flags, database) as registry,
        asyncio.TaskGroup() as group,
    ):
        shelves = _shelves(flags, registry) if files else []
        await _check_listed(registry, series, needed=not shelves and flags.enable_ccxt_backfill)
        service = HistoryService(
            HistoryPorts(
                history=registry.history,
                pipeline=pipeline,
                database=database,
                watch=_NobodyWatches(),
                rng=random.Random(),  # noqa: S311  # jitter, not a secret
                shelves=shelves,
                covers=lambda one: one.exchange == series.exchange,
                asks=lambda _: flags.enable_ccxt_backfill,
                kept_from=lambda one, head: kept_from(flags.retention_days, derived, one, head),
                now_s=ExchangeTime(registry.clocks, SYSTEM_CLOCK).now_s,
                reach=registry.reach,
            )
        )
        running = group.create_task(service.run(), name="backfill")
        try:
            return await service.backfill(series, span, _told(say))
        finally:
            running.cancel()


async def _backfill_service(flags: RuntimeFlags, arguments: argparse.Namespace, say: Say) -> BackfillProgress:
    """By the running service, from the service's sources into the service's store."""
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
    """A `HistoryWatch` for a command: nobody asks for the health of series."""

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        return

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        return

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        return


async def _backfill_pages(
    flags: RuntimeFlags, series: SeriesId, span: Span, say: Say, source: str | None, url: str | None
) -> BackfillProgress:
    """All candles of the span from one source, also those that are stored already."""
    began_s = SYSTEM_CLOCK.monotonic_s()
    async with (
        writer(flags, stored_derived_step(flags, url), url, "backfill") as (put, _),
        _pages(flags, series, span, source) as pages,
    ):
        brought = _Brought(series, span, put, say)
        await read_pages(pages, brought.write, unreported(series, span.start))
    total = series.timeframe.count(*span)
    elapsed_s = SYSTEM_CLOCK.monotonic_s() - began_s
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
    async with exchanges_of(flags) as registry:
        if source not in _SHELF_FLAGS:
            if (why := registry.series_refusal(series)) is not None:
                raise UnknownSeries(str(series), why)
            yield registry.history(series, span.start, Errand(Urgency.DEEP), span.end)
            return
        shelves = _shelves(flags, registry)
        shelf = next((shelf for shelf in shelves if shelf.name == source), None)
        if shelf is None:
            raise BadFlag(_SHELF_FLAGS[source], f"it is needed for --source {source}")
        yield shelf.files.pages(series, span)


def _shelves(flags: RuntimeFlags, registry: ExchangeRegistry) -> list[Shelf]:
    """The files that the flags name, in the order in which they are read. Raises `BadFlag`."""
    settings = history_settings(flags)
    return history_shelves(settings, freqtrade_files(settings), registry.symbol_id)


async def _check_listed(registry: ExchangeRegistry, series: SeriesId, *, needed: bool) -> None:
    """Raises `UnknownSeries` for a series that its exchange does not list, and `UpstreamError` when it cannot be asked
    and there is nothing else to read from (`needed`)."""
    try:
        await registry.known(series)
    except UpstreamError:
        if needed:
            raise
