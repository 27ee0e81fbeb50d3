"""RuntimeFlags: the one place that reads configuration.

Read once at start, in this precedence: command line, environment (`KLINESYNC_<NAME IN CAPITALS>`),
`.env` and `klinesync.toml` in the working directory, default. An unknown name or a malformed value stops the start
with its name in the message. Only the commands and the runtime builder read the result; other parts get plain values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from klinesync.core.decoding import decode_json
from klinesync.core.errors import BadFlag
from klinesync.core.series_id import SeriesId
from klinesync.runtime.flag_sources import ENV_PREFIX, Given, read_sources
from klinesync.runtime.flag_values import (
    MASK,
    ArchiveUrl,
    DatabaseUrl,
    OptionalPath,
    OptionalSecret,
    RestUrl,
    SeriesList,
    TextList,
    TimeframeCode,
    TimeframeList,
    WsUrl,
    allowed,
    is_secret,
    masked,
    parse_series_list,
    shown,
)
from klinesync.runtime.log_events import Log
from klinesync.runtime.proxies import Proxies

log = Log(__name__)

# Largest whitelist file, in bytes.
MAX_WHITELIST_BYTES = 4 << 20

DEFAULT_WHITELIST = (
    "binance:spot:BTC/USDT:1m",
    "binance:spot:ETH/USDT:1m",
    "binance:futures:BTC/USDT:1m",
    "binance:futures:ETH/USDT:1m",
)


def _default_database_url() -> str:
    return f"sqlite:///{user_data_path('klinesync', appauthor=False)}/klinesync.sqlite"


class RuntimeFlags(BaseModel):
    """Every flag, with its default, meaning and limits. Immutable after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address that the service listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that the service listens on; 0 = a free port")
    database_url: DatabaseUrl = Field(
        default_factory=_default_database_url, description="the store: sqlite:///path or postgresql://…"
    )
    broker_url: str | None = Field(
        None, description="message broker for several processes: nats://…; in-process when unset"
    )
    role: Literal["all", "ingest", "serve"] = Field("all", description="what this process does")
    api_token: OptionalSecret = Field(
        None, min_length=16, description="bearer token for the ingest and debug endpoints; required beyond loopback"
    )
    allowed_origins: TextList = Field(
        (), description="browser origins that may connect, in addition to the service's own"
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="log lines for people, or one JSON object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")
    whitelist: SeriesList = Field(parse_series_list(DEFAULT_WHITELIST), description="series that are always ingested")
    whitelist_path: OptionalPath = Field(None, description='the whitelist as a JSON file: {"series_ids": […]}')
    enable_debug_api: bool = Field(False, description="debug endpoints and forming ingest")
    enable_whitelist_ingest: bool = Field(True, description="ingest the whitelist from the start")
    enable_ondemand_ingest: bool = Field(True, description="subscriptions start ingest")
    ondemand_idle_ttl_s: float = Field(60, ge=0, description="idle time before an on-demand job stops, in seconds")
    ondemand_max_jobs: int = Field(0, ge=0, description="most on-demand jobs; 0 = no limit")
    enable_market_auto_tail_backfill: bool = Field(True, description="reads fetch the missing tail")
    market_auto_tail_backfill_max_candles: int = Field(2000, ge=1, description="most candles one read may fetch")
    enable_market_gap_backfill: bool = Field(True, description="heal gaps")
    market_gap_backfill_freqtrade_limit: int = Field(
        2000, ge=0, description="most candles one gap takes from freqtrade files"
    )
    enable_startup_kline_sync: bool = Field(True, description="sweep the whitelist to the latest closed time at start")
    startup_kline_sync_target_candles: int = Field(
        2000, ge=1, description="candles that the start-up sweep reaches back"
    )
    enable_ccxt_backfill: bool = Field(
        True,
        description="read history over REST, of any exchange; off: history from files only, and live candles",
    )
    enable_ccxt_backfill_on_read: bool | None = Field(
        None, description="reads may fetch over REST; follows enable_market_auto_tail_backfill when unset"
    )
    market_history_source: Literal["none", "freqtrade"] = Field("none", description="files that are read before REST")
    freqtrade_data_dir: OptionalPath = Field(None, description="folder of freqtrade's data files")
    archive_url: ArchiveUrl = Field(
        None, min_length=1, description="the exchange's archive, for long histories: https://… or a folder"
    )
    enable_derived_timeframes: bool = Field(True, description="compute derived timeframes")
    derived_base_timeframe: TimeframeCode = Field("1m", description="the timeframe from which the others are derived")
    derived_timeframes: TimeframeList = Field(("5m", "15m", "1h", "4h", "1d"), description="the derived timeframes")
    derived_backfill_base_candles: int = Field(
        2000, ge=1, description="base candles of the first backfill of a derived series"
    )
    derived_native_candles: int = Field(
        500,
        ge=0,
        le=5000,
        description="the exchange's own candles of a derived series before its base begins; 0 = none",
    )
    binance_ws_batch_max: int = Field(200, ge=1, description="most closed candles of one series in one flush")
    binance_ws_flush_s: float = Field(
        0.5, ge=0, description="longest wait of a closed candle for a busy writer, in seconds"
    )
    binance_ws_streams_per_connection: int = Field(
        200, ge=1, le=1024, description="streams on one WebSocket connection to the exchange"
    )
    binance_rest_weight_share: float = Field(
        0.8, gt=0, le=1, description="largest share of the exchange's REST weight limit that this process uses"
    )
    audit_interval_s: float = Field(
        1.0, ge=0, description="seconds between two reads of the rolling audit, one series each; 0 = no audit"
    )
    market_forming_min_interval_ms: int = Field(
        250,
        ge=0,
        description="least time between two forming updates of a series, in ms; the latest is always delivered",
    )
    enable_kline_health_v2: bool = Field(True, description="serve /api/market/health")
    kline_health_backfill_recent_seconds: float = Field(120, ge=0, description="how long a backfill counts as recent")
    kline_health_grace_s: float = Field(
        5, ge=0, description="exchange time after a close before its candle is expected, in seconds"
    )
    stream_stale_s: float = Field(
        15,
        gt=0,
        description="exchange time after which a silent stream is stale when REST shows a traded candle, in seconds",
    )
    rest_final_margin_s: float = Field(
        2, ge=0, description="exchange time after the close of a REST row before it counts as final, in seconds"
    )
    ledger_advance_max_candles: int = Field(
        2000, ge=1, description="longest ledger advance inside a write transaction, in candles"
    )
    store_scrub_days: float = Field(
        7, ge=0, description="days between two readings of all of the store, which find damage early; 0 = none"
    )
    retention_days: int = Field(0, ge=0, description="closed candles older than this are deleted; 0 = keep all")
    indicators: TextList = Field(
        ("SMA(20)", "EMA(21)", "BBANDS(20)", "MACD(12,26,9)", "RSI(14)", "ATR(14)"),
        description="indicator factors: functions of TA-Lib, CVD, VWAP, TAKER_RATIO",
    )
    factor_pivot_window_major: int = Field(50, ge=1, le=1000, description="window of major pivots, in candles")
    factor_pivot_window_minor: int = Field(5, ge=1, le=1000, description="window of minor pivots, in candles")
    binance_spot_rest_url: RestUrl = Field("https://api.binance.com", description="endpoint without path")
    binance_spot_ws_url: WsUrl = Field("wss://stream.binance.com:9443", description="endpoint without path")
    binance_futures_rest_url: RestUrl = Field("https://fapi.binance.com", description="endpoint without path")
    binance_futures_ws_url: WsUrl = Field("wss://fstream.binance.com", description="endpoint without path")

    enable_environment_proxies: bool = Field(
        True, description="use the proxies of HTTPS_PROXY, HTTP_PROXY and NO_PROXY to reach exchanges and archives"
    )


@dataclass(frozen=True, slots=True)
class FlagRow:
    """One row of `klinesync flags`.

    name: of the flag.
    environment: name of its environment variable.
    default: as a text.
    value: the current value as a text; secrets are masked.
    source: where the value comes from.
    meaning: the flag's description.
    """

    name: str
    environment: str
    default: str
    value: str
    source: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration, right or wrong.

    flags: the values, with defaults in place of malformed values.
    given: by flag, the value that was given.
    accepted: `given` without malformed values.
    problems: what is wrong; the service starts only without problems.
    left_out: ignored variables of an orchestrator.
    """

    flags: RuntimeFlags
    given: Mapping[str, Given]
    accepted: Mapping[str, Given]
    problems: tuple[BadFlag, ...]
    left_out: tuple[str, ...]

    def source(self, name: str) -> str:
        """Where a flag's value comes from."""
        return self.accepted[name].source if name in self.accepted else "default"

    def rows(self) -> list[FlagRow]:
        """Every flag with its default, current value and source."""
        rows = []
        for name, field in RuntimeFlags.model_fields.items():
            default, value = default_of(name), getattr(self.flags, name)
            rows.append(
                FlagRow(
                    name,
                    f"{ENV_PREFIX}{name.upper()}",
                    flag_text(default),
                    MASK if is_secret(field) and value is not None else masked(flag_text(value)),
                    self.source(name),
                    field.description or "",
                )
            )
        return rows


def read_configuration(command_line: Mapping[str, object] | None = None) -> Configuration:
    """Read the configuration, right or wrong. Raises nothing."""
    sources = read_sources(command_line or {}, RuntimeFlags.model_fields)
    problems = list(sources.problems)
    given = dict(sources.given)
    flags = None
    while flags is None:
        try:
            flags = RuntimeFlags.model_validate({name: item.value for name, item in given.items()})
        except ValidationError as error:
            for name, reason in _reasons(error).items():
                problems.append(_refused(given.pop(name), reason))
    for name, reason in _unbuilt(flags).items():
        problems.append(_refused(given[name], reason))
    return Configuration(flags, sources.given, given, tuple(problems), tuple(sources.left_out))


def load_flags(command_line: Mapping[str, object] | None = None) -> RuntimeFlags:
    """The flags. Raises `BadFlag` for an unknown name, a malformed value or a part that is not built yet."""
    configuration = read_configuration(command_line)
    if configuration.left_out:
        log.info(
            "flags.left_out",
            "variables of an orchestrator are not flags, and are ignored: %s",
            ", ".join(configuration.left_out),
        )
    if configuration.problems:
        raise configuration.problems[0]
    return configuration.flags


def _reasons(error: ValidationError) -> dict[str, str]:
    """By flag, why its value is refused; empty when the list of allowed values is reason enough."""
    reasons: dict[str, str] = {}
    for detail in error.errors():
        reason = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else ""
        reasons.setdefault(str(detail["loc"][0]), reason)
    return reasons


def _refused(given: Given, reason: str) -> BadFlag:
    field = RuntimeFlags.model_fields[given.name]
    text = shown(given.value, secret=is_secret(field))
    because = f": {masked(reason)}" if reason else ""
    reason = f"{text} from {given.where} is refused{because}; allowed: {allowed(field)}"
    return BadFlag(given.name, reason, given.source)


def default_of(name: str) -> object:
    """A flag's default."""
    default: object = RuntimeFlags.model_fields[name].get_default(call_default_factory=True, validated_data={})
    return default


def flag_text(value: object) -> str:
    """A flag's value as it would be written in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def proxies_of(flags: RuntimeFlags) -> Proxies:
    """The proxies of this process' environment, none when they are switched off. Raises `BadFlag`."""
    return Proxies(os.environ if flags.enable_environment_proxies else None)


def sqlite_path(flags: RuntimeFlags) -> Path:
    """The file of a `sqlite:///` database_url; the path is absolute with three slashes or four."""
    return Path("/" + flags.database_url.removeprefix("sqlite://").lstrip("/"))


def whitelist(flags: RuntimeFlags) -> tuple[SeriesId, ...]:
    """The whitelist, of the flag or the file. Raises `BadFlag`."""
    path = flags.whitelist_path
    if path is None:
        return flags.whitelist
    if "whitelist" in flags.model_fields_set:
        raise BadFlag("whitelist_path", "the flag whitelist is set too; set only one of the two")
    try:
        if path.stat().st_size > MAX_WHITELIST_BYTES:
            raise BadFlag("whitelist_path", f"{path} is larger than {MAX_WHITELIST_BYTES} bytes")
        body = decode_json(path.read_bytes(), dict[str, tuple[str, ...]])
        return parse_series_list(body["series_ids"])
    except KeyError:
        raise BadFlag("whitelist_path", f'{path} has no "series_ids"') from None
    except OSError as error:
        raise BadFlag("whitelist_path", f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadFlag("whitelist_path", f"{path} cannot be used: {error}") from None


# Flags of parts that are not built yet: the part, and the accepted values beside the default.
_UNBUILT: dict[str, tuple[str, tuple[object, ...]]] = {
    "broker_url": ("a message broker for several processes", ()),
    "role": ("splitting the service over several processes", ()),
}


def _unbuilt(flags: RuntimeFlags) -> dict[str, str]:
    """By flag, why its value is not supported yet."""
    reasons = {}
    for name, (part, accepted) in _UNBUILT.items():
        value = getattr(flags, name)
        if value != default_of(name) and value not in accepted:
            reasons[name] = f"{part} is not built yet; leave {name} at its default"
    return reasons
