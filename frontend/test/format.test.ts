import { describe, expect, test } from "vitest";
import { formatChange, formatPrice, formatTime, formatTimeNear, formatVolume, plural, priceDecimals } from "../src/format.ts";
import type { Candle } from "../src/series.ts";

function at(...prices: number[]): Candle[] {
  return prices.map((price, index) => ({ time: index * 60, open: price, high: price, low: price, close: price, volume: 0 }));
}

describe("decimals of prices", () => {
  test.each([
    [[117_230.1, 117_230.01], 2],
    [[100, 101], 2],
    [[0.000_008_06, 0.000_008_1], 8],
    [[4.21e-6, 4.2e-6], 8],
    [[1.2345, 1.2], 4],
    [[0.1 + 0.2], 8],
    [[119_055.726_999_83], 2],
    [[], 2],
  ])("of %j are %i", (prices, decimals) => {
    expect(priceDecimals(at(...prices))).toBe(decimals);
  });
});

test("prices have separators and all their decimals", () => {
  expect(formatPrice(117_230.1, 2)).toBe("117,230.10");
  expect(formatPrice(4.21e-6, 8)).toBe("0.00000421");
});

test.each([
  [0, "0"],
  [4.843_1, "4.843"],
  [123.45, "123.5"],
  [1236, "1.236K"],
  [45_600_000, "45.6M"],
  [2e9, "2B"],
  [100, "100"],
  [0.001_23, "0.00123"],
])("a volume of %d reads %s", (volume, text) => {
  expect(formatVolume(volume)).toBe(text);
});

test("a change has its sign, and none when it rounds to 0", () => {
  expect(formatChange(100, 101.5)).toBe("+1.50%");
  expect(formatChange(100, 98)).toBe("\u22122.00%");
  expect(formatChange(100, 99.9999)).toBe("0.00%");
  expect(formatChange(null, 1)).toBeNull();
  expect(formatChange(0, 1)).toBeNull();
});

test("times are UTC, and days have no hours", () => {
  const time = Date.UTC(2025, 7, 12, 14, 3) / 1000;
  expect(formatTime(time, "1m")).toBe("2025-08-12 14:03");
  expect(formatTime(time, "1d")).toBe("2025-08-12");
  expect(formatTimeNear(time + 60, "1m", time)).toBe("14:04");
  expect(formatTimeNear(time + 86_400, "1m", time)).toBe("2025-08-13 14:03");
});

test("a count of 1 has the singular", () => {
  expect(plural(1, "gap")).toBe("1 gap");
  expect(plural(1200, "candle")).toBe("1,200 candles");
});
