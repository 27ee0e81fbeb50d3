import { describe, expect, test } from "vitest";
import { missingBetween, nextOpen, parseSeries, withTimeframe } from "../src/series.ts";

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

describe("the grid", () => {
  test("steps a fixed timeframe by its length", () => {
    expect(nextOpen("15m", 1_700_000_100)).toBe(1_700_001_000);
  });

  test("steps a month by the calendar", () => {
    expect(nextOpen("1M", Date.UTC(2024, 0, 1) / 1000)).toBe(Date.UTC(2024, 1, 1) / 1000);
    expect(nextOpen("1M", Date.UTC(2024, 11, 1) / 1000)).toBe(Date.UTC(2025, 0, 1) / 1000);
  });

  test("counts missing candles between neighbours", () => {
    expect(missingBetween("1m", 0, 60)).toBe(0);
    expect(missingBetween("1m", 0, 240)).toBe(3);
    expect(missingBetween("1M", Date.UTC(2023, 10, 1) / 1000, Date.UTC(2024, 1, 1) / 1000)).toBe(2);
  });
});
