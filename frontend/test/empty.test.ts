import { describe, expect, test } from "vitest";
import { type EmptyFacts, emptinessOf } from "../src/empty.ts";
import { BTC, seriesOf } from "./support.ts";

function titleOf(facts: Partial<EmptyFacts>): string | null {
  const all: EmptyFacts = {
    series: seriesOf(BTC),
    history: { kind: "ready" },
    candles: false,
    unresolved: null,
    listed: true,
    ...facts,
  };
  return emptinessOf(all)?.title ?? null;
}

describe("a page without candles", () => {
  test("says why there are none", () => {
    expect(titleOf({})).toBe("No candles yet");
    expect(titleOf({ history: { kind: "refused", reason: "no such symbol" } })).toBe(`No candles of ${BTC}`);
    expect(titleOf({ history: { kind: "unreachable", reason: "starting" } })).toBe("The history cannot be loaded");
    expect(titleOf({ series: null })).toBe("No series yet");
    expect(titleOf({ series: null, unresolved: "NOSUCH" })).toBe("No series “NOSUCH”");
  });

  test("says nothing while they may come in a moment", () => {
    expect(titleOf({ history: { kind: "loading" } })).toBeNull();
    expect(titleOf({ series: null, listed: false, unresolved: "BTCUSDT" })).toBeNull();
    expect(titleOf({ candles: true, history: { kind: "unreachable", reason: "starting" } })).toBeNull();
  });

  test("ends the service's sentence with one full stop", () => {
    for (const reason of ["no such symbol", "no such symbol."]) {
      const emptiness = emptinessOf({ series: seriesOf(BTC), history: { kind: "refused", reason }, candles: false, unresolved: null, listed: true });
      expect(emptiness?.text).toBe("The service refuses it: no such symbol.");
    }
  });
});
