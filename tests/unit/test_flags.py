"""Configuration: precedence, strictness, error sentences."""

from pathlib import Path

import pytest

from klinesync.core.errors import BadFlag
from klinesync.market.parts_writing import derived_step
from klinesync.market.settings import derived_timeframes
from klinesync.runtime.flag_values import split_list
from klinesync.runtime.flags import (
    DEFAULT_WHITELIST,
    RuntimeFlags,
    default_of,
    flag_text,
    load_flags,
    read_configuration,
    sqlite_path,
    whitelist,
)


def source_of(name: str, command_line: dict[str, str]) -> tuple[str, str]:
    rows = {row.name: row for row in read_configuration(command_line).rows()}
    return rows[name].value, rows[name].source


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert source_of("port", {}) == ("8000", "default")
    (tmp_path / "klinesync.toml").write_text("port = 8001\n")
    assert source_of("port", {}) == ("8001", "klinesync.toml")
    monkeypatch.setenv("KLINESYNC_PORT", "8002")
    assert source_of("port", {}) == ("8002", "environment")
    assert source_of("port", {"port": "8003"}) == ("8003", "command line")


def test_an_unknown_name_stops_the_start_in_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadFlag, match="flag prot: there is no such flag"):
        load_flags({"prot": "1"})
    (tmp_path / "klinesync.toml").write_text("prot = 1\n")
    with pytest.raises(BadFlag, match="flag prot: there is no such flag"):
        load_flags()
    (tmp_path / "klinesync.toml").unlink()
    monkeypatch.setenv("KLINESYNC_PROT", "1")
    with pytest.raises(BadFlag, match="flag KLINESYNC_PROT: there is no such flag"):
        load_flags()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "x"),
        ("port", "65536"),
        ("enable_whitelist_ingest", "maybe"),
        ("rest_final_margin_s", "nan"),
        ("rest_final_margin_s", "-1"),
        ("rest_final_margin_s", ""),
        ("stream_stale_s", "0"),
        ("whitelist", "binance:spot:BTCUSDT:1m"),
        ("derived_timeframes", "5m,7m"),
        ("derived_base_timeframe", "7m"),
        ("role", "boss"),
        ("binance_spot_ws_url", "http://127.0.0.1:1"),
        ("binance_spot_rest_url", "api.binance.com"),
        ("database_url", "mysql://x"),
    ],
)
def test_a_malformed_value_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(BadFlag, match=f"flag {name}: "):
        load_flags({name: value})


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("role", "serve", "several processes"),
        ("broker_url", "nats://127.0.0.1", "message broker"),
        ("database_url", "postgresql://127.0.0.1/x", "PostgreSQL"),
    ],
)
def test_a_value_for_a_part_that_is_not_built_stops_the_start_with_a_sentence(name: str, value: str, part: str) -> None:
    with pytest.raises(BadFlag, match=part):
        load_flags({name: value})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("derived_timeframes", "5m,7m", "timeframe '7m' does not divide a day"),
        ("derived_timeframes", "7d", "timeframe '7d' is written 1w"),
        ("derived_timeframes", "0m", "timeframe '0m' has no length"),
        ("derived_timeframes", "1440m", "timeframe '1440m' is written 1d"),
        ("derived_timeframes", "60m", "timeframe '60m' is written 1h"),
        ("derived_timeframes", "5m,45m,5m", "5m is listed twice"),
        ("derived_timeframes", ",".join(f"{days}d" for days in range(8, 73)), "it has 65 timeframes, and at most 64"),
        ("derived_base_timeframe", "45m", "45m is not a timeframe of exchanges; use one of 1m 3m"),
        ("derived_base_timeframe", "5m,15m", "timeframe '5m,15m' is not known"),
    ],
)
def test_an_impossible_timeframe_is_refused_with_the_reason(name: str, value: str, why: str) -> None:
    with pytest.raises(BadFlag, match=f"^flag {name}: .*{why}"):
        load_flags({name: value})


def test_parts_of_a_day_and_days_may_be_derived() -> None:
    codes = ("10m", "45m", "90m", "3h", "2d", "14d", "1w", "1M")
    assert load_flags({"derived_timeframes": ",".join(codes)}).derived_timeframes == codes


@pytest.mark.parametrize(
    ("base", "targets", "why"),
    [
        ("5m", "10m,12m", "12m candles cannot be made of 5m candles, because 5m does not divide 12m"),
        ("1h", "90m", "90m candles cannot be made of 1h candles, because 1h does not divide 90m"),
        ("3d", "6d", "6d candles cannot be made of 3d candles, because they open at other times"),
        ("15m", "45m,15m", "15m is the base timeframe"),
    ],
)
def test_a_timeframe_that_the_base_does_not_divide_stops_the_start_with_the_reason(
    base: str, targets: str, why: str
) -> None:
    flags = load_flags({"derived_base_timeframe": base, "derived_timeframes": targets})
    with pytest.raises(BadFlag, match=f"^flag derived_timeframes: {why}"):
        derived_step(*derived_timeframes(flags))


def test_switching_off_a_part_that_is_not_built_is_accepted() -> None:
    flags = load_flags({"enable_derived_timeframes": "off", "derived_timeframes": "", "indicators": ""})
    assert not flags.enable_derived_timeframes
    assert flags.indicators == ()


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("true", True), ("0", False), ("1", True)])
def test_booleans_are_words_or_digits(text: str, value: bool) -> None:
    assert load_flags({"enable_startup_kline_sync": text}).enable_startup_kline_sync is value


def test_a_list_splits_outside_parentheses() -> None:
    assert split_list("SMA(20), MACD(12,26,9),RSI(14),") == ("SMA(20)", "MACD(12,26,9)", "RSI(14)")


def test_the_default_of_every_flag_reads_back_as_itself() -> None:
    for name in RuntimeFlags.model_fields:
        default = default_of(name)
        if default is not None:
            assert getattr(load_flags({name: flag_text(default)}), name) == default, name


def test_the_whitelist_is_a_list_or_a_file_and_each_series_once(tmp_path: Path) -> None:
    assert tuple(map(str, whitelist(load_flags()))) == DEFAULT_WHITELIST
    both = "binance:futures:BTC/USDT:USDT:1m,binance:futures:BTC/USDT:1m"
    assert [str(one) for one in whitelist(load_flags({"whitelist": both}))] == ["binance:futures:BTC/USDT:1m"]
    path = tmp_path / "list.json"
    path.write_text('{"series_ids": ["binance:spot:SOL/USDT:1m"]}')
    listed = whitelist(load_flags({"whitelist_path": str(path)}))
    assert [str(one) for one in listed] == ["binance:spot:SOL/USDT:1m"]


@pytest.mark.parametrize("body", ["", "[]", '{"series": []}', '{"series_ids": ["x"]}', '{"series_ids": 1}'])
def test_a_malformed_whitelist_file_stops_the_start(tmp_path: Path, body: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(body)
    with pytest.raises(BadFlag, match="whitelist_path"):
        whitelist(load_flags({"whitelist_path": str(path)}))


def test_a_list_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    flags = load_flags({"whitelist_path": str(tmp_path / "x"), "whitelist": "binance:spot:BTC/USDT:1m"})
    with pytest.raises(BadFlag, match="one of the two"):
        whitelist(flags)


@pytest.mark.parametrize("url", ["sqlite:///var/x.sqlite", "sqlite:////var/x.sqlite"])
def test_the_path_of_a_store_is_absolute(url: str) -> None:
    assert sqlite_path(load_flags({"database_url": url})) == Path("/var/x.sqlite")


def test_the_flags_are_those_of_the_contract() -> None:
    names = """host port database_url broker_url role api_token allowed_origins whitelist whitelist_path
        enable_debug_api enable_whitelist_ingest enable_ondemand_ingest ondemand_idle_ttl_s ondemand_max_jobs
        enable_market_auto_tail_backfill market_auto_tail_backfill_max_candles enable_market_gap_backfill
        market_gap_backfill_freqtrade_limit enable_startup_kline_sync startup_kline_sync_target_candles
        enable_ccxt_backfill enable_ccxt_backfill_on_read market_history_source freqtrade_data_dir
        enable_derived_timeframes derived_base_timeframe derived_timeframes derived_backfill_base_candles
        binance_ws_batch_max binance_ws_flush_s
        market_forming_min_interval_ms enable_kline_health_v2
        kline_health_backfill_recent_seconds kline_health_grace_s stream_stale_s rest_final_margin_s
        ledger_advance_max_candles retention_days indicators factor_pivot_window_major factor_pivot_window_minor
        binance_spot_rest_url binance_spot_ws_url binance_futures_rest_url binance_futures_ws_url"""
    own = {"binance_ws_streams_per_connection", "binance_rest_weight_share", "audit_interval_s"}
    own |= {"log_format", "log_level", "archive_url", "derived_native_candles", "enable_environment_proxies"}
    own |= {"store_scrub_days"}
    assert [name for name in RuntimeFlags.model_fields if name not in own] == names.split()
    assert own <= RuntimeFlags.model_fields.keys()
