import { describe, expect, test } from "vitest";
import { offersFor, readable, timeframesOf } from "../src/search.ts";
import { parseSeries } from "../src/series.ts";

const WHITELIST = readable([
  "binance:spot:ETH/BTC:1m",
  "binance:spot:BTC/USDT:1m",
  "binance:futures:BTC/USDT:1m",
  "binance:spot:BTC/USDT:1h",
  "not a series",
]);

function offered(text: string): string[] {
  return offersFor(text, WHITELIST, "5m").map((offer) => `${offer.whitelisted ? "" : "+"}${offer.series.id}`);
}

describe("the picker", () => {
  test("offers the whole whitelist for an empty text", () => {
    expect(offered("")).toHaveLength(4);
  });

  test("lists symbols that begin with the text first", () => {
    expect(offered("btc").at(-1)).toBe("binance:spot:ETH/BTC:1m");
    expect(offered("btcusdt")).toHaveLength(3);
  });

  test("takes several words", () => {
    expect(offered("btc futures")).toEqual(["binance:futures:BTC/USDT:1m"]);
    expect(offered("usdt 1h")).toEqual(["binance:spot:BTC/USDT:1h"]);
  });

  test("offers a series id that is not followed", () => {
    expect(offered("kraken:spot:XBT/EUR:15m")).toEqual(["+kraken:spot:XBT/EUR:15m"]);
  });

  test("offers a bare symbol on spot and futures in the present timeframe", () => {
    expect(offered("sol/usdt")).toEqual(["+binance:spot:SOL/USDT:5m", "+binance:futures:SOL/USDT:5m"]);
  });

  test("offers a series of the whitelist once", () => {
    expect(offered("binance:spot:BTC/USDT:1m")).toEqual(["binance:spot:BTC/USDT:1m"]);
  });

  test("offers nothing for a text without a match", () => {
    expect(offered("???")).toEqual([]);
  });
});

test("timeframes are those of the followed series and the present one, shortest first", () => {
  const series = parseSeries("binance:spot:BTC/USDT:3d");
  if (series === null) throw new Error("no series");
  const nothing = { base: null, timeframes: [] };
  expect(timeframesOf(series, WHITELIST, nothing).map((other) => other.timeframe)).toEqual(["1m", "1h", "3d"]);
  const derived = { base: "1m", timeframes: ["5m", "1d"] };
  expect(timeframesOf(series, WHITELIST, derived).map((other) => other.timeframe)).toEqual(["1m", "5m", "1h", "1d", "3d"]);
  const own = { base: "1m", timeframes: ["2d", "45m", "7m"] };
  expect(timeframesOf(series, WHITELIST, own).map((one) => one.timeframe)).toEqual(["1m", "45m", "1h", "2d", "3d"]);
  const other = { base: "5m", timeframes: ["15m"] };
  expect(timeframesOf(series, WHITELIST, other).map((one) => one.timeframe)).toEqual(["1m", "1h", "3d"]);
});
