// What the picker offers for a text: the service's series that match, best first, then what the text itself names.

import { parseSeries, type Series, TIMEFRAMES, withTimeframe } from "./series.ts";
import type { Derived } from "./wire.ts";

export interface Offer {
  readonly series: Series;
  /** Followed for as long as the service runs; of others the page shows what is stored. */
  readonly whitelisted: boolean;
}

const MOST_OFFERS = 200;
const DEFAULT_EXCHANGE = "binance";

/** The whitelist's ids as series, without those that this page cannot read. */
export function readable(ids: readonly string[]): Series[] {
  return ids.map(parseSeries).filter((series) => series !== null);
}

/** `timeframe` is what a bare symbol such as `SOL/USDT` is offered in. */
export function offersFor(text: string, whitelist: readonly Series[], timeframe: string): Offer[] {
  const words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
  const matches = whitelist
    .map((series) => ({ series, rank: rank(series, words) }))
    .filter((match) => match.rank !== null)
    .toSorted((one, other) => (one.rank ?? 0) - (other.rank ?? 0))
    .slice(0, MOST_OFFERS)
    .map(({ series }) => ({ series, whitelisted: true }));
  const held = new Set(whitelist.map((series) => series.id));
  const named = namedBy(text.trim(), whitelist, timeframe).filter((series) => !held.has(series.id));
  return [...matches, ...named.map((series) => ({ series, whitelisted: false }))];
}

/** Lower is better; null when a word is not found. */
function rank(series: Series, words: readonly string[]): number | null {
  const symbol = series.symbol.toLowerCase();
  const plain = symbol.replaceAll(/[^a-z0-9]/g, "");
  let total = 0;
  for (const word of words) {
    if (symbol.startsWith(word) || plain.startsWith(word)) total += 0;
    else if (symbol.includes(word) || plain.includes(word)) total += 1;
    else if (series.id.toLowerCase().includes(word)) total += 2;
    else return null;
  }
  return total;
}

/** A whole series id names itself; `BASE/QUOTE` names that symbol on spot and futures. */
function namedBy(text: string, whitelist: readonly Series[], timeframe: string): Series[] {
  const whole = parseSeries(text);
  if (whole !== null) return [whole];
  const symbol = /^([a-z0-9]+)\/([a-z0-9]+)$/i.exec(text)?.[0].toUpperCase();
  if (symbol === undefined) return [];
  const exchanges = new Set(whitelist.map((series) => series.exchange));
  if (exchanges.size === 0) exchanges.add(DEFAULT_EXCHANGE);
  return readable(
    [...exchanges].flatMap((exchange) => ["spot", "futures"].map((market) => `${exchange}:${market}:${symbol}:${timeframe}`)),
  );
}

/** This symbol in the timeframes that the service follows it in, and in the one in use; shortest first. */
export function timeframesOf(series: Series, whitelist: readonly Series[], derived: Derived): Series[] {
  const followed = whitelist.filter((other) => withTimeframe(other, series.timeframe).id === series.id);
  const timeframes = new Set([...followed.map((other) => other.timeframe), series.timeframe]);
  if (derived.base !== null && timeframes.has(derived.base)) for (const one of derived.timeframes) timeframes.add(one);
  return TIMEFRAMES.filter((timeframe) => timeframes.has(timeframe)).map((timeframe) => withTimeframe(series, timeframe));
}
