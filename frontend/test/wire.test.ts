import { describe, expect, test } from "vitest";
import { parseHistory, parseMessage, parseRefusal, parseWhitelist, subscribeMessage } from "../src/wire.ts";

const SERIES = "binance:spot:BTC/USDT:1m";
const WIRE_CANDLE = { candle_time: 60, open: 1, high: 3, low: 0.5, close: 2, volume: 10 };
const CANDLE = { time: 60, open: 1, high: 3, low: 0.5, close: 2, volume: 10 };

function parse(message: unknown) {
  return parseMessage(JSON.stringify(message));
}

describe("a message of the service", () => {
  test("has closed candles, one or many", () => {
    expect(parse({ type: "candle_closed", series_id: SERIES, candle: WIRE_CANDLE })).toEqual({
      type: "candles",
      series: SERIES,
      candles: [CANDLE],
      revised: false,
    });
    expect(parse({ type: "candles_batch", series_id: SERIES, candles: [WIRE_CANDLE] })).toMatchObject({ candles: [CANDLE] });
  });

  test("marks a correction", () => {
    expect(parse({ type: "candle_closed", series_id: SERIES, candle: WIRE_CANDLE, revised: true })).toMatchObject({ revised: true });
  });

  test("has a forming candle", () => {
    expect(parse({ type: "candle_forming", series_id: SERIES, candle: WIRE_CANDLE, seq: 7 })).toEqual({
      type: "forming",
      series: SERIES,
      candle: CANDLE,
    });
  });

  test("declares a gap; a state that the page does not know is unknown", () => {
    const gap = { type: "gap", series_id: SERIES, expected_next_time: 60, actual_time: 240, reason: "missing" };
    expect(parse({ ...gap, state: "healing" })).toMatchObject({ from: 60, to: 240, state: "healing" });
    expect(parse({ ...gap, state: "pondering" })).toMatchObject({ state: "unknown" });
  });

  test("acknowledges a subscription, with null for unknown values", () => {
    expect(parse({ type: "subscribed", series_id: SERIES, head_time: null, stream: null })).toEqual({
      type: "subscribed",
      series: SERIES,
      head: null,
      stream: null,
    });
  });

  test("reports an event of the series, with or without data", () => {
    const system = { type: "system", series_id: SERIES, event: "backfill.progress", message: "40 %" };
    const told = { type: "system", series: SERIES, event: "backfill.progress", message: "40 %", detail: null };
    expect(parse({ ...system, data: { state: "running", progress_pct: 40, detail: "why" } })).toEqual({ ...told, state: "running", detail: "why" });
    for (const data of [undefined, null, {}, [], "x", { state: 5 }]) {
      expect(parse({ ...system, data })).toEqual({ ...told, state: null });
    }
  });

  test.each(["", "[]", "null", "42", "{", '{"type":"novelty"}', '{"type":"candle_forming","series_id":"x","candle":null}'])(
    "is passed over when it is %s",
    (text) => {
      expect(parseMessage(text)).toEqual({ type: "unknown" });
    },
  );

  test("loses only the candles that are not six numbers", () => {
    const broken = { ...WIRE_CANDLE, close: null };
    expect(parse({ type: "candles_batch", series_id: SERIES, candles: [broken, WIRE_CANDLE, "x"] })).toMatchObject({ candles: [CANDLE] });
  });
});

describe("an answer of the service", () => {
  test("is a page of history with the service's id of the series", () => {
    expect(parseHistory({ series_id: SERIES, server_head_time: null, candles: [WIRE_CANDLE] })).toEqual({ series: SERIES, candles: [CANDLE], gaps: [] });
    expect(parseHistory(null)).toEqual({ series: null, candles: [], gaps: [] });
  });

  test("has the declared gaps of a page", () => {
    const gap = { start_time: 120, end_time: 240, state: "confirmed_empty" };
    const odd = [null, { ...gap, end_time: 120 }, { start_time: 0, state: "lost" }];
    expect(parseHistory({ gaps: [gap, ...odd, { ...gap, start_time: 180, state: "lost" }] }).gaps).toEqual([
      { from: 120, to: 240, state: "confirmed_empty" },
      { from: 180, to: 240, state: "lost" },
    ]);
  });

  test("is a whitelist", () => {
    expect(parseWhitelist({ series_ids: [SERIES, 3] })).toEqual([SERIES]);
    expect(parseWhitelist({})).toEqual([]);
  });

  test("is the sentence of a refusal", () => {
    expect(parseRefusal(404, { detail: "no such symbol", code: "unknown_series" })).toBe("no such symbol");
    expect(parseRefusal(422, { detail: [{ loc: ["query", "limit"], msg: "too large" }] })).toBe("too large");
    expect(parseRefusal(502, null)).toBe("the service answered with status 502");
  });
});

test("a subscription asks for batches and an acknowledgement", () => {
  expect(JSON.parse(subscribeMessage(SERIES, 60))).toEqual({
    type: "subscribe",
    series_id: SERIES,
    since: 60,
    supports_batch: true,
    ack: true,
  });
});
