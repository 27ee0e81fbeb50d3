// Search: what the picker offers for a text: matching series of the whitelist, best first, then the series that the text
// itself names.

import { parseSeries, type Series, shortestFirst, withTimeframe } from "./series.ts";
import type { Derived } from "./wire.ts";

export interface Offer {
  readonly series: Series;
  /** Followed for as long as the service runs; of other series the page shows the stored candles. */
  readonly whitelisted: boolean;
}

const MAX_OFFERS = 200;
const DEFAULT_EXCHANGE = "binance";

/** The series of these ids, without ids that this page cannot parse. */
export function readable(ids: readonly string[]): Series[] {
  return ids.map(parseSeries).filter((series) => series !== null);
}

/** The offers for `text`. `timeframe`: the one in which a bare symbol such as `SOL/USDT` is offered. */
export function offersFor(text: string, whitelist: readonly Series[], timeframe: string): Offer[] {
  const words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
  const matches = whitelist
    .map((series) => ({ series, rank: rank(series, words) }))
    .filter((match) => match.rank !== null)
    .toSorted((first, second) => (first.rank ?? 0) - (second.rank ?? 0))
    .slice(0, MAX_OFFERS)
    .map(({ series }) => ({ series, whitelisted: true }));
  const listed = new Set(whitelist.map((series) => series.id));
  const named = namedBy(text.trim(), whitelist, timeframe).filter((series) => !listed.has(series.id));
  return [...matches, ...named.map((series) => ({ series, whitelisted: false }))];
}

/** Rank of a match, lower is better; null when a word does not match. */
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

/** The symbol of `series` in each timeframe that the service follows or derives, and in its own; shortest first. */
export function timeframesOf(series: Series, whitelist: readonly Series[], derived: Derived): Series[] {
  const followed = whitelist.filter((other) => withTimeframe(other, series.timeframe).id === series.id);
  const timeframes = new Set([...followed.map((other) => other.timeframe), series.timeframe]);
  if (derived.base !== null && timeframes.has(derived.base)) for (const timeframe of derived.timeframes) timeframes.add(timeframe);
  return shortestFirst(timeframes).map((timeframe) => withTimeframe(series, timeframe));
}
