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

const MAX_DAYS = 366;
const UNIT_S: Readonly<Record<string, number>> = { m: 60, h: 3600, d: DAY_S };
const TIMEFRAME = /^([1-9][0-9]{0,4})([mhd])$/;

/**
 * Length in seconds of a timeframe: `1w`, a number of days up to 366, or minutes or hours that divide a day; 0 for the
 * calendar month `1M`. null for a text that is no timeframe, such as `7m` or, because it is written `1h`, `60m`.
 */
export function stepOf(text: string): number | null {
  if (text === "1M") return 0;
  if (text === "1w") return 7 * DAY_S;
  const match = TIMEFRAME.exec(text);
  if (match === null) return null;
  const step = Number(match[1]) * (UNIT_S[match[2] ?? ""] ?? 0);
  const isAdmitted = step % DAY_S === 0 ? step <= MAX_DAYS * DAY_S && step !== 7 * DAY_S : DAY_S % step === 0;
  return isAdmitted && codeOf(step) === text ? step : null;
}

/** These timeframes, shortest first, without texts that are none. */
export function shortestFirst(timeframes: Iterable<string>): string[] {
  const known = [...timeframes].filter((timeframe) => stepOf(timeframe) !== null);
  return known.toSorted((one, other) => nominalStep(one) - nominalStep(other));
}

/** The step, and 30 days for the month. */
function nominalStep(timeframe: string): number {
  return stepOf(timeframe) || 30 * DAY_S;
}

/** The one code of a length: minutes only where it is no number of hours, hours only where it is no number of days. */
function codeOf(step: number): string {
  if (step % DAY_S === 0) return `${step / DAY_S}d`;
  return step % 3600 === 0 ? `${step / 3600}h` : `${step / 60}m`;
}

const SERIES_ID = /^([a-z][a-z0-9_]*):(spot|futures):([^\s:/]+\/[^\s:/]+(?::[^\s:/]+)?):([0-9]+[a-zA-Z])$/u;

/** The series with that id; null for a text that is not one. Only the service knows whether the series exists. */
export function parseSeries(text: string): Series | null {
  const match = SERIES_ID.exec(text);
  if (match === null) return null;
  const [id, exchange = "", market = "", symbol = "", timeframe = ""] = match;
  return stepOf(timeframe) !== null ? { id, exchange, market, symbol, timeframe } : null;
}

/** The same symbol in another timeframe. */
export function withTimeframe(series: Series, timeframe: string): Series {
  const id = `${series.exchange}:${series.market}:${series.symbol}:${timeframe}`;
  return { ...series, id, timeframe };
}

/** The open time after `openTime`, which is also when the candle at `openTime` closes. */
export function nextOpen(timeframe: string, openTime: number): number {
  const step = stepOf(timeframe);
  if (step !== null && step > 0) return openTime + step;
  const moment = new Date(openTime * 1000);
  return Date.UTC(moment.getUTCFullYear(), moment.getUTCMonth() + 1, 1) / 1000;
}

/** Number of missing candles between two neighbours, `earlier < later`. */
export function missingBetween(timeframe: string, earlier: number, later: number): number {
  const step = stepOf(timeframe);
  if (step !== null && step > 0) return Math.max(0, Math.round((later - earlier) / step) - 1);
  return Math.max(0, monthOf(later) - monthOf(earlier) - 1);
}

function monthOf(time: number): number {
  const moment = new Date(time * 1000);
  return moment.getUTCFullYear() * 12 + moment.getUTCMonth();
}
