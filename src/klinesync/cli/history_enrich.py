"""`klinesync backfill --enrich`: order flow of stored candles that lack it, from the archive, then from the exchange's
REST.

One pass over the stored candles. It may be interrupted: the next run requests what is still missing. Only candles whose
prices and volume agree with the source's are written, so that nothing is revised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from klinesync.cli.arguments import span_of
from klinesync.cli.command import WrongUse
from klinesync.cli.history_exchange import exchanges_of
from klinesync.cli.history_store import open_store, stored_derived_step
from klinesync.cli.progress import Say, bar
from klinesync.cli.service_client import service_client
from klinesync.core.candle import MAX_TIME, NO_FLOW, Candle, agree, replacing
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import NotListed
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, HistoryPage, Urgency
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.history.files.importing import Put
from klinesync.history.reading import Shelf, read_pages, unreported
from klinesync.market.parts_history import history_shelves
from klinesync.market.settings import history_settings
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.candles import CandleStore

# Candles of one read of the store.
WINDOW_CANDLES = 20_000
# Most stored candles with order flow between two candles without that one request covers.
MAX_BETWEEN = 500
# Candles without order flow after which a source that has brought none at all is asked no more.
MAX_WITHOUT_FLOW = 500
# The source of the values.
SOURCE = "enrich"

# Reads the oldest stored candles of a series after a time, ascending; no candles at the end.
ReadStored = Callable[[SeriesId, int], Awaitable[Sequence[Candle]]]
# The pages of one source that open in a span.
Source = Callable[[SeriesId, Span], AsyncGenerator[HistoryPage, None]]


@dataclass(slots=True)
class _Asked:
    """A source of one pass. `without`: its candles so far, while none had order flow; None once one had."""

    least_candles: int
    pages: Source
    without: int | None = 0

    def count(self, candle: Candle) -> None:
        """Count a candle of the source."""
        if candle.flow != NO_FLOW:
            self.without = None
        elif self.without is not None:
            self.without += 1

    @property
    def is_useless(self) -> bool:
        """Whether the source has brought many candles, and order flow of none. Of a few an exchange may have none."""
        return self.without is not None and self.without >= MAX_WITHOUT_FLOW


@dataclass(slots=True)
class Enriched:
    """The result for one series.

    series_id: the series.
    enriched: candles that got values that were null.
    different: candles for which a source has other prices or another volume; they are left as they are.
    remaining: stored candles of the span that still lack a value.
    """

    series_id: str
    enriched: int = 0
    different: int = 0
    remaining: int = 0


async def enrich(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """Fill null values of stored candles. Returns 0."""
    done: list[Enriched] = []
    span = span_of(arguments, Span(0, MAX_TIME + 1))
    async with _store(flags, arguments) as (series_ids, read, put), exchanges_of(flags) as registry:
        with bar() as say:
            for number, series in enumerate(series_ids):
                done.append(Enriched(str(series)))
                sources = _sources(flags, registry, series)
                share = number / len(series_ids)
                await enrich_series(series, span, sources, read, put, done[-1], partial(_show, say, share))
    if arguments.json:
        print(json.dumps([asdict(one) for one in done], indent=1))
        return 0
    for one in done:
        left = f", {one.remaining} still without" if one.remaining else ""
        other = f", {one.different} left as they are, because the source has other prices" if one.different else ""
        print(f"{one.series_id}: order flow of {counted(one.enriched, 'candle')} filled in{left}{other}")
    return 0


@contextlib.asynccontextmanager
async def _store(
    flags: RuntimeFlags, arguments: argparse.Namespace
) -> AsyncIterator[tuple[list[SeriesId], ReadStored, Put]]:
    """The series, and how their stored candles are read and written: directly, or through the service."""
    derived = stored_derived_step(flags, arguments.url)
    wanted = None if arguments.series_id is None else derived.base_of(arguments.series_id)
    if arguments.url is not None:
        if wanted is None:
            raise WrongUse("--enrich with --url takes a series")
        async with service_client(arguments.url, flags.api_token) as service:
            yield [wanted], service.stored, service.put
        return
    async with open_store(flags, derived, "backfill") as (database, pipeline):

        async def read(series: SeriesId, since: int) -> list[Candle]:
            return await database.read(lambda look: look.oldest(series, WINDOW_CANDLES, since=since))

        async def put(series: SeriesId, candles: Sequence[Candle]) -> int:
            return len((await pipeline.submit(series, candles, SOURCE)).candles)

        yield await database.read(_ingested) if wanted is None else [wanted], read, put


def _ingested(store: CandleStore) -> list[SeriesId]:
    """The stored series that are not derived from others."""
    return [series for series in store.series() if store.derivation(series).base is None]


def _sources(flags: RuntimeFlags, registry: ExchangeRegistry, series: SeriesId) -> list[tuple[int, Source]]:
    """The sources of order flow, in their order, each with the shortest span for which it is asked."""
    shelves: list[Shelf] = history_shelves(history_settings(flags), None, registry.symbol_id)
    sources: list[tuple[int, Source]] = [(shelf.least_candles, shelf.files.pages) for shelf in shelves]
    if flags.enable_ccxt_backfill and registry.series_refusal(series) is None:
        sources.append((1, lambda of, span: registry.history(of, span.start, Errand(Urgency.DEEP), span.end)))
    return sources


async def enrich_series(
    series: SeriesId,
    span: Span,
    sources: list[tuple[int, Source]],
    read: ReadStored,
    put: Put,
    done: Enriched,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Fill null values of the stored candles of one series.

    series: the series.
    span: open times.
    sources: asked one after the other, each with its shortest span; one that brings no order flow is asked no more.
    read: reads stored candles.
    put: stores candles.
    done: counts.
    say: shows progress; nothing by default.
    """
    different: set[int] = set()
    since = span.start - 1
    useful = [_Asked(least, pages) for least, pages in sources]
    while window := await read(series, since):
        since = window[-1].time
        lacking = {candle.time: candle for candle in window if None in candle and candle.time < span.end}
        for part in list(_parts(series, lacking)):  # `lacking` changes meanwhile
            for source in list(useful):
                inside = [time for time in lacking if part.start <= time < part.end]
                if not inside or series.timeframe.count(*part) < source.least_candles:
                    continue
                try:
                    await _fill(series, part, source, lacking, different, put, done)
                except NotListed as error:  # a delisted symbol, say: other series go on
                    print(printable(f"klinesync: {error}"), file=sys.stderr)
                    useful.remove(source)
                    continue
                if source.is_useless:
                    useful.remove(source)
        done.remaining += len(lacking)
        say(f"{series}: order flow of {counted(done.enriched, 'candle')}, up to {date_text(since)}")
        if since >= span.end - 1:
            break
    done.different = len(different)


def _show(say: Say, share: float, text: str) -> None:
    say(text, share)


def _parts(series: SeriesId, lacking: Mapping[int, Candle]) -> Iterator[Span]:
    """The spans of candles that lack values; few candles between two of them are read too."""
    frame = series.timeframe
    start = last = -1
    for time in lacking:
        if start >= 0 and frame.count(last, time) > MAX_BETWEEN:
            yield Span(start, frame.next(last))
            start = -1
        start, last = time if start < 0 else start, time
    if start >= 0:
        yield Span(start, frame.next(last))


async def _fill(
    series: SeriesId,
    span: Span,
    source: _Asked,
    lacking: dict[int, Candle],
    different: set[int],
    put: Put,
    done: Enriched,
) -> None:
    """Fill in what one source has, remove complete candles from `lacking`, and add the open times of candles with other
    prices to `different`. A source that turns out to be useless is not read to the end."""

    async def fill(page: HistoryPage) -> None:
        by_time: dict[int, Candle] = {}  # an answer may have a row twice
        for candle in page.candles:
            stored = by_time.get(candle.time) or lacking.get(candle.time)
            source.count(candle)
            if stored is None or not span.start <= candle.time < span.end:
                continue
            if not agree(stored, candle):
                different.add(candle.time)
            elif (whole := replacing(stored, candle)) != stored:
                by_time[whole.time] = whole
        if found := list(by_time.values()):
            await put(series, found)
            done.enriched += len(found)
        for whole in found:
            if None in whole:
                lacking[whole.time] = whole
            else:
                del lacking[whole.time]

    await read_pages(source.pages(series, span), fill, unreported(series, span.start), enough=lambda: source.is_useless)
