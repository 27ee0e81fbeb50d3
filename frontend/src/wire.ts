// The service's messages, parsed tolerantly: unknown types and fields are ignored, nulls are allowed, and a candle that
// is not six finite numbers is dropped.

import { asFields, type Fields, keyOf, listOf, numberOf, textOf } from "./json.ts";
import type {
  CandleOut,
  CandlesAnswer,
  ClientMessage,
  ErrorAnswer,
  GapState,
  PageGapAnswer,
  ServerMessage,
  WhitelistAnswer,
} from "./messages.ts";
import type { Candle, Series } from "./series.ts";

export type { GapState } from "./messages.ts";

/** Candles of one page of history. */
export const PAGE_CANDLES = 1000;

/** A message of the service, as far as the page needs it. */
export type Message =
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
      /** State of the work that the event reports, for example `succeeded`; null for an event that has none. */
      readonly state: string | null;
      /** Reason beside the message; null for an event that has none. */
      readonly detail: string | null;
    }
  | { readonly type: "error"; readonly series: string | null; readonly code: string; readonly message: string }
  | { readonly type: "pong" }
  | { readonly type: "unknown" };

/** A hole of stored candles: open times from `from` (inclusive) to `to` (exclusive). */
export interface DeclaredGap {
  readonly from: number;
  readonly to: number;
  readonly state: GapState;
}

export interface HistoryPage {
  readonly series: string | null;
  readonly candles: Candle[];
  /** Declared holes between these candles. */
  readonly gaps: DeclaredGap[];
}

const UNKNOWN: Message = { type: "unknown" };
const GAP_STATES: Readonly<Record<GapState, true>> = { unknown: true, healing: true, confirmed_empty: true, lost: true };

type Reader<Type> = (fields: Fields<Extract<ServerMessage, { type: Type }>>) => Message | null;

/** One reader for each type of message; a reader returns null for a message without a mandatory field. */
const READERS: { readonly [Type in ServerMessage["type"]]: Reader<Type> } = {
  candles_batch: ({ series_id, candles, revised }) =>
    candlesMessage(series_id, listOf(candles, parseCandle), revised),
  candle_closed: ({ series_id, candle, revised }) => candlesMessage(series_id, listOf([candle], parseCandle), revised),
  candle_forming: (fields) => {
    const series = textOf(fields.series_id);
    const candle = parseCandle(fields.candle);
    return series === null || candle === null ? null : { type: "forming", series, candle };
  },
  gap: (fields) => {
    const series = textOf(fields.series_id);
    if (series === null) return null;
    return {
      type: "gap",
      series,
      from: numberOf(fields.expected_next_time),
      to: numberOf(fields.actual_time),
      reason: textOf(fields.reason) ?? "missing",
      state: gapState(fields.state),
    };
  },
  subscribed: (fields) => {
    const series = textOf(fields.series_id);
    if (series === null) return null;
    return { type: "subscribed", series, head: numberOf(fields.head_time), stream: textOf(fields.stream) };
  },
  caught_up: () => null,
  system: (fields) => {
    const data = asFields<{ state: string; detail: string }>(fields.data);
    return {
      type: "system",
      series: textOf(fields.series_id),
      event: textOf(fields.event) ?? "",
      message: textOf(fields.message) ?? "",
      state: textOf(data?.state),
      detail: textOf(data?.detail),
    };
  },
  error: (fields) => ({
    type: "error",
    series: textOf(fields.series_id),
    code: textOf(fields.code) ?? "error",
    message: textOf(fields.message) ?? "the service gave no reason",
  }),
  pong: () => ({ type: "pong" }),
};

/** The message in a WebSocket frame; `unknown` for a frame that the page does not understand. */
export function parseMessage(text: string): Message {
  const fields = parseJson(text);
  const type = keyOf(READERS, fields?.type);
  return fields === null || type === null ? UNKNOWN : (READERS[type](fields) ?? UNKNOWN);
}

/** One page of history: the newest `limit` candles, those before `before`, or the oldest after `since` (both exclusive). */
export function historyPath(
  series: Series,
  { before, since, limit = PAGE_CANDLES }: { readonly before?: number; readonly since?: number; readonly limit?: number } = {},
): string {
  const start = since === undefined ? "" : `&since=${since}`;
  const end = before === undefined ? "" : `&before=${before}`;
  return `/api/market/candles?series_id=${encodeURIComponent(series.id)}${start}${end}&limit=${limit}`;
}

/** The body of `GET /api/market/candles`. */
export function parseHistory(body: unknown): HistoryPage {
  const fields = asFields<CandlesAnswer>(body);
  return {
    series: textOf(fields?.series_id),
    candles: listOf(fields?.candles, parseCandle),
    gaps: listOf(fields?.gaps, parseGap),
  };
}

/** The series ids in the body of `GET /api/market/whitelist`. */
export function parseWhitelist(body: unknown): string[] {
  return listOf(asFields<WhitelistAnswer>(body)?.series_ids, textOf);
}

/** The timeframes that the service derives from a base timeframe; `base` is null when it derives none. */
export interface Derived {
  readonly base: string | null;
  readonly timeframes: readonly string[];
}

/** The derived timeframes in the body of `GET /api/market/whitelist`. */
export function parseDerived(body: unknown): Derived {
  const fields = asFields<WhitelistAnswer>(body);
  return { base: textOf(fields?.derived_base_timeframe), timeframes: listOf(fields?.derived_timeframes, textOf) };
}

/** The sentence of an error answer. FastAPI's own answers hold a list of findings instead of a sentence. */
export function parseRefusal(status: number, body: unknown): string {
  const detail = asFields<ErrorAnswer>(body)?.detail;
  if (typeof detail === "string" && detail !== "") return detail;
  const findings = listOf(detail, (finding) => textOf(asFields<{ msg: string }>(finding)?.msg));
  return findings.length > 0 ? findings.join("; ") : `the service answered with status ${status}`;
}

/** Subscribes to closed candles after `since`, then live ones. */
export function subscribeMessage(series: string, since: number): string {
  return encode({ type: "subscribe", series_id: series, since, supports_batch: true, ack: true });
}

export function unsubscribeMessage(series: string): string {
  return encode({ type: "unsubscribe", series_id: series });
}

export const PING_MESSAGE = encode({ type: "ping" });

function encode(message: ClientMessage): string {
  return JSON.stringify(message);
}

function candlesMessage(id: unknown, candles: Candle[], revised: unknown): Message | null {
  const series = textOf(id);
  return series === null ? null : { type: "candles", series, candles, revised: revised === true };
}

function parseCandle(value: unknown): Candle | null {
  const fields = asFields<CandleOut>(value);
  if (fields === null) return null;
  const time = numberOf(fields.candle_time);
  const open = numberOf(fields.open);
  const high = numberOf(fields.high);
  const low = numberOf(fields.low);
  const close = numberOf(fields.close);
  if (time === null || open === null || high === null || low === null || close === null) return null;
  return { time, open, high, low, close, volume: numberOf(fields.volume) ?? 0 };
}

function parseGap(value: unknown): DeclaredGap | null {
  const fields = asFields<PageGapAnswer>(value);
  const from = numberOf(fields?.start_time);
  const to = numberOf(fields?.end_time);
  return from === null || to === null || to <= from ? null : { from, to, state: gapState(fields?.state) };
}

function gapState(value: unknown): GapState {
  return keyOf(GAP_STATES, value) ?? "unknown";
}

function parseJson(text: string): Fields<ServerMessage> | null {
  try {
    return asFields<ServerMessage>(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}
