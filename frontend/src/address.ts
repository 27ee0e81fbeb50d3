// The address names the series: `/?series=binance:spot:BTC/USDT:1m`. A text that is not a series id, for example `BTCUSDT`,
// is looked up in the whitelist. A text that names no series is reported, never ignored.

import { parseSeries, type Series, stepOf, withTimeframe } from "./series.ts";
import { timeframesOf } from "./search.ts";
import type { Derived } from "./wire.ts";

/** The text after `series=`; null when the address has none. */
export function textOfAddress(query: string): string | null {
  const text = new URLSearchParams(query).get("series")?.trim() ?? "";
  return text === "" ? null : text;
}

/** The address of a series. `:` and `/` need no escaping in a query. */
export function addressOf(path: string, chosen: Series): string {
  const value = encodeURIComponent(chosen.id).replaceAll("%3A", ":").replaceAll("%2F", "/");
  return `${path}?series=${value}`;
}

/**
 * The series that `text` names: an id as it is; otherwise a symbol of the whitelist, with or without its slash, in any
 * case, and with it, in any order, a market, an exchange and a timeframe. Of several matches, the first of the whitelist.
 * null when it names none.
 */
export function resolve(text: string, whitelist: readonly Series[], derived: Derived): Series | null {
  const whole = parseSeries(text);
  if (whole !== null) return whole;
  const words = text.split(/[\s:]+/u).filter((word) => word !== "");
  const timeframe = words.find((word) => stepOf(word) !== null) ?? null;
  const others = words.filter((word) => word !== timeframe).map((word) => word.toLowerCase());
  const symbols = others.filter((word) => !whitelist.some(({ market, exchange }) => word === market || word === exchange));
  if (symbols.length !== 1) return null;
  for (const series of whitelist) {
    const names = new Set([series.market, series.exchange, series.symbol.toLowerCase(), plain(series.symbol)]);
    if (!others.every((word) => names.has(word))) continue;
    if (timeframe === null) return series;
    if (timeframesOf(series, whitelist, derived).some((sibling) => sibling.timeframe === timeframe)) return withTimeframe(series, timeframe);
  }
  return null;
}

/** `BTC/USDT` -> `btcusdt`. */
function plain(symbol: string): string {
  return symbol.toLowerCase().replaceAll(/[^\p{L}\p{N}]/gu, "");
}
