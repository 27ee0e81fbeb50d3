// Numbers and times as text.

import type { Candle } from "./series.ts";

const MAX_DECIMALS = 8;
const MIN_DECIMALS = 2;

/**
 * Decimals that show these candles' prices in full: as many as the data has, at least 2, at most 8, and no more than
 * eight significant digits, so that the error of binary fractions (0.30000000000000004) does not count as precision.
 */
export function priceDecimals(candles: readonly Candle[]): number {
  let decimals = MIN_DECIMALS;
  let highest = 0;
  for (const { open, high, low, close } of candles) {
    highest = Math.max(highest, Math.abs(high));
    for (const price of [open, high, low, close]) decimals = Math.max(decimals, decimalsOf(price));
  }
  const whole = highest > 0 ? Math.floor(Math.log10(highest)) : 0;
  return Math.min(decimals, MAX_DECIMALS, Math.max(MIN_DECIMALS, 7 - whole));
}

/** Decimals of the shortest text that reads back as the same number. */
function decimalsOf(value: number): number {
  const [digits = "", exponent = "0"] = value.toString().split("e");
  const fraction = digits.split(".")[1]?.length ?? 0;
  return Math.max(0, fraction - Number(exponent));
}

/** Formats by number of decimals: making one takes longer than using it. */
const PRICE_FORMATS: readonly Intl.NumberFormat[] = Array.from(
  { length: MAX_DECIMALS + 1 },
  (_, decimals) => new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }),
);

/** `117,230.10`. `decimals`: from 0 to `MAX_DECIMALS`. */
export function formatPrice(price: number, decimals: number): string {
  return PRICE_FORMATS[decimals]?.format(price) ?? price.toFixed(decimals);
}

const UNITS: readonly (readonly [number, string])[] = [
  [1e9, "B"],
  [1e6, "M"],
  [1e3, "K"],
];

/** `1.23K`, `45.6`, `0.00123`: about four significant digits. */
export function formatVolume(volume: number): string {
  for (const [size, unit] of UNITS) if (volume >= size) return `${significant(volume / size)}${unit}`;
  return significant(volume);
}

function significant(value: number): string {
  if (value === 0) return "0";
  const decimals = Math.min(MAX_DECIMALS, Math.max(0, 3 - Math.floor(Math.log10(value))));
  const text = value.toFixed(decimals);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** `+0.12%`; null when `from` is missing or 0. */
export function formatChange(from: number | null, to: number): string | null {
  if (from === null || from === 0) return null;
  const percent = (to / from - 1) * 100;
  // Rounded first, so that nothing reads as -0.00%.
  const rounded = Math.round(percent * 100) / 100;
  return `${rounded > 0 ? "+" : rounded < 0 ? "\u2212" : ""}${Math.abs(rounded).toFixed(2)}%`;
}

export function formatCount(count: number): string {
  return formatPrice(count, 0);
}

/** `candle` or `candles`. */
export function plural(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** `2025-08-12 14:03` (UTC); the date alone for timeframes of a day or more. */
export function formatTime(time: number, timeframe: string): string {
  const iso = new Date(time * 1000).toISOString();
  return /[dwM]$/.test(timeframe) ? iso.slice(0, 10) : `${iso.slice(0, 10)} ${iso.slice(11, 16)}`;
}

/** Like `formatTime`, without the date on the day of `today`. */
export function formatTimeNear(time: number, timeframe: string, today: number): string {
  const text = formatTime(time, timeframe);
  const day = formatTime(today, "1d");
  return text.startsWith(`${day} `) ? text.slice(day.length + 1) : text;
}

/** `14:03:21` (UTC) of a moment in milliseconds. */
export function formatClock(moment_ms: number): string {
  return new Date(moment_ms).toISOString().slice(11, 19);
}

/** `3 s`, `2 min`, `4 h`, `5 d` of a number of seconds. */
export function formatAge(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  return whole < 172_800 ? `${Math.floor(whole / 3600)} h` : `${Math.floor(whole / 86_400)} d`;
}

const MARKETS: Readonly<Record<string, string>> = { spot: "Spot", futures: "Futures" };

export function marketName(market: string): string {
  return MARKETS[market] ?? market;
}

/** `binance` -> `Binance`. */
export function exchangeName(exchange: string): string {
  return exchange.charAt(0).toUpperCase() + exchange.slice(1);
}
