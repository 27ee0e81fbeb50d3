// The service's messages, read tolerantly: unknown types and fields are passed over, nulls are allowed, and a
// candle that is not six finite numbers is dropped rather than drawn.

import { asFields, type Fields, numberOf, textOf } from "./json.ts";
import type { Candle } from "./series.ts";

export type GapState = "unknown" | "healing" | "confirmed_empty" | "lost";

export type ServerMessage =
  | { readonly type: "candles"; readonly series: string; readonly candles: Candle[]; readonly revised: boolean }
  | { readonly type: "forming"; readonly series: string; readonly candle: Candle }
  | {
      readonly type: "gap";
      readonly series: string;
      readonly from: number | null;
      readonly to: number | null;
      readonly reason: string;
      readonly state: GapState;
    }
  | { readonly type: "subscribed"; readonly series: string; readonly head: number | null; readonly stream: string | null }
  | {
      readonly type: "system";
      readonly series: string | null;
      readonly event: string;
      readonly message: string;
      /** Where what is told stands, `succeeded` say; null where the event has no such thing. */
      readonly state: string | null;
      /** A reason of the event beside its message; null where the event has none. */
      readonly detail: string | null;
    }
  | { readonly type: "error"; readonly series: string | null; readonly code: string; readonly message: string }
  | { readonly type: "pong" }
  | { readonly type: "unknown" };

/** A hole of stored candles: open times from `from` up to, but not at, `to`. */
export interface DeclaredGap {
  readonly from: number;
  readonly to: number;
  readonly state: GapState;
}

export interface History {
  readonly series: string | null;
  readonly candles: Candle[];
  /** What is known of the holes between these candles. */
  readonly gaps: DeclaredGap[];
}

const UNKNOWN: ServerMessage = { type: "unknown" };

/** What a frame says; `unknown` for anything that this page does not understand. */
export function parseMessage(text: string): ServerMessage {
  const fields = parseJson(text);
  if (fields === null) return UNKNOWN;
  const series = textOf(fields["series_id"]);
  switch (fields["type"]) {
    case "candles_batch":
      return series === null ? UNKNOWN : { type: "candles", series, candles: parseCandles(fields["candles"]), revised: fields["revised"] === true };
    case "candle_closed":
      return series === null
        ? UNKNOWN
        : { type: "candles", series, candles: parseCandles([fields["candle"]]), revised: fields["revised"] === true };
    case "candle_forming": {
      const candle = parseCandle(fields["candle"]);
      return series === null || candle === null ? UNKNOWN : { type: "forming", series, candle };
    }
    case "gap":
      return series === null
        ? UNKNOWN
        : {
            type: "gap",
            series,
            from: numberOf(fields["expected_next_time"]),
            to: numberOf(fields["actual_time"]),
            reason: textOf(fields["reason"]) ?? "missing",
            state: gapState(fields["state"]),
          };
    case "subscribed":
      return series === null
        ? UNKNOWN
        : { type: "subscribed", series, head: numberOf(fields["head_time"]), stream: textOf(fields["stream"]) };
    case "system":
      return {
        type: "system",
        series,
        event: textOf(fields["event"]) ?? "",
        message: textOf(fields["message"]) ?? "",
        state: textOf(asFields(fields["data"])?.["state"]),
        detail: textOf(asFields(fields["data"])?.["detail"]),
      };
    case "error":
      return {
        type: "error",
        series,
        code: textOf(fields["code"]) ?? "error",
        message: textOf(fields["message"]) ?? "the service gave no reason",
      };
    case "pong":
      return { type: "pong" };
    default:
      return UNKNOWN;
  }
}

/** The body of `GET /api/market/candles`. */
export function parseHistory(body: unknown): History {
  const fields = asFields(body);
  const gaps = fields?.["gaps"];
  return {
    series: textOf(fields?.["series_id"]),
    candles: parseCandles(fields?.["candles"]),
    gaps: Array.isArray(gaps) ? gaps.map(parseGap).filter((gap) => gap !== null) : [],
  };
}

/** The body of `GET /api/market/whitelist`. */
export function parseWhitelist(body: unknown): string[] {
  const ids = asFields(body)?.["series_ids"];
  return Array.isArray(ids) ? ids.filter((id): id is string => typeof id === "string") : [];
}

/** What the service computes from a base timeframe; `base` is null when it computes nothing. */
export interface Derived {
  readonly base: string | null;
  readonly timeframes: readonly string[];
}

export function parseDerived(body: unknown): Derived {
  const fields = asFields(body);
  const timeframes = fields?.["derived_timeframes"];
  return {
    base: textOf(fields?.["derived_base_timeframe"]),
    timeframes: Array.isArray(timeframes) ? timeframes.filter((one): one is string => typeof one === "string") : [],
  };
}

/** The sentence of an error answer. FastAPI's own answers hold a list of findings instead of a sentence. */
export function parseRefusal(status: number, body: unknown): string {
  const detail = asFields(body)?.["detail"];
  if (typeof detail === "string" && detail !== "") return detail;
  if (Array.isArray(detail)) {
    const findings = detail.map((finding) => textOf(asFields(finding)?.["msg"])).filter((finding) => finding !== null);
    if (findings.length > 0) return findings.join("; ");
  }
  return `the service answered with status ${status}`;
}

export function subscribeMessage(series: string, since: number): string {
  return JSON.stringify({ type: "subscribe", series_id: series, since, supports_batch: true, ack: true });
}

export function unsubscribeMessage(series: string): string {
  return JSON.stringify({ type: "unsubscribe", series_id: series });
}

export const PING_MESSAGE = JSON.stringify({ type: "ping" });

function parseCandles(value: unknown): Candle[] {
  return Array.isArray(value) ? value.map(parseCandle).filter((candle) => candle !== null) : [];
}

function parseCandle(value: unknown): Candle | null {
  const fields = asFields(value);
  if (fields === null) return null;
  const time = numberOf(fields["candle_time"]);
  const open = numberOf(fields["open"]);
  const high = numberOf(fields["high"]);
  const low = numberOf(fields["low"]);
  const close = numberOf(fields["close"]);
  if (time === null || open === null || high === null || low === null || close === null) return null;
  return { time, open, high, low, close, volume: numberOf(fields["volume"]) ?? 0 };
}

function parseGap(value: unknown): DeclaredGap | null {
  const fields = asFields(value);
  const from = numberOf(fields?.["start_time"]);
  const to = numberOf(fields?.["end_time"]);
  return from === null || to === null || to <= from ? null : { from, to, state: gapState(fields?.["state"]) };
}

function gapState(value: unknown): GapState {
  return value === "healing" || value === "confirmed_empty" || value === "lost" ? value : "unknown";
}

function parseJson(text: string): Fields | null {
  try {
    return asFields(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}
