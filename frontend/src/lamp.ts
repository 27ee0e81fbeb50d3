// The lamp: what the page may claim about the data it shows, judged from the connection, the service's status, the stream
// and the health of the series. Pure; `now` is in milliseconds of the page's clock. "Live" needs a report of the service, not
// older than a few seconds, that the exchange and the stream are live; everything that is not known is shown as unknown.

import type { Connection } from "./connection.ts";
import { exchangeName, formatAge, formatClock, marketName } from "./format.ts";
import { keyOf } from "./json.ts";
import type { Series } from "./series.ts";
import type { ExchangeStatus, HealthReason, SeriesHealth, ServiceReason, ServiceStatus } from "./status.ts";
import { type Answered, type Polled, STATUS_STALE_MS } from "./status-feed.ts";

/** `off`: stored candles are shown, and nothing is followed. */
export type Tone = "good" | "warn" | "bad" | "off" | "unknown";

/** Everything that the lamp is judged from. */
export interface Evidence {
  readonly connection: Connection;
  readonly status: Polled<ServiceStatus>;
  readonly health: Polled<SeriesHealth>;
  readonly series: Series | null;
  /** The newest state of the stream that the WebSocket reported; null for none since the connection or series is new. */
  readonly stream: StreamReport | null;
  /** When the last candle of the series came, closed or forming. */
  readonly receivedAt: number | null;
}

/** State of the upstream of the series (`stream.state` of its health), and a sentence of the service. */
export interface StreamReport {
  readonly state: string;
  readonly detail: string | null;
  readonly at: number;
}

/** One line of the status panel. */
export interface Fact {
  readonly name: string;
  readonly text: string;
  readonly tone: Tone;
}

export interface Lamp {
  readonly tone: Tone;
  readonly label: string;
  /** Seconds since the last candle of the series; null before the first. */
  readonly age: number | null;
  /** Reason as a sentence; null for none. */
  readonly reason: string | null;
  /** Whether the shown candles may lag behind the exchange. */
  readonly stale: boolean;
  readonly facts: readonly Fact[];
}

interface Verdict {
  readonly tone: Tone;
  readonly label: string;
  readonly reason: string | null;
  /** Live candles of the series come, in spite of the trouble. */
  readonly live?: boolean;
}

const CHECKING: Verdict = { tone: "unknown", label: "Checking", reason: null };
/** Age of the last candle at which the candles are stale when the state of the service is unknown, in seconds. */
const CANDLE_STALE_S = 15;
const LIVE: Verdict = { tone: "good", label: "Live", reason: null, live: true };

/** States of a stream without live candles: a label, and a sentence for when the service gives none. */
const STREAMS: Readonly<Record<string, Verdict>> = {
  stale: { tone: "warn", label: "Stale", reason: "The exchange's stream of this series is silent." },
  rest_fallback: { tone: "warn", label: "Over REST", reason: "The exchange's stream is silent; closed candles come over REST." },
  reconnecting: { tone: "warn", label: "Reconnecting", reason: "The service is reconnecting to the exchange." },
  subscribed: { tone: "warn", label: "Waiting", reason: "The stream is subscribed; its first candle has not arrived yet." },
  delisted: { tone: "off", label: "Not traded", reason: "The exchange does not trade this symbol; the stored candles are shown." },
  off: { tone: "off", label: "Stored only", reason: "This series is not followed; the stored candles are shown." },
};

/** Reasons of a series' health in words. */
const HEALTH: Readonly<Record<HealthReason, string>> = {
  up_to_date: "up to date",
  backfill_running: "history is being fetched",
  backfill_recent: "history was fetched a moment ago; the newest candles are still missing",
  head_ahead_of_closed_window: "the newest candle is ahead of the exchange's clock",
  gap_healing: "missing candles are being fetched",
  gap_lost: "some candles are lost: no source has them any more",
  interior_gap: "candles are missing, and nobody is fetching them",
  missing_head: "nothing is stored yet",
  lagging_no_recent_backfill: "the newest candles are missing, and nobody is fetching them",
  store_damaged: "a part of the stored candles is damaged",
  exchange_refuses: "the exchange refuses the service",
  exchange_unreachable: "the exchange is unreachable",
};

/** Reasons of the service's status in words. */
const SERVICE: Readonly<Record<ServiceReason, string>> = {
  store_unavailable: "the store does not answer",
  exchange_refuses: "an exchange refuses the service",
  exchange_unreachable: "an exchange is unreachable",
  store_damaged: "a part of the store is damaged",
  series_red: "a followed series is incomplete",
  handshakes_fail: "connections to an exchange fail, though its REST answers",
  stream_reconnecting: "a stream is reconnecting",
  stream_stale: "a stream is silent",
  stream_rest_fallback: "a stream is silent; its candles come over REST",
  clocks_differ: "the clocks of an exchange differ",
  part_restarted: "a part of the service was restarted after a defect",
  series_yellow: "a followed series is catching up",
  ingest_off: "nothing is followed: ingest is off",
  idle: "nothing is followed",
  live: "everything that is followed is live",
};

/** The lamp at `now`. */
export function lampOf(evidence: Evidence, now: number): Lamp {
  const age = ageOf(evidence, now);
  const verdict = verdictOf(evidence, now);
  const { tone, label, reason, live = false } = verdict;
  // While the state of the service is unknown, the age of the page's own candles decides.
  const stale = tone === "unknown" ? age === null || age > CANDLE_STALE_S : !live;
  return { tone, label, reason, age, stale, facts: factsOf(evidence, now, age) };
}

/** Age of the last candle that the page received; before the first, of the last frame that the service received. */
function ageOf({ receivedAt, health, series }: Evidence, now: number): number | null {
  if (receivedAt !== null) return Math.max(0, Math.floor((now - receivedAt) / 1000));
  if (health.kind !== "answered" || health.value.series !== series?.id || health.value.frameAge === null) return null;
  return Math.floor(health.value.frameAge + Math.max(0, now - health.at) / 1000);
}

function verdictOf(evidence: Evidence, now: number): Verdict {
  const { connection, status, series } = evidence;
  if (connection.phase !== "live") {
    if (!connection.everLive && connection.attempt === 0) return { tone: "unknown", label: "Connecting", reason: null };
    const since = connection.downSince === null ? "" : ` since ${formatClock(connection.downSince)} UTC`;
    return { tone: "bad", label: "Not connected", reason: `No connection to the service${since}.` };
  }
  const stream = newestStream(evidence);
  const notLive = stream === null ? null : (STREAMS[stream.state] ?? null);
  const streamTrouble = notLive === null ? null : { ...notLive, reason: sentence(stream?.detail) ?? notLive.reason };
  if (status.kind === "none") return CHECKING;
  if (status.kind === "absent") {
    const reason = "This service is an older version: it does not report the state of its exchanges.";
    return streamTrouble ?? { tone: "unknown", label: "State unknown", reason };
  }
  const silence = now - status.at;
  if (silence > STATUS_STALE_MS) {
    const reason = `The service has not reported its state for ${formatAge(silence / 1000)}.`;
    return { tone: "unknown", label: "State unknown", reason };
  }
  const { value } = status;
  if (value.storeOk === false) {
    return { tone: "bad", label: "Store fails", reason: sentence(value.storeDetail) ?? "The store of the service does not answer." };
  }
  if (series === null) return elsewhere(status) ?? { ...LIVE, label: "Service up" };
  const exchange = exchangeOf(value, series);
  const upstream = exchange === null ? null : exchangeTrouble(exchange);
  // A dead exchange is the cause of its streams' states; a silent stream is more specific than a degraded exchange.
  if (upstream?.tone === "bad") return upstream;
  if (streamTrouble !== null) return streamTrouble;
  if (upstream !== null) return upstream;
  if (stream === null && evidence.health.kind === "none") return CHECKING;
  if (stream === null || exchange === null) {
    return { tone: "unknown", label: "State unknown", reason: "The service does not report whether this series is followed." };
  }
  return healthTrouble(evidence) ?? elsewhere(status) ?? LIVE;
}

/** The newest report on the stream: of the WebSocket, or of a later health. */
function newestStream({ stream, health, series }: Evidence): StreamReport | null {
  const polled =
    health.kind === "answered" && health.value.series === series?.id && health.value.stream !== null
      ? { state: health.value.stream, detail: health.value.streamDetail, at: health.at }
      : null;
  if (stream === null || polled === null) return stream ?? polled;
  return polled.at > stream.at ? polled : stream;
}

function exchangeOf(status: ServiceStatus, series: Series): ExchangeStatus | null {
  return status.exchanges.find(({ exchange, market }) => exchange === series.exchange && market === series.market) ?? null;
}

function exchangeTrouble({ exchange, market, state, detail }: ExchangeStatus): Verdict | null {
  const name = nameOf(exchange, market);
  const given = sentence(detail);
  switch (state) {
    case "live":
      return null;
    case "degraded":
      return { tone: "warn", label: "Degraded", reason: given ?? `The connection to ${name} is impaired.` };
    case "unreachable":
      return { tone: "bad", label: "Exchange down", reason: given ?? `${name} sends neither candles nor answers.` };
    case "idle":
      return { tone: "off", label: "Stored only", reason: given ?? `Nothing of ${name} is followed; the stored candles are shown.` };
    case "unknown":
      return { tone: "unknown", label: "State unknown", reason: given ?? `The service does not report the state of ${name}.` };
    default:
      return state satisfies never;
  }
}

function healthTrouble({ health, series }: Evidence): Verdict | null {
  if (health.kind !== "answered" || health.value.series !== series?.id) return null;
  const { level, reason } = health.value;
  // A candle that has just closed may be in flight when the health is computed: trouble needs two answers in a row.
  if ((level !== "red" && level !== "yellow") || health.at === health.since) return null;
  return {
    tone: level === "red" ? "bad" : "warn",
    label: level === "red" ? "Incomplete" : "Catching up",
    reason: sentence(healthWords(reason)),
    live: true,
  };
}

/** Trouble elsewhere in the service: the shown series itself is live. */
function elsewhere({ value: { level, reason }, at, since }: Answered<ServiceStatus>): Verdict | null {
  if (level === "green" || at === since) return null;
  const trouble = sentence(serviceWords(reason)) ?? "Another part of the service is in trouble.";
  return { tone: "warn", label: "Live, trouble elsewhere", reason: trouble, live: true };
}

function factsOf(evidence: Evidence, now: number, age: number | null): Fact[] {
  const { connection, status, health, series } = evidence;
  const facts: Fact[] = [
    connection.phase === "live"
      ? { name: "Page", text: "connected to the service", tone: "good" }
      : { name: "Page", text: "not connected to the service", tone: "bad" },
  ];
  const fresh = status.kind === "answered" && now - status.at <= STATUS_STALE_MS && connection.phase === "live";
  if (fresh) {
    const { level, reason, storeOk, storeDetail } = status.value;
    if (storeOk !== null) {
      facts.push({ name: "Store", text: storeDetail || (storeOk ? "answers" : "does not answer"), tone: storeOk ? "good" : "bad" });
    }
    for (const exchange of status.value.exchanges) {
      const { tone } = exchangeTrouble(exchange) ?? LIVE;
      facts.push({ name: nameOf(exchange.exchange, exchange.market), text: exchange.detail ?? exchange.state, tone });
    }
    facts.push({ name: "Service", text: serviceWords(reason) || (level ?? "unknown"), tone: toneOf(level) });
  } else {
    facts.push({ name: "Service", text: status.kind === "absent" ? "does not report its state" : "state unknown", tone: "unknown" });
  }
  if (series !== null) {
    const stream = newestStream(evidence);
    if (stream !== null && fresh) {
      const { tone } = STREAMS[stream.state] ?? LIVE;
      facts.push({ name: "Stream", text: stream.detail || stream.state.replaceAll("_", " "), tone });
    }
    if (health.kind === "answered" && fresh) {
      facts.push({ name: "Candles", text: healthWords(health.value.reason), tone: toneOf(health.value.level) });
    }
    const ago = age === null ? "no candle yet" : `${formatAge(age)} ago`;
    facts.push({ name: "Last update", text: ago, tone: "off" });
  }
  return facts;
}

function nameOf(exchange: string, market: string): string {
  return `${exchangeName(exchange)} ${marketName(market).toLowerCase()}`;
}

function toneOf(level: ServiceStatus["level"]): Tone {
  return level === null ? "unknown" : ({ green: "good", yellow: "warn", red: "bad" } as const)[level];
}

function healthWords(reason: string | null): string {
  if (reason === null) return "unknown";
  const code = keyOf(HEALTH, reason);
  return code === null ? serviceWords(reason) : HEALTH[code];
}

/** A code such as `exchange_unreachable` as words; a sentence stays. */
function serviceWords(reason: string | null): string {
  if (reason === null) return "";
  const code = keyOf(SERVICE, reason);
  return code === null ? reason.replaceAll("_", " ") : SERVICE[code];
}

/** With a capital letter and a full stop; null for no text. */
function sentence(text: string | null | undefined): string | null {
  if (text === null || text === undefined || text === "") return null;
  const stop = /[.!?]$/.test(text) ? "" : ".";
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${stop}`;
}
