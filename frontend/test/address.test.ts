import { describe, expect, test } from "vitest";
import { addressOf, resolve, textOfAddress } from "../src/address.ts";
import { readable } from "../src/search.ts";
import { parseSeries } from "../src/series.ts";

const WHITELIST = readable(["binance:spot:BTC/USDT:1m", "binance:futures:BTC/USDT:1m", "binance:futures:ETH/USDT:1m", "okx:spot:BTC/USDC:1m"]);
const DERIVED = { base: "1m", timeframes: ["5m", "1h"] };

describe("a text of the address", () => {
  test.each([
    ["binance:spot:SOL/USDT:1m", "binance:spot:SOL/USDT:1m"],
    ["BTCUSDT", "binance:spot:BTC/USDT:1m"],
    ["btc/usdt", "binance:spot:BTC/USDT:1m"],
    ["BTCUSDT futures", "binance:futures:BTC/USDT:1m"],
    ["binance:futures:BTCUSDT:5m", "binance:futures:BTC/USDT:5m"],
    ["ETHUSDT", "binance:futures:ETH/USDT:1m"],
    ["BTCUSDC 1h okx", "okx:spot:BTC/USDC:1h"],
  ])("%s names %s", (text, id) => {
    expect(resolve(text, WHITELIST, DERIVED)?.id).toBe(id);
  });

  test.each(["SOLUSDT", "BTC", "USDT", "BTCUSDT 3m", "BTCUSDT margin", "spot", "1m", "", "BTCUSDT ETHUSDT", "ETHUSDT spot"])(
    "%s names none",
    (text) => {
      expect(resolve(text, WHITELIST, DERIVED)).toBeNull();
    },
  );

  test("is the value of series=", () => {
    expect(textOfAddress("?series=BTCUSDT&x=1")).toBe("BTCUSDT");
    expect(textOfAddress("?series=%20")).toBeNull();
    expect(textOfAddress("")).toBeNull();
    const series = parseSeries("binance:spot:BTC/USDT:1m");
    if (series === null) throw new Error("no series");
    expect(addressOf("/", series)).toBe("/?series=binance:spot:BTC/USDT:1m");
    expect(textOfAddress(addressOf("/", series).slice(1))).toBe(series.id);
  });
});
