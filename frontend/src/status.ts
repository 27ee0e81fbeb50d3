// The state of the service and the health of one series: `GET /api/market/status` and `GET /api/market/health`, parsed
// tolerantly. A missing value becomes null, never a good state.

import { asFields, keyOf, listOf, numberOf, textOf } from "./json.ts";
import type {
  BackfillAnswer,
  HealthAnswer,
  MarketStatus,
  MissingCandles,
  ServiceStatus as ServiceStatusAnswer,
  StoreStatus,
  StreamAnswer,
} from "./messages.ts";

export type Level = ServiceStatusAnswer["status"];
/** Codes of `status_reason` that this page has sentences for. */
export type ServiceReason = ServiceStatusAnswer["status_reason"];
export type HealthReason = HealthAnswer["status_reason"];
export type ExchangeState = MarketStatus["state"] | "unknown";

/** One market of one exchange. */
export interface ExchangeStatus {
  readonly exchange: string;
  readonly market: string;
  readonly state: ExchangeState;
  /** Reason as a sentence; null when the service gives none. */
  readonly detail: string | null;
}

export interface ServiceStatus {
  /** null for a level that this page does not know. */
  readonly level: Level | null;
  readonly reason: string | null;
  readonly exchanges: readonly ExchangeStatus[];
  /** null when the service does not report the state of its store. */
  readonly storeOk: boolean | null;
  readonly storeDetail: string | null;
}

/** Missing candles of a series, counted by state. */
export interface GapCounts {
  readonly unknown: number;
  readonly healing: number;
  readonly confirmedEmpty: number;
  readonly lost: number;
}

export interface SeriesHealth {
  readonly series: string;
  readonly level: Level | null;
  readonly reason: string | null;
  /** `stream.state`: off, subscribed, live, stale, rest_fallback, reconnecting, delisted. */
  readonly stream: string | null;
  readonly streamDetail: string | null;
  /** Age of the stream's newest frame at the time of the answer, in seconds of the exchange. */
  readonly frameAge: number | null;
  readonly backfill: string | null;
  readonly gaps: GapCounts;
}

const LEVELS: Readonly<Record<Level, true>> = { green: true, yellow: true, red: true };
const EXCHANGE_STATES: Readonly<Record<MarketStatus["state"], true>> = {
  live: true,
  degraded: true,
  unreachable: true,
  idle: true,
};

/** The body of `GET /api/market/status`; null for anything else. */
export function parseStatus(body: unknown): ServiceStatus | null {
  const fields = asFields<ServiceStatusAnswer>(body);
  if (fields === null || typeof fields.status !== "string") return null;
  const store = asFields<StoreStatus>(fields.store);
  const ok = store?.ok;
  return {
    level: keyOf(LEVELS, fields.status),
    reason: textOf(fields.status_reason),
    exchanges: listOf(fields.exchanges, parseExchange),
    storeOk: typeof ok === "boolean" ? ok : null,
    storeDetail: textOf(store?.detail),
  };
}

/** The body of `GET /api/market/health`; null for anything else. */
export function parseHealth(body: unknown): SeriesHealth | null {
  const fields = asFields<HealthAnswer>(body);
  const series = textOf(fields?.series_id);
  if (fields === null || series === null) return null;
  const stream = asFields<StreamAnswer>(fields.stream);
  const gaps = asFields<MissingCandles>(fields.gaps);
  const now = numberOf(fields.now_time);
  const frame = numberOf(stream?.last_frame_at);
  return {
    series,
    level: keyOf(LEVELS, fields.status),
    reason: textOf(fields.status_reason),
    stream: textOf(stream?.state),
    streamDetail: textOf(stream?.detail),
    frameAge: now === null || frame === null ? null : Math.max(0, now - frame),
    backfill: textOf(asFields<BackfillAnswer>(fields.backfill)?.state),
    gaps: {
      unknown: numberOf(gaps?.unknown) ?? 0,
      healing: numberOf(gaps?.healing) ?? 0,
      confirmedEmpty: numberOf(gaps?.confirmed_empty) ?? 0,
      lost: numberOf(gaps?.lost) ?? 0,
    },
  };
}

function parseExchange(value: unknown): ExchangeStatus | null {
  const fields = asFields<MarketStatus>(value);
  const exchange = textOf(fields?.exchange);
  const market = textOf(fields?.market);
  if (fields === null || exchange === null || market === null) return null;
  const state = keyOf(EXCHANGE_STATES, fields.state) ?? "unknown";
  return { exchange, market, state, detail: textOf(fields.detail) || null };
}
