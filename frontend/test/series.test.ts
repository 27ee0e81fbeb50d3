import { describe, expect, test } from "vitest";
import { missingBetween, nextOpen, parseSeries, shortestFirst, stepOf, withTimeframe } from "../src/series.ts";

describe("a series id", () => {
  test("is parsed into its parts", () => {
    expect(parseSeries("binance:futures:BTC/USDT:1m")).toEqual({
      id: "binance:futures:BTC/USDT:1m",
      exchange: "binance",
      market: "futures",
      symbol: "BTC/USDT",
      timeframe: "1m",
    });
  });

  test("may name a settlement asset", () => {
    expect(parseSeries("binance:futures:BTC/USD:BTC:1h")?.symbol).toBe("BTC/USD:BTC");
  });

  test.each(["", "BTC/USDT", "binance:margin:BTC/USDT:1m", "binance:spot:BTCUSDT:1m", "binance:spot:BTC/USDT:7m", "Binance:spot:BTC/USDT:1m", "binance:spot:BTC/USDT:1m "])(
    "is refused when it is %j",
    (text) => {
      expect(parseSeries(text)).toBeNull();
    },
  );

  test("distinguishes a minute from a month", () => {
    const minute = parseSeries("binance:spot:BTC/USDT:1m");
    expect(minute && withTimeframe(minute, "1M").id).toBe("binance:spot:BTC/USDT:1M");
  });
});

describe("a timeframe", () => {
  test.each([["1m", 60], ["10m", 600], ["45m", 2700], ["90m", 5400], ["3h", 10_800], ["288m", 17_280], ["1d", 86_400], ["2d", 172_800], ["366d", 366 * 86_400], ["1w", 604_800], ["1M", 0]])(
    "%s has a step of %d seconds",
    (text, step) => {
      expect(stepOf(text)).toBe(step);
    },
  );

  test("is a part of a day, in minutes or, where these are whole hours, in hours", () => {
    const parts = Array.from({ length: 1440 }, (_, at) => `${at + 1}m`).filter((text) => stepOf(text) !== null);
    const hours = Array.from({ length: 48 }, (_, at) => `${at + 1}h`).filter((text) => stepOf(text) !== null);
    expect(parts.length + hours.length).toBe(35);
    expect(hours).toEqual(["1h", "2h", "3h", "4h", "6h", "8h", "12h"]);
  });

  test.each(["7m", "60m", "1440m", "24h", "5h", "7d", "0m", "01m", "367d", "2w", "2M", "1s", "1H", "", "m", "toString"])("is none when it is %j", (text) => {
    expect(stepOf(text)).toBeNull();
  });

  test("comes before a longer one", () => {
    expect(shortestFirst(["1M", "2d", "45m", "1w", "7m", "90m", "10m", "1d", "1h"])).toEqual(["10m", "45m", "1h", "90m", "1d", "2d", "1w", "1M"]);
  });
});

describe("the grid", () => {
  test("steps a fixed timeframe by its length", () => {
    expect(nextOpen("15m", 1_700_000_100)).toBe(1_700_001_000);
    expect(nextOpen("45m", 1_699_998_300)).toBe(1_700_001_000);
  });

  test("steps a month by the calendar", () => {
    expect(nextOpen("1M", Date.UTC(2024, 0, 1) / 1000)).toBe(Date.UTC(2024, 1, 1) / 1000);
    expect(nextOpen("1M", Date.UTC(2024, 11, 1) / 1000)).toBe(Date.UTC(2025, 0, 1) / 1000);
  });

  test("counts missing candles between neighbours", () => {
    expect(missingBetween("1m", 0, 60)).toBe(0);
    expect(missingBetween("1m", 0, 240)).toBe(3);
    expect(missingBetween("2d", 0, 6 * 86_400)).toBe(2);
    expect(missingBetween("1M", Date.UTC(2023, 10, 1) / 1000, Date.UTC(2024, 1, 1) / 1000)).toBe(2);
  });
});
