// The state of the service and of one series as the service tells it: `GET /api/market/status` and
// `GET /api/market/health`, read tolerantly. What is missing becomes null, never a good state.

import { asFields, numberOf, textOf } from "./json.ts";

export type Level = "green" | "yellow" | "red";
export type ExchangeState = "live" | "degraded" | "unreachable" | "idle" | "unknown";

/** One market of one exchange. */
export interface ExchangeStatus {
  readonly exchange: string;
  readonly market: string;
  readonly state: ExchangeState;
  /** Why, in a sentence; null when nothing is to be said. */
  readonly detail: string | null;
}

export interface ServiceStatus {
  /** null for a word that this page does not know. */
  readonly level: Level | null;
  readonly reason: string | null;
  readonly exchanges: readonly ExchangeStatus[];
  /** null where the service does not say. */
  readonly storeOk: boolean | null;
  readonly storeDetail: string | null;
}

/** Missing candles of a series, by what is known of them. */
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
  /** How old the newest frame of the stream was when this was told, in seconds of the exchange. */
  readonly frameAge: number | null;
  readonly backfill: string | null;
  readonly gaps: GapCounts;
}

/** The body of `GET /api/market/status`; null when it is something else. */
export function parseStatus(body: unknown): ServiceStatus | null {
  const fields = asFields(body);
  if (fields === null || typeof fields["status"] !== "string") return null;
  const { exchanges } = fields;
  const store = asFields(fields["store"]);
  const ok = store?.["ok"];
  return {
    level: levelOf(fields["status"]),
    reason: textOf(fields["status_reason"]),
    exchanges: Array.isArray(exchanges) ? exchanges.map(parseExchange).filter((one) => one !== null) : [],
    storeOk: typeof ok === "boolean" ? ok : null,
    storeDetail: textOf(store?.["detail"]),
  };
}

/** The body of `GET /api/market/health`; null when it is something else. */
export function parseHealth(body: unknown): SeriesHealth | null {
  const fields = asFields(body);
  const series = textOf(fields?.["series_id"]);
  if (fields === null || series === null) return null;
  const stream = asFields(fields["stream"]);
  const gaps = asFields(fields["gaps"]);
  const now = numberOf(fields["now_time"]);
  const frame = numberOf(stream?.["last_frame_at"]);
  const count = (name: string): number => numberOf(gaps?.[name]) ?? 0;
  return {
    series,
    level: levelOf(fields["status"]),
    reason: textOf(fields["status_reason"]),
    stream: textOf(stream?.["state"]),
    streamDetail: textOf(stream?.["detail"]),
    frameAge: now === null || frame === null ? null : Math.max(0, now - frame),
    backfill: textOf(asFields(fields["backfill"])?.["state"]),
    gaps: { unknown: count("unknown"), healing: count("healing"), confirmedEmpty: count("confirmed_empty"), lost: count("lost") },
  };
}

function parseExchange(value: unknown): ExchangeStatus | null {
  const fields = asFields(value);
  const exchange = textOf(fields?.["exchange"]);
  const market = textOf(fields?.["market"]);
  if (fields === null || exchange === null || market === null) return null;
  const { state } = fields;
  const known = state === "live" || state === "degraded" || state === "unreachable" || state === "idle";
  return { exchange, market, state: known ? state : "unknown", detail: textOf(fields["detail"]) || null };
}

function levelOf(value: unknown): Level | null {
  return value === "green" || value === "yellow" || value === "red" ? value : null;
}
