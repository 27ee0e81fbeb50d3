// The lamp: what the page may claim about the data it shows, made of the connection, the service's status, the stream and
// the health of the series. Pure; `now` is in milliseconds of the page's clock. "Live" is said only when the service says
// so of the exchange and of the stream, and has said so a moment ago; whatever is not known is said to be unknown.

import type { Connection } from "./connection.ts";
import { exchangeName, formatAge, formatClock, marketName } from "./format.ts";
import type { Series } from "./series.ts";
import type { ExchangeStatus, HealthReason, SeriesHealth, ServiceReason, ServiceStatus } from "./status.ts";
import { keyOf } from "./json.ts";
import { STATUS_OLD_MS, type Told, type TellingOf } from "./status-feed.ts";

/** `off`: what is stored is shown, and nothing is followed. */
export type Tone = "good" | "warn" | "bad" | "off" | "unknown";

export interface Known {
  readonly connection: Connection;
  readonly status: Told<ServiceStatus>;
  readonly health: Told<SeriesHealth>;
  readonly series: Series | null;
  /** The state of the series' stream as the WebSocket told it last, and its sentence. */
  readonly stream: StreamTold | null;
  /** When the last candle of the series came, closed or forming. */
  readonly heardAt: number | null;
}

export interface StreamTold {
  readonly state: string;
  readonly detail: string | null;
  readonly at: number;
}

/** One line of the panel behind the lamp. */
export interface Fact {
  readonly name: string;
  readonly text: string;
  readonly tone: Tone;
}

export interface Lamp {
  readonly tone: Tone;
  readonly label: string;
  /** Seconds since the last candle of the series came; null before the first. */
  readonly age: number | null;
  /** Why, in a sentence; null when all is well. */
  readonly reason: string | null;
  /** What is shown may not be what the exchange trades now. */
  readonly old: boolean;
  readonly facts: readonly Fact[];
}

interface Verdict {
  readonly tone: Tone;
  readonly label: string;
  readonly reason: string | null;
  /** Live candles of the series come, whatever else is the matter. */
  readonly live?: boolean;
}

const CHECKING: Verdict = { tone: "unknown", label: "Checking", reason: null };
/** Without a word of the service, candles are taken for old when none has come for this many seconds. */
const UNHEARD_S = 15;
const LIVE: Verdict = { tone: "good", label: "Live", reason: null, live: true };

/** Streams that bring no live candles, by state: a label, and the sentence where the service gives none. */
const STREAMS: Readonly<Record<string, Verdict>> = {
  stale: { tone: "warn", label: "Stale", reason: "The exchange's stream of this series is silent." },
  rest_fallback: { tone: "warn", label: "Over REST", reason: "The exchange's stream is silent; closed candles come over REST." },
  reconnecting: { tone: "warn", label: "Reconnecting", reason: "The service is reconnecting to the exchange." },
  subscribed: { tone: "warn", label: "Waiting", reason: "The stream is subscribed; its first candle has not come yet." },
  delisted: { tone: "off", label: "Not traded", reason: "The exchange does not trade this symbol; the stored candles are shown." },
  off: { tone: "off", label: "Stored only", reason: "This series is not followed; the stored candles are shown." },
};

/** A series' health in words; `up_to_date` needs none. */
const HEALTH: Readonly<Record<HealthReason, string>> = {
  up_to_date: "up to date",
  backfill_running: "history is being read",
  backfill_recent: "history was read a moment ago; the newest candles are not there yet",
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

/** The reasons of the service's status in words. */
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

/** What the lamp shows at `now`. */
export function lampOf(known: Known, now: number): Lamp {
  const age = ageOf(known, now);
  const verdict = verdictOf(known, now);
  const { tone, label, reason, live = false } = verdict;
  // Where the service says nothing, what the page itself hears says whether its candles are of now.
  const old = tone === "unknown" ? age === null || age > UNHEARD_S : !live;
  return { tone, label, reason, age, old, facts: factsOf(known, now, age) };
}

/** Of what the page has heard itself; before that, of what the service has. */
function ageOf({ heardAt, health, series }: Known, now: number): number | null {
  if (heardAt !== null) return Math.max(0, Math.floor((now - heardAt) / 1000));
  if (health.kind !== "told" || health.what.series !== series?.id || health.what.frameAge === null) return null;
  return Math.floor(health.what.frameAge + Math.max(0, now - health.at) / 1000);
}

function verdictOf(known: Known, now: number): Verdict {
  const { connection, status, series } = known;
  if (connection.phase !== "live") {
    if (!connection.everLive && connection.attempt === 0) return { tone: "unknown", label: "Connecting", reason: null };
    const since = connection.downSince === null ? "" : ` since ${formatClock(connection.downSince)} UTC`;
    return { tone: "bad", label: "Not connected", reason: `No connection to the service${since}.` };
  }
  const stream = streamOf(known);
  const trouble = stream === null ? null : (STREAMS[stream.state] ?? null);
  const told = trouble === null ? null : { ...trouble, reason: sentence(stream?.detail) ?? trouble.reason };
  if (status.kind === "none") return CHECKING;
  if (status.kind === "absent") {
    const reason = "This service does not tell the state of its exchanges; it is an older version.";
    return told ?? { tone: "unknown", label: "State unknown", reason };
  }
  const silent = now - status.at;
  if (silent > STATUS_OLD_MS) {
    const reason = `The service has not said for ${formatAge(silent / 1000)} how it is.`;
    return { tone: "unknown", label: "State unknown", reason };
  }
  const { what } = status;
  if (what.storeOk === false) {
    return { tone: "bad", label: "Store fails", reason: sentence(what.storeDetail) ?? "The store of the service does not answer." };
  }
  if (series === null) return elsewhere(status) ?? { ...LIVE, label: "Service up" };
  const exchange = exchangeOf(what, series);
  const feeding = exchange === null ? null : exchangeTrouble(exchange);
  // A dead exchange is the cause of whatever its streams say; a silent stream says more than a degraded exchange.
  if (feeding?.tone === "bad") return feeding;
  if (told !== null) return told;
  if (feeding !== null) return feeding;
  if (stream === null && known.health.kind === "none") return CHECKING;
  if (stream === null || exchange === null) {
    return { tone: "unknown", label: "State unknown", reason: "The service does not say whether this series is followed." };
  }
  return healthTrouble(known) ?? elsewhere(status) ?? LIVE;
}

/** The newest word about the stream: of the WebSocket, or of the health that was asked for later. */
function streamOf({ stream, health, series }: Known): StreamTold | null {
  const polled =
    health.kind === "told" && health.what.series === series?.id && health.what.stream !== null
      ? { state: health.what.stream, detail: health.what.streamDetail, at: health.at }
      : null;
  if (stream === null || polled === null) return stream ?? polled;
  return polled.at > stream.at ? polled : stream;
}

function exchangeOf(status: ServiceStatus, series: Series): ExchangeStatus | null {
  return status.exchanges.find((one) => one.exchange === series.exchange && one.market === series.market) ?? null;
}

function exchangeTrouble({ exchange, market, state, detail }: ExchangeStatus): Verdict | null {
  const name = nameOf(exchange, market);
  const why = sentence(detail);
  switch (state) {
    case "live":
      return null;
    case "degraded":
      return { tone: "warn", label: "Degraded", reason: why ?? `The connection to ${name} is impaired.` };
    case "unreachable":
      return { tone: "bad", label: "Exchange down", reason: why ?? `${name} gives neither candles nor answers.` };
    case "idle":
      return { tone: "off", label: "Stored only", reason: why ?? `Nothing of ${name} is followed; the stored candles are shown.` };
    case "unknown":
      return { tone: "unknown", label: "State unknown", reason: why ?? `The service does not say how ${name} is.` };
    default:
      return state satisfies never;
  }
}

function healthTrouble({ health, series }: Known): Verdict | null {
  if (health.kind !== "told" || health.what.series !== series?.id) return null;
  const { level, reason } = health.what;
  // A candle that has just closed may be on its way when the health is asked for: the next answer confirms the trouble.
  if ((level !== "red" && level !== "yellow") || health.at === health.since) return null;
  return {
    tone: level === "red" ? "bad" : "warn",
    label: level === "red" ? "Incomplete" : "Catching up",
    reason: sentence(healthWords(reason)),
    live: true,
  };
}

/** Trouble elsewhere in the service: the shown series itself is live. */
function elsewhere({ what: { level, reason }, at, since }: TellingOf<ServiceStatus>): Verdict | null {
  if (level === "green" || at === since) return null;
  const why = sentence(words(reason)) ?? "Another part of the service is in trouble.";
  return { tone: "warn", label: "Live, trouble elsewhere", reason: why, live: true };
}

function factsOf(known: Known, now: number, age: number | null): Fact[] {
  const { connection, status, health, series } = known;
  const facts: Fact[] = [
    connection.phase === "live"
      ? { name: "Page", text: "connected to the service", tone: "good" }
      : { name: "Page", text: "not connected to the service", tone: "bad" },
  ];
  const fresh = status.kind === "told" && now - status.at <= STATUS_OLD_MS && connection.phase === "live";
  if (fresh) {
    const { level, reason, storeOk, storeDetail } = status.what;
    if (storeOk !== null) {
      facts.push({ name: "Store", text: storeDetail || (storeOk ? "answers" : "does not answer"), tone: storeOk ? "good" : "bad" });
    }
    for (const one of status.what.exchanges) {
      const { tone } = exchangeTrouble(one) ?? LIVE;
      facts.push({ name: nameOf(one.exchange, one.market), text: one.detail ?? one.state, tone });
    }
    facts.push({ name: "Service", text: words(reason) || (level ?? "unknown"), tone: toneOf(level) });
  } else {
    facts.push({ name: "Service", text: status.kind === "absent" ? "does not tell its state" : "state unknown", tone: "unknown" });
  }
  if (series !== null) {
    const stream = streamOf(known);
    if (stream !== null && fresh) {
      const { tone } = STREAMS[stream.state] ?? LIVE;
      facts.push({ name: "Stream", text: stream.detail || stream.state.replaceAll("_", " "), tone });
    }
    if (health.kind === "told" && fresh) {
      facts.push({ name: "Candles", text: healthWords(health.what.reason), tone: toneOf(health.what.level) });
    }
    const ago = age === null ? "no candle has come yet" : `${formatAge(age)} ago`;
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
  return code === null ? words(reason) : HEALTH[code];
}

/** A code such as `exchange_unreachable` as words; a sentence stays. */
function words(reason: string | null): string {
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
