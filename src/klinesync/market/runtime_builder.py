"""build_market_runtime: the one reader of flags; every part gets plain values."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from klinesync.core.candle import Applied
from klinesync.core.errors import BadFlag, Rejected, UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import TIMEOUT_S, BinanceRest, market_routes
from klinesync.exchanges.binance.source import BinanceSource
from klinesync.exchanges.binance.weight import RestStatus
from klinesync.exchanges.ccxt.offers import CcxtExchanges
from klinesync.exchanges.ccxt.source import CcxtSource
from klinesync.exchanges.ccxt.venues import VENUES, excess
from klinesync.exchanges.exchange import ListingShelf, MarketContact, Source, StreamStatus, stream_sentence
from klinesync.factor.graph import FactorGraph
from klinesync.factor.indicator import Indicator
from klinesync.factor.indicator_names import parse_indicators
from klinesync.factor.plugin import FactorSettings
from klinesync.factor.registry import load_factors
from klinesync.history.board import BackfillBoard
from klinesync.history.event_keeper import EventKeeper
from klinesync.history.event_log import EventLog
from klinesync.history.files.sources import ExchangeArchive, FreqtradeFiles, SymbolId
from klinesync.history.reading import Shelf
from klinesync.history.series_events import SeriesEvents
from klinesync.history.service import HistoryService
from klinesync.ingest.exchanges import Exchanges, ListedSource, Offers
from klinesync.ingest.followed import FollowSettings
from klinesync.ingest.market_watch import CLOCK_AGE_S
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.market.front import compose_front
from klinesync.market.inspection import Parts
from klinesync.market.runtime import MarketRuntime
from klinesync.market.security import Guard
from klinesync.market_data.coverage import Coverage
from klinesync.market_data.derived_redo import DerivedRedo
from klinesync.market_data.derived_services import DerivedForming, DerivedHistory
from klinesync.market_data.factor_services import FactorReader
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.ingest_service import MarketIngestService
from klinesync.market_data.known_series import KnownSeries
from klinesync.market_data.listings import StoredListings
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.retention import Retention, cut_of
from klinesync.market_data.startup_sync import StartupSync
from klinesync.market_data.status import MarketFacts, Restart, RestFacts
from klinesync.market_data.status_service import StatusService
from klinesync.market_data.store_scrub import StoreScrub
from klinesync.market_data.top_markets import TopMarkets
from klinesync.market_data.ws_services import Ingest, WsSubscriptionCoordinator
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.registry import load_overlays
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep, Progress
from klinesync.pipelines.watchdog import Watchdog
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags, proxies_of, sqlite_path, whitelist
from klinesync.runtime.http_client import HttpClient
from klinesync.storage.database import Database
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.ws import protocol
from klinesync.ws.hub import CandleHub
from klinesync.ws.messages import STREAM_EVENTS, SystemEventName

# From so many candles on, a fortnight of minutes, the exchange's archive is quicker than its REST, and weighs nothing.
ARCHIVE_LEAST_CANDLES = 20_000
# Shortest time between two `factor.rebuild` messages of a rebuild under way, in seconds.
REBUILD_TELL_EVERY_S = 1.0


def build_market_runtime(
    flags: RuntimeFlags,
    *,
    database: Database | None = None,
    source: ListedSource | None = None,
    others: Offers | None = None,
    bulkheads: Bulkheads | None = None,
    rng: random.Random | None = None,
    wall_s: Callable[[], float] = time.time,
    command: str = "serve",
) -> MarketRuntime:
    """The parts of the service, wired. Runs inside the event loop; nothing has started yet. Raises `BadFlag`.

    The simulation brings its own database, source, bulkheads, jitter and wall clock; else they are made as the flags
    say. `others` has the exchanges for which we have no client of our own, by default those of ccxt. `command` is what
    the store's lock tells others of this process.
    """
    guard = Guard.of(flags.host, flags.allowed_origins, flags.api_token)
    listed = whitelist(flags)
    bulkheads = bulkheads or Bulkheads()
    rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
    monotonic = asyncio.get_running_loop().time
    proxies = proxies_of(flags)
    others = others or CcxtExchanges(
        final_margin_s=flags.rest_final_margin_s,
        monotonic=monotonic,
        rng=rng,
        proxies=proxies,
        bulkheads=bulkheads,
    )
    for series in listed:
        if series.exchange != EXCHANGE and (why := others.refusal(series.exchange)) is not None:
            raise BadFlag("whitelist", f"{series}: {why}")
    derived = _derived_step(flags)
    if flags.enable_whitelist_ingest and (too_many := excess(VENUES, dict.fromkeys(map(derived.base_of, listed)))):
        raise BadFlag("whitelist", "; ".join(too_many))
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    resources: list[AbstractAsyncContextManager[object]] = []
    database = database or SqliteDatabase(sqlite_path(flags), command, serves=True)
    if source is None:
        session = HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), proxies)
        resources.append(session)
        source = _binance(flags, session, clocks, rng, StoredListings(database, EXCHANGE), bulkheads)
    exchanges = Exchanges(EXCHANGE, source, clocks, others, monotonic=monotonic, bulkheads=bulkheads)
    hub = CandleHub(bulkheads)
    forming = DerivedForming(hub, database, derived, bulkheads)
    event_log = EventLog()
    events = SeriesEvents(
        event_log, clocks=lambda: exchanges.clocks, wall_s=wall_s, monotonic=monotonic, derives=derived.derives
    )

    def publish(applied: Applied) -> None:
        name = str(applied.series)
        with bulkheads.contained(Part.PUBLISH, name, reader.forget_pages):
            reader.changed(applied)
        with bulkheads.contained(Part.PUBLISH, name):
            service_status.changed(applied.series)
        with bulkheads.contained(Part.PUBLISH, name, lambda: hub.resync(applied.series)):
            forming.publish(applied)
        with bulkheads.contained(Part.PUBLISH, name):
            derived_history.published(applied)

    indicators = parse_indicators(flags.indicators)
    ledger = ledger_step(flags, indicators)
    pipeline = IngestPipeline(
        database,
        derived,
        ledger,
        publish,
        wall_s,
        tell=lambda progress: teller.ledger(progress),
        committed=events.committed,
        flush_s=flags.binance_ws_flush_s,
        batch_max=flags.binance_ws_batch_max,
    )
    teller = _Teller(hub, derived, monotonic)
    board = BackfillBoard(wall_s, teller.backfill, events.read)
    exchange_s = exchanges.exchange_s

    def fresh_exchange_s(series: SeriesId) -> float | None:
        # Where nothing is followed no stream tells the time: an old stamp lags an exchange that runs faster than we
        # do, or went on while this machine slept, and a tail would never seem to be missing.
        # (Of another exchange `exchanges.knows` has just seen to it that the time is known.)
        own = series.exchange == EXCHANGE
        return exchange_s(series) if not own or clocks[series.market].age_s(monotonic()) <= CLOCK_AGE_S else None

    def keeps_from(series: SeriesId, head: int) -> int:
        return kept_from(flags.retention_days, derived, series, head)

    shelves = history_shelves(flags, source.symbol_id if isinstance(source, BinanceSource) else None)
    files = freqtrade_files(flags)

    def asks(series: SeriesId) -> bool:
        return flags.enable_ccxt_backfill and exchanges.covers(series)

    def covers(series: SeriesId) -> bool:
        return files is not None or exchanges.covers(series)

    backfill = HistoryService(
        history=exchanges.history,
        pipeline=pipeline,
        database=database,
        watch=board.watch(),
        deep_watch=board.watch(),
        shelves=shelves,
        covers=covers,
        asks=asks,
        kept_from=keeps_from,
        now_s=lambda series: exchange_s(series) or wall_s(),
        reach=exchanges.reach,
        rng=rng,
        bulkheads=bulkheads,
    )
    derived_history = DerivedHistory(
        history=exchanges.history,
        pipeline=pipeline,
        database=database,
        derived=derived,
        backfill=backfill,
        covers=exchanges.covers,
        now_s=lambda series: exchange_s(series) or wall_s(),
        kept_from=keeps_from,
        base_candles=flags.derived_backfill_base_candles,
        native_candles=flags.derived_native_candles if flags.enable_ccxt_backfill else 0,
        watch=board.watch(),
        bulkheads=bulkheads,
    )

    def ensure_derived(series: SeriesId, page_start: int | None) -> bool:
        derived_history.ensure(series, page_start)
        return derived_history.fetches_native

    heals = flags.enable_market_gap_backfill
    coverage = None
    if flags.enable_market_auto_tail_backfill and flags.enable_ccxt_backfill_on_read is not False:
        coverage = Coverage(
            source=exchanges,
            pipeline=pipeline,
            database=database,
            backfill=backfill,
            heal=backfill.request_declared if heals else None,
            base_of=derived.base_of,
            covers=covers,
            followed=exchanges.keeps_up,
            exchange_s=fresh_exchange_s,
            final_margin_s=flags.rest_final_margin_s,
            kept_from=keeps_from,
            max_candles=flags.market_auto_tail_backfill_max_candles,
            watch=board.watch(),
            derived=ensure_derived,
            files=files,
            now_s=lambda series: exchange_s(series) or wall_s(),
            asks=asks,
            bulkheads=bulkheads,
        )

    def declared(series: SeriesId) -> None:
        events.damaged(series)
        service_status.changed(series)
        if derived.derives(series):
            derived_history.ensure(series)
        elif heals:
            backfill.request_declared(series)

    scrub = StoreScrub(database, declared)

    async def known(series: SeriesId) -> bool:
        try:
            return await exchanges.known(series)
        except UnknownSeries:
            if files is None or exchanges.covers(series) or not await files.has(derived.base_of(series)):
                raise
            return True

    reader = CandleReader(database, KnownSeries(known, bulkheads).known, coverage, scrub.ask)

    def supervise(exchange: Source, its_clocks: Mapping[str, ExchangeClock]) -> IngestSupervisor:
        return IngestSupervisor(
            source=exchange,
            clocks=its_clocks,
            pipeline=pipeline,
            stored=reader.stored,
            show=forming.show,
            base_of=derived.base_of,
            notice=teller.stream,
            heal=backfill.request if heals else None,
            heal_declared=backfill.retry_declared if heals else None,
            history_watch=board.watch(),
            events=events,
            settings=_follow_settings(flags, one_list_decides=exchange is source),
            rng=rng,
            wall_s=wall_s,
            room=exchange if isinstance(exchange, CcxtSource) else None,
            bulkheads=bulkheads,
            files=files,
        )

    supervisor = exchanges.supervised(supervise)
    followed = dict.fromkeys(map(derived.base_of, listed)) if flags.enable_whitelist_ingest else ()

    async def caught_up(series: SeriesId) -> None:
        await exchanges.caught_up(series)
        await pipeline.refresh_series(series)

    startup = StartupSync(
        series=followed,
        follow=exchanges.follow,
        caught_up=caught_up,
        monotonic=monotonic,
        request_declared=backfill.request_declared if heals else None,
        bulkheads=bulkheads,
    )
    ingest = None
    if flags.enable_ondemand_ingest:

        def acquire(series: SeriesId) -> None:
            if exchanges.covers(series):
                exchanges.acquire(series)
                derived_history.ensure(series)
            elif coverage is not None:  # its files are read
                coverage.ensure(series, derived.base_of(series), None, None, newest=True)

        def release(series: SeriesId) -> None:
            if exchanges.covers(series):
                exchanges.release(series)

        ingest = Ingest(covers, acquire, release)
    health = HealthService(
        database=database,
        base_of=derived.base_of,
        check_known=reader.check_known,
        exchange_s=exchange_s,
        wall_s=wall_s,
        stream=exchanges.status,
        board=board,
        backfill=backfill if heals else None,
        startup=startup,
        first_history_due=exchanges.first_history_due,
        late_s=lambda series: max(0.0, (exchanges.final_margin_s(series) or 0.0) - flags.rest_final_margin_s),
        trouble=exchanges.trouble,
        grace_s=flags.kline_health_grace_s,
        recent_s=flags.kline_health_backfill_recent_seconds,
    )
    rest_status = source.rest_status if isinstance(source, BinanceSource) else dict
    service_status = StatusService(
        database=database,
        health=health,
        followed=exchanges.followed,
        markets=lambda: market_facts(exchanges.contacts(), rest_status()),
        queued_candles=lambda: pipeline.live_candles + pipeline.bulk_candles,
        now_s=lambda: service_now_s(exchanges.clocks.values(), monotonic(), wall_s),
        ingest=flags.enable_whitelist_ingest or flags.enable_ondemand_ingest,
        damaged=database.damage.sentence,
        restarts=lambda: [Restart(part, ago_s) for part, ago_s in bulkheads.ago_s(monotonic()).items()],
    )
    front = compose_front(
        guard,
        Parts(
            database=database,
            pipeline=pipeline,
            ledger=ledger,
            jobs=exchanges.jobs_state,
            connections=exchanges.connections_state,
            stream_counts=source.stream_counts if isinstance(source, BinanceSource) else {},
            doubted=supervisor.doubted,
            questioned=supervisor.questioned,
            clocks=lambda: exchanges.clocks,
            final_margins_s=exchanges.final_margins_s,
            audit=lambda: supervisor.audit,
            rest=rest_status,
            left_out=source.left_out if isinstance(source, BinanceSource) else dict,
            healing=backfill.working_on,
            sweep=startup.progress,
            hub=lambda: hub.status,
            now_s=lambda series: exchange_s(series) or wall_s(),
            monotonic=monotonic,
            grace_s=flags.kline_health_grace_s,
            defects=bulkheads.counts,
        ),
        debug=flags.enable_debug_api,
        derived=derived,
        check_known=reader.check_known,
        show=forming.show,
    )
    return MarketRuntime(
        front=front,
        coverage=coverage,
        database=database,
        events=EventKeeper(database, event_log, lambda: pipeline.live_candles > 0),
        resources=resources,
        pipeline=pipeline,
        derived=derived,
        forming=forming,
        derived_history=derived_history,
        retention=Retention(database, ledger, derived.base, derived.targets, days)
        if (days := flags.retention_days)
        else None,
        hub=hub,
        supervisor=supervisor,
        exchanges=exchanges,
        backfill=backfill,
        startup=startup,
        scrub=scrub,
        derived_redo=DerivedRedo(pipeline, monotonic),
        health=health if flags.enable_kline_health_v2 else None,
        status=service_status,
        top_markets=TopMarkets(
            listings=source.listings,
            tickers=source.tickers,
            now_ms=lambda: int(wall_s() * 1000),
            monotonic=monotonic,
            exchange=EXCHANGE,
            markets=tuple(clocks),
        ),
        reader=reader,
        factors=FactorReader(database, ledger, indicators, reader.check_known),
        ingest=MarketIngestService(pipeline, exchanges.clocks, wall_s),
        coordinator=WsSubscriptionCoordinator(
            hub,
            reader,
            lambda series: exchanges.status(series).state,
            ingest,
            lambda series: exchange_s(series) or wall_s(),
            bulkheads,
        ),
        whitelist=listed,
        bulkheads=bulkheads,
    )


def market_facts(contacts: Sequence[tuple[str, MarketContact]], rest: Mapping[str, RestStatus]) -> list[MarketFacts]:
    """What the status is made of, for each market of each exchange; `rest` is our own exchange's, by market."""
    facts = []
    for exchange, contact in contacts:
        own = rest.get(contact.market) if exchange == EXCHANGE else None
        use = None
        if own is not None:
            banned_until = None if own.blocked_until_ms is None else own.blocked_until_ms // 1000
            use = RestFacts(own.used, own.limit, banned_until)
        facts.append(MarketFacts(exchange, contact, use, clocks_differ=contact.clocks_differ))
    return facts


def service_now_s(clocks: Iterable[ExchangeClock], monotonic_s: float, wall_s: Callable[[], float]) -> float:
    """What time it is, in UTC seconds: by the exchange that was heard last, or by our wall clock where none was."""
    heard = min(clocks, key=lambda clock: clock.age_s(monotonic_s), default=None)
    now_ms = None if heard is None else heard.estimate_ms(monotonic_s)
    return wall_s() if now_ms is None else now_ms / 1000


def ledger_step(flags: RuntimeFlags, indicators: Sequence[Indicator]) -> LedgerStep:
    """The registered factors and overlays. Raises `BadFactor`, `BadOverlay`, `BadFlag`."""
    names = tuple(one.name for one in indicators)
    settings = FactorSettings(flags.factor_pivot_window_major, flags.factor_pivot_window_minor, names)
    factors = FactorGraph(load_factors(settings), names)
    overlays = OverlayGraph(load_overlays(), factors.names)
    watchdog = Watchdog()
    return LedgerStep(
        factors, overlays, indicators, max_candles=flags.ledger_advance_max_candles, guard=lambda: watchdog
    )


class _Teller:
    """Passes on what happens to an ingested series to those who watch it, or what is derived from it."""

    def __init__(self, hub: CandleHub, derived: DerivedStep, monotonic: Callable[[], float]) -> None:
        self._hub = hub
        self._derived = derived
        self._monotonic = monotonic
        self._rebuilds: dict[SeriesId, float] = {}  # those under way, and when that was told last

    def stream(self, series: SeriesId, status: StreamStatus) -> None:
        """The state of its stream has changed."""
        told = {"state": status.state, "since": status.since, "last_frame_at": status.last_frame_at}
        self._tell(series, STREAM_EVENTS[status.state], stream_sentence(status), told | {"detail": status.detail})

    def backfill(self, series: SeriesId, message: str, facts: Mapping[str, object]) -> None:
        """How the reading of its history goes."""
        self._tell(series, "backfill.progress", message, facts)

    def ledger(self, progress: Progress) -> None:
        """How far factors and overlays are that are computed piece by piece: `running` now and then, `done` at the
        end, to who watches the series."""
        series, now_s = progress.series, self._monotonic()
        state = "running" if progress.left else "done"
        told_s = self._rebuilds.pop(series, float("-inf"))
        if progress.left:
            if now_s - told_s < REBUILD_TELL_EVERY_S:
                self._rebuilds[series] = told_s
                return
            self._rebuilds[series] = now_s
        if self._hub.watched(series):
            how = "up to date" if state == "done" else "under way"
            message = f"factors and overlays are computed anew ({progress.reason}): {how}"
            facts = {
                "state": state,
                "reason": progress.reason,
                "epoch": progress.epoch,
                "factor_head_time": progress.factor_head,
                "head_time": progress.head,
            }
            self._hub.tell(series, protocol.system(series, "factor.rebuild", message, facts))

    def _tell(self, series: SeriesId, event: SystemEventName, message: str, facts: Mapping[str, object] | None) -> None:
        for one in (series, *self._derived.derived_from(series)):
            if self._hub.watched(one):
                self._hub.tell(one, protocol.system(one, event, message, facts))


def freqtrade_files(flags: RuntimeFlags) -> FreqtradeFiles | None:
    """Freqtrade's files, where the flags name them as a source of history. Raises `BadFlag`."""
    if flags.market_history_source != "freqtrade":
        return None
    if flags.freqtrade_data_dir is None:
        raise BadFlag("freqtrade_data_dir", "say where freqtrade keeps its data files")
    return FreqtradeFiles(flags.freqtrade_data_dir)


def history_shelves(flags: RuntimeFlags, symbol_id: SymbolId | None) -> list[Shelf]:
    """The files that the flags name, in the order in which they are looked into; an archive only with `symbol_id`,
    which tells the exchange's name of a series' symbol. Raises `BadFlag`."""
    shelves = []
    if (files := freqtrade_files(flags)) is not None:
        shelves.append(Shelf(files.name, files, gap_most=flags.market_gap_backfill_freqtrade_limit))
    if flags.archive_url is not None and symbol_id is not None:
        remote = flags.archive_url.startswith(("http://", "https://"))
        location = flags.archive_url if remote else Path(flags.archive_url)
        archive = ExchangeArchive(location, symbol_id, proxies=proxies_of(flags))
        shelves.append(Shelf("archive", archive, least_candles=ARCHIVE_LEAST_CANDLES))
    return shelves


def kept_from(days: int, derived: DerivedStep, series: SeriesId, head: int) -> int:
    """Before what open time a series with that head is trimmed; 0: never."""
    targets = derived.targets if series.timeframe == derived.base else ()
    return cut_of(head, days, targets) if days else 0


def _follow_settings(flags: RuntimeFlags, *, one_list_decides: bool) -> FollowSettings:
    return FollowSettings(
        first_history_candles=flags.startup_kline_sync_target_candles if flags.enable_startup_kline_sync else 1,
        most_tail_candles=flags.market_auto_tail_backfill_max_candles,
        forming_interval_s=flags.market_forming_min_interval_ms / 1000,
        stream_stale_s=flags.stream_stale_s,
        rest_final_margin_s=flags.rest_final_margin_s,
        audit_interval_s=flags.audit_interval_s,
        ondemand_idle_ttl_s=flags.ondemand_idle_ttl_s,
        ondemand_max_jobs=flags.ondemand_max_jobs,
        one_list_decides=one_list_decides,
        live_only=not flags.enable_ccxt_backfill,
    )


def _derived_step(flags: RuntimeFlags) -> DerivedStep:
    base = Timeframe.parse(flags.derived_base_timeframe)
    targets = flags.derived_timeframes if flags.enable_derived_timeframes else ()
    try:
        return DerivedStep(base, [Timeframe.parse(code) for code in targets])
    except Rejected as error:
        raise BadFlag("derived_timeframes", str(error)) from None


def _binance(
    flags: RuntimeFlags,
    session: HttpClient,
    clocks: dict[str, ExchangeClock],
    rng: random.Random,
    listings: ListingShelf,
    bulkheads: Bulkheads,
) -> BinanceSource:
    rest = BinanceRest(
        session,
        market_routes(flags.binance_spot_rest_url, flags.binance_futures_rest_url),
        clocks,
        final_margin_s=flags.rest_final_margin_s,
        monotonic=asyncio.get_running_loop().time,
        share=flags.binance_rest_weight_share,
        rng=rng,
        shelf=listings,
    )
    ws_urls = {"spot": flags.binance_spot_ws_url, "futures": flags.binance_futures_ws_url}
    return BinanceSource(
        session,
        rest,
        ws_urls,
        rng,
        clocks=clocks,
        streams_most=flags.binance_ws_streams_per_connection,
        bulkheads=bulkheads,
    )
