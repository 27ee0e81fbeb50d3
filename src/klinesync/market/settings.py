"""The settings of the parts, as values. The builder and the commands make them from the flags; parts do not read
flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klinesync.core.errors import BadFlag, Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.factor.indicator import Indicator
from klinesync.factor.indicator_names import parse_listed
from klinesync.ingest.followed import FollowSettings
from klinesync.market.guard import Guard
from klinesync.pipelines.submissions import QueueLimits
from klinesync.runtime.flags import RuntimeFlags, proxies_of, whitelist
from klinesync.runtime.looking import is_folder
from klinesync.runtime.proxies import Proxies


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """The factors and overlays, and the most candles that one transaction advances them.

    indicators: TA-Lib's functions that the flag lists.
    factors: the names of the built-in factors that the flag lists.
    pivot_window_major, pivot_window_minor: in candles.
    advance_max_candles: longest advance inside a write transaction.
    """

    indicators: tuple[Indicator, ...]
    factors: tuple[str, ...]
    pivot_window_major: int
    pivot_window_minor: int
    advance_max_candles: int


@dataclass(frozen=True, slots=True)
class WritingSettings:
    """How candles are written: see `IngestPipeline` and `DerivedStep`. `retention_days`: 0 keeps all candles."""

    derived_base: Timeframe
    derived_targets: tuple[Timeframe, ...]
    ledger: LedgerSettings
    limits: QueueLimits
    retention_days: int


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """Addresses and limits of exchanges.

    rest_urls, ws_urls: of Binance, by market.
    weight_share: largest share of the exchange's limit of weight that we use.
    streams_per_connection: most streams of one connection.
    final_margin_s: how long after its end a row of REST may change, in seconds.
    proxies: of requests to exchanges.
    """

    rest_urls: dict[str, str]
    ws_urls: dict[str, str]
    weight_share: float
    streams_per_connection: int
    final_margin_s: float
    proxies: Proxies


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """The sources and limits of history.

    freqtrade_folder: folder of freqtrade's files; None: they are not read.
    freqtrade_gap_most: most candles of a gap that are read from freqtrade's files.
    archive: folder or address of the exchange's archive; None: no archive.
    proxies: of requests for the archive.
    reads_exchanges: whether exchanges may be asked for history.
    heals: whether declared gaps are read.
    covers_reads: whether reads request missing candles.
    tail_max_candles: longest tail that a read requests, in candles.
    derived_base_candles: base candles of the first history of a derived series.
    native_candles: the exchange's own derived candles that one read requests; 0: none.
    final_margin_s: how long after its end a row of REST may change, in seconds.
    retention_days: candles that are older than the head by more days are not read; 0: no limit.
    scrub_days: days between two readings of all of the store; 0: none.
    """

    freqtrade_folder: Path | None
    freqtrade_gap_most: int
    archive: str | None
    proxies: Proxies
    reads_exchanges: bool
    heals: bool
    covers_reads: bool
    tail_max_candles: int
    derived_base_candles: int
    native_candles: int
    final_margin_s: float
    retention_days: int
    scrub_days: float


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """The followed series: `whitelist` always; with `on_demand` also series that clients subscribe to."""

    follow: FollowSettings
    whitelist: tuple[SeriesId, ...]
    on_demand: bool


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The settings of the services and the front.

    guard: decides about requests.
    listed: the whitelist that is shown.
    follows: whether any ingest is on.
    indicators: the indicators that are shown.
    health, debug: whether these routes exist.
    health_grace_s: exchange time after a close before the candle is expected, in seconds.
    health_recent_s: how long a backfill counts as recent, in seconds.
    usual_margin_s: how long after its end a row of REST usually may change, in seconds.
    """

    guard: Guard
    listed: tuple[SeriesId, ...]
    follows: bool
    indicators: tuple[Indicator, ...]
    health: bool
    debug: bool
    health_grace_s: float
    health_recent_s: float
    usual_margin_s: float


def ledger_settings(flags: RuntimeFlags) -> LedgerSettings:
    """Raises `BadFlag` for an unknown indicator."""
    listed = parse_listed(flags.indicators)
    return LedgerSettings(
        indicators=listed.indicators,
        factors=listed.factors,
        pivot_window_major=flags.factor_pivot_window_major,
        pivot_window_minor=flags.factor_pivot_window_minor,
        advance_max_candles=flags.ledger_advance_max_candles,
    )


def derived_timeframes(flags: RuntimeFlags) -> tuple[Timeframe, tuple[Timeframe, ...]]:
    """The base, and the timeframes that are derived from it. Raises `BadFlag`."""
    targets = flags.derived_timeframes if flags.enable_derived_timeframes else ()
    try:
        return Timeframe.parse(flags.derived_base_timeframe), tuple(map(Timeframe.parse, targets))
    except Rejected as error:
        raise BadFlag("derived_timeframes", str(error)) from None


def writing_settings(flags: RuntimeFlags) -> WritingSettings:
    """Raises `BadFlag`."""
    base, targets = derived_timeframes(flags)
    return WritingSettings(
        derived_base=base,
        derived_targets=targets,
        ledger=ledger_settings(flags),
        limits=QueueLimits(share=flags.binance_ws_batch_max, flush_s=flags.binance_ws_flush_s),
        retention_days=flags.retention_days,
    )


def exchange_settings(flags: RuntimeFlags) -> ExchangeSettings:
    """Raises `BadFlag` for a proxy that cannot be used."""
    return ExchangeSettings(
        rest_urls={"spot": flags.binance_spot_rest_url, "futures": flags.binance_futures_rest_url},
        ws_urls={"spot": flags.binance_spot_ws_url, "futures": flags.binance_futures_ws_url},
        weight_share=flags.binance_rest_weight_share,
        streams_per_connection=flags.binance_ws_streams_per_connection,
        final_margin_s=flags.rest_final_margin_s,
        proxies=proxies_of(flags),
    )


def history_settings(flags: RuntimeFlags) -> HistorySettings:
    """Raises `BadFlag`."""
    folder = None
    if flags.market_history_source == "freqtrade":
        folder = flags.freqtrade_data_dir
        if folder is None:
            raise BadFlag("freqtrade_data_dir", "say where freqtrade keeps its data files")
        _check_folder("freqtrade_data_dir", folder)
    archive = flags.archive_url
    if archive is not None and "://" not in archive:
        _check_folder("archive_url", Path(archive))
    return HistorySettings(
        freqtrade_folder=folder,
        freqtrade_gap_most=flags.market_gap_backfill_freqtrade_limit,
        archive=archive,
        proxies=proxies_of(flags),
        reads_exchanges=flags.enable_ccxt_backfill,
        heals=flags.enable_market_gap_backfill,
        covers_reads=flags.enable_market_auto_tail_backfill and flags.enable_ccxt_backfill_on_read is not False,
        tail_max_candles=flags.market_auto_tail_backfill_max_candles,
        derived_base_candles=flags.derived_backfill_base_candles,
        native_candles=flags.derived_native_candles if flags.enable_ccxt_backfill else 0,
        final_margin_s=flags.rest_final_margin_s,
        retention_days=flags.retention_days,
        scrub_days=flags.store_scrub_days,
    )


def _check_folder(name: str, folder: Path) -> None:
    """Raises `BadFlag` unless `folder`, the value of the flag `name`, is a folder: no candle would ever come of it."""
    if not is_folder(folder):
        raise BadFlag(name, f"there is no folder {folder}")


def ingest_settings(flags: RuntimeFlags, listed: tuple[SeriesId, ...]) -> IngestSettings:
    """`listed`: the whitelist."""
    return IngestSettings(
        follow=FollowSettings(
            first_history_candles=flags.startup_kline_sync_target_candles if flags.enable_startup_kline_sync else 1,
            most_tail_candles=flags.market_auto_tail_backfill_max_candles,
            forming_interval_s=flags.market_forming_min_interval_ms / 1000,
            stream_stale_s=flags.stream_stale_s,
            rest_final_margin_s=flags.rest_final_margin_s,
            audit_interval_s=flags.audit_interval_s,
            ondemand_idle_ttl_s=flags.ondemand_idle_ttl_s,
            ondemand_max_jobs=flags.ondemand_max_jobs,
            live_only=not flags.enable_ccxt_backfill,
        ),
        whitelist=listed if flags.enable_whitelist_ingest else (),
        on_demand=flags.enable_ondemand_ingest,
    )


def service_settings(flags: RuntimeFlags) -> ServiceSettings:
    """Raises `BadFlag`, also for an unreadable whitelist, and for a service that other machines could reach without a
    token."""
    return ServiceSettings(
        guard=Guard.of(flags.host, flags.allowed_origins, flags.api_token),
        listed=whitelist(flags),
        follows=flags.enable_whitelist_ingest or flags.enable_ondemand_ingest,
        indicators=parse_listed(flags.indicators).indicators,
        health=flags.enable_kline_health_v2,
        debug=flags.enable_debug_api,
        health_grace_s=flags.kline_health_grace_s,
        health_recent_s=flags.kline_health_backfill_recent_seconds,
        usual_margin_s=flags.rest_final_margin_s,
    )
