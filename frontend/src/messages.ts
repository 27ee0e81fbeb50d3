// The messages of the service, as they are on the wire. Generated from its schemas by `make types`: do not edit.

export interface BackfillAnswer {
  readonly state: "failed" | "idle" | "running" | "succeeded";
  readonly progress_pct: number | null;
  readonly started_at: number | null;
  readonly updated_at: number | null;
  readonly reason: string | null;
  readonly note: string | null;
  readonly error: string | null;
  readonly recent: boolean;
  readonly start_missing_seconds: number | null;
  readonly start_missing_candles: number | null;
  readonly current_missing_seconds: number | null;
  readonly current_missing_candles: number | null;
  readonly candles: number | null;
  readonly candles_per_s: number | null;
  readonly left_s: number | null;
}

export interface CandleBody {
  readonly candle_time: number;
  readonly open: number;
  readonly high: number;
  readonly low: number;
  readonly close: number;
  readonly volume: number;
  readonly quote_volume?: number | null;
  readonly trades?: number | null;
  readonly taker_buy_volume?: number | null;
  readonly taker_buy_quote_volume?: number | null;
}

export interface CandleClosed {
  readonly type: "candle_closed";
  readonly series_id: string;
  readonly candle: CandleOut;
  readonly revised?: boolean;
}

export interface CandleForming {
  readonly type: "candle_forming";
  readonly series_id: string;
  readonly candle: CandleOut;
}

export interface CandleOut {
  readonly candle_time: number;
  readonly open: number;
  readonly high: number;
  readonly low: number;
  readonly close: number;
  readonly volume: number;
}

export interface CandlesAnswer {
  readonly series_id: string;
  readonly server_head_time: number | null;
  readonly candles: readonly CandleBody[];
  readonly gaps: readonly PageGapAnswer[];
}

export interface CandlesBatch {
  readonly type: "candles_batch";
  readonly series_id: string;
  readonly candles: readonly CandleOut[];
  readonly revised?: boolean;
}

export interface CaughtUp {
  readonly type: "caught_up";
  readonly series_id: string;
  readonly head_time: number | null;
}

export type ClientMessage = SubscribeRequest | UnsubscribeRequest | PingRequest;

export interface CursorAnswer {
  readonly version_id: number;
  readonly point_time: number;
}

export interface DrawDeltaAnswer {
  readonly schema_version: 1;
  readonly series_id: string;
  readonly epoch: number;
  readonly to_candle_id: string | null;
  readonly to_candle_time: number | null;
  readonly active_ids: readonly string[];
  readonly instruction_catalog_patch: readonly InstructionAnswer[];
  readonly series_points: Readonly<Record<string, readonly PointAnswer[]>>;
  readonly next_cursor: CursorAnswer;
}

export interface ErrorAnswer {
  readonly detail: string;
  readonly code: string;
}

export interface ErrorMessage {
  readonly type: "error";
  readonly code: string;
  readonly message: string;
  readonly series_id?: string;
  readonly detail?: string;
}

export interface FactorAnswer {
  readonly key: string;
  readonly label: string;
  readonly default_visible: boolean;
  readonly pane?: "own" | "price" | null;
  readonly sub_features: readonly FeatureAnswer[];
}

export interface FactorCatalogAnswer {
  readonly schema_version: 1;
  readonly factors: readonly FactorAnswer[];
}

export interface FeatureAnswer {
  readonly key: string;
  readonly label: string;
  readonly default_visible: boolean;
  readonly style?: "dashed" | "histogram" | "line" | null;
}

export interface GapMessage {
  readonly type: "gap";
  readonly series_id: string;
  readonly expected_next_time: number;
  readonly actual_time: number;
  readonly reason: "missing" | "truncated";
  readonly state: GapState;
}

export type GapState = "confirmed_empty" | "healing" | "lost" | "unknown";

export interface HealthAnswer {
  readonly series_id: string;
  readonly timeframe_seconds: number;
  readonly now_time: number;
  readonly expected_latest_closed_time: number;
  readonly head_time: number | null;
  readonly lag_seconds: number | null;
  readonly missing_seconds: number | null;
  readonly missing_candles: number | null;
  readonly status: "green" | "red" | "yellow";
  readonly status_reason: "backfill_recent" | "backfill_running" | "exchange_refuses" | "exchange_unreachable" | "gap_healing" | "gap_lost" | "head_ahead_of_closed_window" | "interior_gap" | "lagging_no_recent_backfill" | "missing_head" | "store_damaged" | "up_to_date";
  readonly detail: string | null;
  readonly backfill: BackfillAnswer;
  readonly stream: StreamAnswer;
  readonly gaps: MissingCandles;
}

export interface InstructionAnswer {
  readonly version_id: number;
  readonly instruction_id: string;
  readonly kind: "marker" | "polyline";
  readonly visible_time: number;
  readonly definition: MarkerAnswer | PolylineAnswer;
}

export interface MarkerAnswer {
  readonly type: "marker";
  readonly feature: string;
  readonly time: number;
  readonly position: "aboveBar" | "belowBar";
  readonly color: string;
  readonly shape: "arrowDown" | "arrowUp" | "circle";
  readonly text: string;
  readonly size: number;
}

export interface MarketStatus {
  readonly exchange: string;
  readonly market: string;
  readonly state: "degraded" | "idle" | "live" | "unreachable";
  readonly since: number | null;
  readonly last_frame_at: number | null;
  readonly detail: string | null;
  readonly streams: StreamCounts;
  readonly rest: RestUse;
}

export interface MissingCandles {
  readonly unknown: number;
  readonly healing: number;
  readonly confirmed_empty: number;
  readonly lost: number;
}

export interface PageGapAnswer {
  readonly start_time: number;
  readonly end_time: number;
  readonly state: GapState;
}

export interface PingRequest {
  readonly type: "ping";
}

export interface PointAnswer {
  readonly time: number;
  readonly value: number;
}

export interface PolylineAnswer {
  readonly type: "polyline";
  readonly feature: string;
  readonly points: readonly PointAnswer[];
  readonly color: string;
  readonly lineWidth: number;
  readonly lineStyle?: "dashed" | "dotted" | "solid" | null;
  readonly entryDirection?: -1 | 1 | null;
}

export interface Pong {
  readonly type: "pong";
}

export interface RestUse {
  readonly weight_used: number | null;
  readonly weight_limit: number | null;
  readonly banned_until: number | null;
}

export interface ScrubStatus {
  readonly progress_pct?: number | null;
  readonly started_time?: number | null;
  readonly finished_time?: number | null;
}

export interface SeriesCounts {
  readonly followed: number;
  readonly green: number;
  readonly yellow: number;
  readonly red: number;
}

export type ServerMessage = CandlesBatch | CandleClosed | CandleForming | GapMessage | Subscribed | CaughtUp | SystemEvent | ErrorMessage | Pong;

export interface ServiceStatus {
  readonly status: "green" | "red" | "yellow";
  readonly status_reason: "clocks_differ" | "exchange_refuses" | "exchange_unreachable" | "handshakes_fail" | "idle" | "ingest_off" | "live" | "part_restarted" | "series_red" | "series_yellow" | "store_damaged" | "store_unavailable" | "stream_reconnecting" | "stream_rest_fallback" | "stream_stale";
  readonly detail: string;
  readonly now_time: number;
  readonly version: string;
  readonly exchanges: readonly MarketStatus[];
  readonly series: SeriesCounts;
  readonly store: StoreStatus;
}

export interface StoreStatus {
  readonly ok: boolean;
  readonly detail: string | null;
  readonly queued_candles: number;
  readonly scrub: ScrubStatus;
}

export interface StreamAnswer {
  readonly state: string;
  readonly since: number | null;
  readonly last_frame_at: number | null;
  readonly detail: string | null;
}

export interface StreamCounts {
  readonly live: number;
  readonly subscribed: number;
  readonly stale: number;
  readonly rest_fallback: number;
  readonly reconnecting: number;
  readonly delisted: number;
}

export interface SubscribeRequest {
  readonly type: "subscribe";
  readonly series_id: string;
  readonly since?: number | null;
  readonly supports_batch?: boolean | null;
  readonly ack?: boolean | null;
  readonly what?: readonly ("closed" | "corrections" | "forming")[] | null;
  readonly fields?: "full" | null;
}

export interface Subscribed {
  readonly type: "subscribed";
  readonly series_id: string;
  readonly head_time: number | null;
  readonly stream: string;
}

export interface SystemEvent {
  readonly type: "system";
  readonly series_id: string;
  readonly event: "backfill.progress" | "factor.rebuild" | "history.extended" | "slow" | "stream.delisted" | "stream.live" | "stream.off" | "stream.reconnecting" | "stream.rest_fallback" | "stream.stale" | "stream.subscribed";
  readonly message: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface UnsubscribeRequest {
  readonly type: "unsubscribe";
  readonly series_id: string;
}

export interface WhitelistAnswer {
  readonly series_ids: readonly string[];
  readonly derived_base_timeframe: string;
  readonly derived_timeframes: readonly string[];
}
