// The vocabulary: series, their grid of open times, candles. All times are UTC seconds of a candle's open.

/** One K-line. Prices in the quote asset, volume in the base asset. */
export interface Candle {
  readonly time: number;
  readonly open: number;
  readonly high: number;
  readonly low: number;
  readonly close: number;
  readonly volume: number;
}

/** The parts of `{exchange}:{market}:{symbol}:{timeframe}`. */
export interface Series {
  readonly id: string;
  readonly exchange: string;
  readonly market: string;
  readonly symbol: string;
  readonly timeframe: string;
}

const DAY_S = 86_400;

/** Length in seconds of every fixed timeframe; the calendar month `1M` has none. */
const STEP_S: Readonly<Record<string, number>> = {
  "1m": 60,
  "3m": 180,
  "5m": 300,
  "15m": 900,
  "30m": 1800,
  "1h": 3600,
  "2h": 7200,
  "4h": 14_400,
  "6h": 21_600,
  "8h": 28_800,
  "12h": 43_200,
  "1d": DAY_S,
  "3d": 3 * DAY_S,
  "1w": 7 * DAY_S,
};

/** All timeframes, shortest first. */
export const TIMEFRAMES: readonly string[] = [...Object.keys(STEP_S), "1M"];

const SERIES_ID = /^([a-z][a-z0-9_]*):(spot|futures):([^\s:/]+\/[^\s:/]+(?::[^\s:/]+)?):([0-9]+[a-zA-Z])$/u;

/** The series with that id; null for a text that is not one. Only the service knows whether the series exists. */
export function parseSeries(text: string): Series | null {
  const match = SERIES_ID.exec(text);
  if (match === null) return null;
  const [id, exchange = "", market = "", symbol = "", timeframe = ""] = match;
  return TIMEFRAMES.includes(timeframe) ? { id, exchange, market, symbol, timeframe } : null;
}

/** The same symbol in another timeframe. */
export function withTimeframe(series: Series, timeframe: string): Series {
  const id = `${series.exchange}:${series.market}:${series.symbol}:${timeframe}`;
  return { ...series, id, timeframe };
}

/** The open time after `openTime`, which is also when the candle at `openTime` closes. */
export function nextOpen(timeframe: string, openTime: number): number {
  const step = STEP_S[timeframe];
  if (step !== undefined) return openTime + step;
  const moment = new Date(openTime * 1000);
  return Date.UTC(moment.getUTCFullYear(), moment.getUTCMonth() + 1, 1) / 1000;
}

/** Number of missing candles between two neighbours, `earlier < later`. */
export function missingBetween(timeframe: string, earlier: number, later: number): number {
  const step = STEP_S[timeframe];
  if (step !== undefined) return Math.max(0, Math.round((later - earlier) / step) - 1);
  return Math.max(0, monthOf(later) - monthOf(earlier) - 1);
}

function monthOf(time: number): number {
  const moment = new Date(time * 1000);
  return moment.getUTCFullYear() * 12 + moment.getUTCMonth();
}
