"""The parts that read missing candles: files, backfill, derived histories, tail coverage, scrub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klinesync.core.series_id import SeriesId
from klinesync.history.board import BackfillBoard
from klinesync.history.files.sources import ExchangeArchive, FreqtradeFiles, SymbolId
from klinesync.history.native_folds import NativeSources
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import Shelf
from klinesync.history.service import HistoryService
from klinesync.history.tails import TailLimits, Tails
from klinesync.market.parts_exchanges import ExchangeParts
from klinesync.market.parts_writing import WritingParts
from klinesync.market.settings import HistorySettings
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.coverage import Coverage
from klinesync.market_data.derived_services import DerivedHistory
from klinesync.market_data.known_series import KnownSeries
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.series_scope import SeriesScope
from klinesync.market_data.store_healer import Sources, StoreHealer
from klinesync.market_data.store_scrub import StoreScrub
from klinesync.pipelines.derived_step import DerivedStep

# Shortest span that is read from the exchange's archive, in candles (two weeks of minutes): it is faster than REST
# then, and costs no weight.
ARCHIVE_LEAST_CANDLES = 20_000


@dataclass(frozen=True, slots=True)
class HistoryParts:
    """`coverage`: None when reads do not request missing candles."""

    board: BackfillBoard
    files: FreqtradeFiles | None
    scope: SeriesScope
    backfill: HistoryService
    derived_history: DerivedHistory
    coverage: Coverage | None
    scrub: StoreScrub
    healer: StoreHealer
    reader: CandleReader


def build_history(
    settings: HistorySettings, around: Surroundings, writing: WritingParts, exchange: ExchangeParts
) -> HistoryParts:
    """The parts that read history; the subscribers of the scrub and of the healer are bound later."""
    board = BackfillBoard(around.clock.wall_s, writing.teller.backfill, writing.events.read)
    files = freqtrade_files(settings)
    scope = SeriesScope(
        exchange.registry,
        files,
        writing.derived,
        reads_exchanges=settings.reads_exchanges,
        retention_days=settings.retention_days,
    )
    limits = TailLimits(settings.tail_max_candles, settings.final_margin_s, scope.kept_from)
    ports = HistoryPorts(
        history=exchange.registry.history,
        pipeline=writing.pipeline,
        database=writing.database,
        watch=board.watch(),
        rng=around.rng,
        retries=around.tuning.retries,
        limits=around.tuning.history,
        deep_watch=board.watch(),
        shelves=history_shelves(settings, files, exchange.registry.symbol_id),
        covers=scope.covers,
        asks=scope.reads_exchange,
        native_source=NativeSources(exchange.registry.knows, writing.derived.base).source,
        has_clients=writing.hub.watched,
        kept_from=scope.kept_from,
        now_s=exchange.time.now_s,
        reach=exchange.registry.reach,
        monotonic=around.clock.monotonic_s,
        bulkheads=around.bulkheads,
    )
    tails = Tails(
        ports=ports,
        source=exchange.registry,
        limits=limits,
        followed=exchange.supervisors.keeps_up,
        exchange_s=exchange.time.fresh_s,
        files=files,
    )
    backfill = HistoryService(ports, tails=tails, heals=settings.heals)
    derived_history = DerivedHistory(
        history=backfill,
        pipeline=writing.pipeline,
        database=writing.database,
        derived=writing.derived,
        covers=exchange.registry.covers,
        now_s=exchange.time.now_s,
        kept_from=scope.kept_from,
        base_candles=settings.derived_base_candles,
        native_candles=settings.native_candles,
    )
    coverage = None
    if settings.covers_reads:
        coverage = Coverage(
            history=backfill,
            base_of=writing.derived.base_of,
            covers=scope.covers,
            followed=exchange.supervisors.keeps_up,
            exchange_s=exchange.time.fresh_s,
            now_s=exchange.time.now_s,
            limits=limits,
            derived=derived_history.ensure_page,
        )
    scrub = StoreScrub(writing.database, settings.scrub_days, around.clock, around.tuning.scrub)
    known = KnownSeries(scope.known, around.bulkheads, around.clock.monotonic_s, around.tuning.known)
    return HistoryParts(
        board=board,
        files=files,
        scope=scope,
        backfill=backfill,
        derived_history=derived_history,
        coverage=coverage,
        scrub=scrub,
        healer=StoreHealer(
            writing.database,
            writing.pipeline,
            Sources(writing.derived.base_of, scope.covers),
            around.clock,
            around.tuning.healing,
        ),
        reader=CandleReader(writing.database, known.known, coverage, scrub.ask, around.tuning.clients.catch_up_candles),
    )


@dataclass(frozen=True, slots=True)
class GapReading:
    """Requests the declared gaps of a series.

    derived: the derived timeframes.
    derived_history: requests missing candles of derived series.
    backfill: requests gaps of ingested series, when healing is on.
    """

    derived: DerivedStep
    derived_history: DerivedHistory
    backfill: HistoryService

    def declared(self, series: SeriesId) -> None:
        """See `GapsDeclared`."""
        if self.derived.derives(series):
            self.derived_history.declared(series)
        else:
            self.backfill.request_declared(series)


def freqtrade_files(settings: HistorySettings) -> FreqtradeFiles | None:
    """Freqtrade's files; None when they are no history source."""
    return None if settings.freqtrade_folder is None else FreqtradeFiles(settings.freqtrade_folder)


def history_shelves(settings: HistorySettings, files: FreqtradeFiles | None, symbol_id: SymbolId | None) -> list[Shelf]:
    """The file sources that are read before the exchange, in order.

    settings: of files and archive.
    files: freqtrade's.
    symbol_id: the exchange's name of a series' symbol, which the archive needs; None: the archive is not read.
    """
    shelves = []
    if files is not None:
        shelves.append(Shelf(files.name, files, gap_most=settings.freqtrade_gap_most))
    if settings.archive is not None and symbol_id is not None:
        remote = settings.archive.startswith(("http://", "https://"))
        location = settings.archive if remote else Path(settings.archive)
        archive = ExchangeArchive(location, symbol_id, proxies=settings.proxies)
        shelves.append(Shelf("archive", archive, least_candles=ARCHIVE_LEAST_CANDLES))
    return shelves
