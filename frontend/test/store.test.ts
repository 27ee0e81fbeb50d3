import { describe, expect, test } from "vitest";
import type { Candle } from "../src/series.ts";
import { type Change, mergeChanges, SeriesStore } from "../src/store.ts";
import { DeclaredGaps, MAX_DECLARED } from "../src/declared-gaps.ts";
import { candle, candles as minutes } from "./support.ts";

function storeOf(...closed: Candle[]): SeriesStore {
  const store = new SeriesStore("1m");
  store.replace(closed);
  return store;
}

function shown(store: SeriesStore): string {
  return store
    .barsFrom(0)
    .map((bar) => `${bar.candle.time / 60}${bar.forming ? "~" : ""}`)
    .join(" ");
}

describe("history and live", () => {
  test("join without a duplicate where they overlap", () => {
    const store = storeOf(...minutes(0, 3));
    expect(store.close([candle(2), candle(3)])).toEqual({ kind: "tail", from: 180 });
    expect(shown(store)).toBe("0 1 2 3");
  });

  test("are strictly increasing even when an answer is not", () => {
    expect(shown(storeOf(candle(0), candle(2), candle(1), candle(2), candle(3)))).toBe("0 2 3");
  });

  test("change nothing when the same candles come again", () => {
    expect(storeOf(...minutes(0, 3)).close([candle(1), candle(2)])).toEqual({ kind: "none" });
  });

  test("do not join when a candle contradicts a stored one", () => {
    expect(storeOf(...minutes(0, 3)).close([candle(1, 9)])).toEqual({ kind: "unjoined" });
  });

  test("do not join when a candle is older than the newest and not stored", () => {
    expect(storeOf(candle(0), candle(5)).close([candle(3)])).toEqual({ kind: "unjoined" });
  });
});

describe("a revision", () => {
  test("replaces the candle that it corrects", () => {
    const store = storeOf(...minutes(0, 3));
    expect(store.close([candle(1, 9)], true)).toEqual({ kind: "tail", from: 60 });
    expect(store.barAt(60)?.bar.candle.close).toBe(9);
    expect(store.count).toBe(3);
  });

  test("fills a gap", () => {
    const store = storeOf(candle(0), candle(3));
    expect(store.gaps).toMatchObject([{ from: 60, to: 180, missing: 2 }]);
    expect(store.close([candle(1)], true)).toEqual({ kind: "reset" });
    expect(store.close([candle(2)], true)).toEqual({ kind: "reset" });
    expect(shown(store)).toBe("0 1 2 3");
    expect(store.gaps).toEqual([]);
  });

  test("older than every stored candle is loaded by scrolling back", () => {
    const store = storeOf(candle(5), candle(6));
    store.prepend([]);
    expect(store.olderExists).toBe(false);
    expect(store.close([candle(1)], true)).toEqual({ kind: "none" });
    expect(shown(store)).toBe("5 6");
    expect(store.olderExists).toBe(true);
  });
});

describe("a forming candle", () => {
  test("follows the closed ones, and is updated", () => {
    const store = storeOf(...minutes(0, 2));
    expect(store.form(candle(2, 1.1))).toEqual({ kind: "tail", from: 120 });
    expect(store.form(candle(2, 1.2))).toEqual({ kind: "tail", from: 120 });
    expect(shown(store)).toBe("0 1 2~");
    expect(store.last?.candle.close).toBe(1.2);
    expect(store.lastClosed).toBe(60);
  });

  test("becomes the closed one", () => {
    const store = storeOf(...minutes(0, 2));
    store.form(candle(2));
    expect(store.close([candle(2, 1.5)])).toEqual({ kind: "tail", from: 120 });
    expect(shown(store)).toBe("0 1 2");
    expect(store.lastForming).toBeNull();
  });

  test("never replaces a closed one", () => {
    const store = storeOf(...minutes(0, 3));
    expect(store.form(candle(2, 9))).toEqual({ kind: "none" });
    expect(store.form(candle(1, 9))).toEqual({ kind: "none" });
    expect(store.barAt(120)?.bar).toMatchObject({ forming: false, candle: { close: 1 } });
  });

  test("stays beside the next one until its late close comes", () => {
    const store = storeOf(...minutes(0, 2));
    store.form(candle(2));
    store.form(candle(3));
    expect(shown(store)).toBe("0 1 2~ 3~");
    expect(store.close([candle(2)])).toEqual({ kind: "tail", from: 120 });
    expect(shown(store)).toBe("0 1 2 3~");
  });

  test("is removed when its close never came", () => {
    const store = storeOf(...minutes(0, 2));
    store.form(candle(2));
    expect(store.close([candle(3)])).toEqual({ kind: "reset" });
    expect(shown(store)).toBe("0 1 3");
  });

  test("of the next minute stays after a close that was never forming", () => {
    const store = storeOf(...minutes(0, 2));
    store.form(candle(3));
    expect(store.close([candle(2)])).toEqual({ kind: "reset" });
    expect(shown(store)).toBe("0 1 2 3~");
  });

  test("is shown for a series without history", () => {
    const store = storeOf();
    store.form(candle(7));
    expect(shown(store)).toBe("7~");
    expect(store.lastClosed).toBeNull();
  });
});

describe("scrolling back", () => {
  test("inserts older candles before the first one", () => {
    const store = storeOf(...minutes(5, 8));
    expect(store.prepend(minutes(2, 6))).toEqual({ kind: "reset" });
    expect(shown(store)).toBe("2 3 4 5 6 7");
    expect(store.olderExists).toBe(true);
  });

  test("ends when no older candle comes", () => {
    const store = storeOf(...minutes(5, 8));
    expect(store.prepend([])).toEqual({ kind: "none" });
    expect(store.olderExists).toBe(false);
  });
});

describe("a gap", () => {
  test("is detected in history, between pages and in live", () => {
    const store = storeOf(candle(10), candle(12));
    store.prepend([candle(7), candle(8)]);
    store.close([candle(15)]);
    expect(store.gaps.map((gap) => [gap.from / 60, gap.missing])).toEqual([
      [9, 1],
      [11, 1],
      [13, 2],
    ]);
    expect(store.gapBefore(900)?.missing).toBe(2);
    expect(store.gapBefore(720)?.missing).toBe(1);
    expect(store.gapBefore(600)?.missing).toBe(1);
    expect(store.gapBefore(480)).toBeNull();
  });

  test("has the state that the service declared", () => {
    const store = storeOf(candle(0));
    store.declareGaps([{ from: 60, to: 180, state: "healing" }]);
    store.close([candle(3)]);
    expect(store.gaps[0]?.state).toBe("healing");
    expect(store.declareGaps([{ from: 60, to: 180, state: "confirmed_empty" }])).toBe(true);
    expect(store.gaps[0]?.state).toBe("confirmed_empty");
    expect(store.declareGaps([{ from: 60, to: 180, state: "confirmed_empty" }])).toBe(false);
  });

  test("has the worst state of its parts, and a newer declaration overrides an older one", () => {
    const store = storeOf(candle(0), candle(6));
    store.declareGaps([{ from: 60, to: 240, state: "confirmed_empty" }]);
    expect(store.gaps[0]?.state).toBe("unknown");
    store.declareGaps([{ from: 240, to: 360, state: "healing" }]);
    expect(store.gaps[0]?.state).toBe("healing");
    store.declareGaps([{ from: 120, to: 360, state: "confirmed_empty" }]);
    expect(store.gaps[0]?.state).toBe("confirmed_empty");
    store.declareGaps([{ from: 120, to: 180, state: "lost" }]);
    expect(store.gaps[0]?.state).toBe("lost");
  });

  test("declared a thousand times has a bounded number of states in memory", () => {
    const store = storeOf(candle(0), candle(3));
    store.declareGaps([{ from: 60, to: 180, state: "healing" }]);
    const elsewhere = Array.from({ length: MAX_DECLARED + 500 }, (_, index) => {
      const from = 1_000_000 + index * 120;
      return { from, to: from + 60, state: "unknown" } as const;
    });
    for (const gap of elsewhere) store.declareGaps([gap]);
    expect(store.gaps[0]?.state).toBe("healing");
    const known = elsewhere.reduce((all, gap) => all.with(gap), new DeclaredGaps()).bounded([]);
    expect(known.count).toBe(MAX_DECLARED);
  });
});

describe("memory", () => {
  test("is bounded: the oldest candles are dropped when live candles exceed the capacity", () => {
    const store = new SeriesStore("1m", 100);
    store.replace(minutes(0, 100));
    expect(store.full).toBe(true);
    expect(store.close([candle(100)])).toEqual({ kind: "reset" });
    expect(store.count).toBe(90);
    expect(store.lastClosed).toBe(6000);
    expect(store.full).toBe(false);
  });

  test("takes the newest candles of an older page, as many as fit", () => {
    const store = new SeriesStore("1m", 5);
    store.replace(minutes(10, 13));
    store.prepend(minutes(0, 10));
    expect(shown(store)).toBe("8 9 10 11 12");
  });
});

/** Pseudorandom numbers in [0, 1), so that a failure can be reproduced by its seed. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

describe("any order of events", () => {
  test.each(Array.from({ length: 60 }, (_, seed) => seed))("keeps the chart equal to the store, seed %i", (seed) => {
    const next = random(seed);
    const pick = (below: number): number => Math.floor(next() * below);
    const store = new SeriesStore("1m", 40);
    // The chart: bars by time, redrawn only where the changes say so. A chart can replace a bar, and append bars.
    let chart = new Map<number, string>();
    const follow = (change: Change): void => {
      if (change.kind === "reset") chart = new Map();
      if (change.kind === "none" || change.kind === "unjoined") return;
      for (const bar of store.barsFrom(change.kind === "tail" ? change.from : 0)) {
        const { time } = bar.candle;
        if (!chart.has(time)) expect(time).toBeGreaterThan(Math.max(...chart.keys()));
        chart.set(time, `${bar.candle.close}${bar.forming}`);
      }
    };
    follow(store.replace(minutes(50, 50 + pick(20))));
    for (let index = 0; index < 120; index += 1) {
      const head = (store.lastClosed ?? 3000) / 60;
      switch (pick(6)) {
        case 0:
          follow(store.close([candle(head + 1), candle(head + 2)]));
          break;
        case 1:
          follow(store.close([candle(head + 1 + pick(4), pick(9))]));
          break;
        case 2:
          follow(store.close([candle(head - pick(12), pick(9))], true));
          break;
        case 3:
          follow(store.prepend(minutes((store.first ?? 3000) / 60 - pick(6), (store.first ?? 3000) / 60)));
          break;
        default:
          follow(store.form(candle(head + pick(4), next())));
      }
      const bars = store.barsFrom(0);
      expect([...chart.entries()].toSorted(([one], [other]) => one - other)).toEqual(
        bars.map((bar) => [bar.candle.time, `${bar.candle.close}${bar.forming}`]),
      );
      const times = bars.map((bar) => bar.candle.time);
      expect(times).toEqual([...new Set(times)].toSorted((one, other) => one - other));
      expect(store.count).toBeLessThanOrEqual(40);
      const missing = store.gaps.reduce((sum, gap) => sum + gap.missing, 0);
      if (store.first !== null && store.lastClosed !== null) {
        expect(store.count + missing).toBe((store.lastClosed - store.first) / 60 + 1);
      }
    }
  });
});

test("merged changes cover both", () => {
  expect(mergeChanges({ kind: "tail", from: 60 }, { kind: "tail", from: 30 })).toEqual({ kind: "tail", from: 30 });
  expect(mergeChanges({ kind: "tail", from: 60 }, { kind: "reset" })).toEqual({ kind: "reset" });
  expect(mergeChanges({ kind: "none" }, { kind: "tail", from: 60 })).toEqual({ kind: "tail", from: 60 });
  expect(mergeChanges({ kind: "reset" }, { kind: "unjoined" })).toEqual({ kind: "unjoined" });
});

describe("a time among the bars", () => {
  const store = storeOf(candle(2), candle(3), candle(6));
  store.form(candle(7));

  test("is at its bar, closed or forming", () => {
    expect([2, 3, 6, 7].map((minute) => store.positionOf(minute * 60))).toEqual([0, 1, 2, 3]);
  });

  test("is between its neighbours in a gap", () => {
    expect([4, 5].map((minute) => store.positionOf(minute * 60))).toEqual([1.5, 1.5]);
  });

  test("is outside by steps of the timeframe", () => {
    expect([0, 1, 8, 10].map((minute) => store.positionOf(minute * 60))).toEqual([-2, -1, 4, 6]);
  });

  test("is held when a closed candle opens there", () => {
    expect([1, 2, 4, 6, 7].map((minute) => store.holds(minute * 60))).toEqual([false, true, false, true, false]);
  });

  test("is 0 without bars", () => {
    expect(new SeriesStore("1m").positionOf(60)).toBe(0);
  });
});
