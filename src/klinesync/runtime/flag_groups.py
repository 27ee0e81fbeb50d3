"""Flags in groups, as help and documentation show them. Every flag is in one group."""

from __future__ import annotations

FLAG_GROUPS: dict[str, tuple[str, ...]] = {
    "listen": ("host", "port", "api_token", "allowed_origins", "enable_debug_api"),
    "store": ("database_url", "retention_days", "store_scrub_days"),
    "follow": (
        "whitelist",
        "whitelist_path",
        "enable_whitelist_ingest",
        "enable_ondemand_ingest",
        "ondemand_idle_ttl_s",
        "stream_stale_s",
        "rest_final_margin_s",
        "audit_interval_s",
        "binance_spot_rest_url",
        "binance_spot_ws_url",
        "binance_futures_rest_url",
        "binance_futures_ws_url",
        "enable_environment_proxies",
    ),
    "history": (
        "enable_startup_kline_sync",
        "startup_kline_sync_target_candles",
        "enable_market_auto_tail_backfill",
        "market_auto_tail_backfill_max_candles",
        "enable_market_gap_backfill",
        "market_gap_backfill_freqtrade_limit",
        "enable_ccxt_backfill",
        "enable_ccxt_backfill_on_read",
        "market_history_source",
        "freqtrade_data_dir",
        "archive_url",
    ),
    "derived": (
        "enable_derived_timeframes",
        "derived_base_timeframe",
        "derived_timeframes",
        "derived_backfill_base_candles",
        "derived_native_candles",
    ),
    "factors": (
        "indicators",
        "factor_pivot_window_major",
        "factor_pivot_window_minor",
        "ledger_advance_max_candles",
    ),
    "limits": (
        "ondemand_max_jobs",
        "binance_ws_batch_max",
        "binance_ws_flush_s",
        "binance_ws_streams_per_connection",
        "binance_rest_weight_share",
        "market_forming_min_interval_ms",
    ),
    "health": ("enable_kline_health_v2", "kline_health_backfill_recent_seconds", "kline_health_grace_s"),
    "logs": ("log_format", "log_level"),
    "processes": ("role", "broker_url"),
}
# Group of flags that are in no other group.
OTHER = "other"


def group_of(name: str) -> str:
    """The group of a flag."""
    return next((group for group, names in FLAG_GROUPS.items() if name in names), OTHER)
