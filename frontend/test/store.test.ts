import { describe, expect, test } from "vitest";
import type { Candle } from "../src/series.ts";
import { type Change, mergeChanges, SeriesStore } from "../src/store.ts";
import { MOST_DECLARED, DeclaredGaps } from "../src/declared-gaps.ts";

/** The candle of minute `minute`; `close` tells versions of it apart. */
function candle(minute: number, close = 1): Candle {
  return { time: minute * 60, open: 1, high: 2, low: 0.5, close, volume: 3 };
}

function minutes(from: number, to: number): Candle[] {
  return Array.from({ length: to - from }, (_, index) => candle(from + index));
}

function store(...held: Candle[]): SeriesStore {
  const made = new SeriesStore("1m");
  made.replace(held);
  return made;
}

function shown(held: SeriesStore): string {
  return held
    .barsFrom(0)
    .map((bar) => `${bar.candle.time / 60}${bar.forming ? "~" : ""}`)
    .join(" ");
}

describe("history and live", () => {
  test("join without a double where they overlap", () => {
    const held = store(...minutes(0, 3));
    expect(held.close([candle(2), candle(3)])).toEqual({ kind: "tail", from: 180 });
    expect(shown(held)).toBe("0 1 2 3");
  });

  test("are strictly increasing even when an answer is not", () => {
    expect(shown(store(candle(0), candle(2), candle(1), candle(2), candle(3)))).toBe("0 2 3");
  });

  test("change nothing when the same comes again", () => {
    expect(store(...minutes(0, 3)).close([candle(1), candle(2)])).toEqual({ kind: "none" });
  });

  test("do not join when a candle contradicts what is held", () => {
    expect(store(...minutes(0, 3)).close([candle(1, 9)])).toEqual({ kind: "unjoined" });
  });

  test("do not join when a candle is older than the newest and not held", () => {
    expect(store(candle(0), candle(5)).close([candle(3)])).toEqual({ kind: "unjoined" });
  });
});

describe("a revision", () => {
  test("replaces the candle that it corrects", () => {
    const held = store(...minutes(0, 3));
    expect(held.close([candle(1, 9)], true)).toEqual({ kind: "tail", from: 60 });
    expect(held.barAt(60)?.bar.candle.close).toBe(9);
    expect(held.count).toBe(3);
  });

  test("fills in a hole", () => {
    const held = store(candle(0), candle(3));
    expect(held.gaps).toMatchObject([{ from: 60, to: 180, missing: 2 }]);
    expect(held.close([candle(1)], true)).toEqual({ kind: "reset" });
    expect(held.close([candle(2)], true)).toEqual({ kind: "reset" });
    expect(shown(held)).toBe("0 1 2 3");
    expect(held.gaps).toEqual([]);
  });

  test("older than everything held is left to scrolling back", () => {
    const held = store(candle(5), candle(6));
    held.prepend([]);
    expect(held.olderExists).toBe(false);
    expect(held.close([candle(1)], true)).toEqual({ kind: "none" });
    expect(shown(held)).toBe("5 6");
    expect(held.olderExists).toBe(true);
  });
});

describe("a forming candle", () => {
  test("is shown behind the closed ones and moves", () => {
    const held = store(...minutes(0, 2));
    expect(held.form(candle(2, 1.1))).toEqual({ kind: "tail", from: 120 });
    expect(held.form(candle(2, 1.2))).toEqual({ kind: "tail", from: 120 });
    expect(shown(held)).toBe("0 1 2~");
    expect(held.last?.candle.close).toBe(1.2);
    expect(held.lastClosed).toBe(60);
  });

  test("becomes the closed one", () => {
    const held = store(...minutes(0, 2));
    held.form(candle(2));
    expect(held.close([candle(2, 1.5)])).toEqual({ kind: "tail", from: 120 });
    expect(shown(held)).toBe("0 1 2");
    expect(held.lastForming).toBeNull();
  });

  test("never replaces a closed one", () => {
    const held = store(...minutes(0, 3));
    expect(held.form(candle(2, 9))).toEqual({ kind: "none" });
    expect(held.form(candle(1, 9))).toEqual({ kind: "none" });
    expect(held.barAt(120)?.bar).toMatchObject({ forming: false, candle: { close: 1 } });
  });

  test("waits beside the next one for a close that is late", () => {
    const held = store(...minutes(0, 2));
    held.form(candle(2));
    held.form(candle(3));
    expect(shown(held)).toBe("0 1 2~ 3~");
    expect(held.close([candle(2)])).toEqual({ kind: "tail", from: 120 });
    expect(shown(held)).toBe("0 1 2 3~");
  });

  test("is taken away when its close never came", () => {
    const held = store(...minutes(0, 2));
    held.form(candle(2));
    expect(held.close([candle(3)])).toEqual({ kind: "reset" });
    expect(shown(held)).toBe("0 1 3");
  });

  test("of the next minute makes room for a close that was never shown forming", () => {
    const held = store(...minutes(0, 2));
    held.form(candle(3));
    expect(held.close([candle(2)])).toEqual({ kind: "reset" });
    expect(shown(held)).toBe("0 1 2 3~");
  });

  test("is the first thing shown of a series without history", () => {
    const held = store();
    held.form(candle(7));
    expect(shown(held)).toBe("7~");
    expect(held.lastClosed).toBeNull();
  });
});

describe("scrolling back", () => {
  test("puts older candles before the first one", () => {
    const held = store(...minutes(5, 8));
    expect(held.prepend(minutes(2, 6))).toEqual({ kind: "reset" });
    expect(shown(held)).toBe("2 3 4 5 6 7");
    expect(held.olderExists).toBe(true);
  });

  test("ends when nothing older comes", () => {
    const held = store(...minutes(5, 8));
    expect(held.prepend([])).toEqual({ kind: "none" });
    expect(held.olderExists).toBe(false);
  });
});

describe("a hole", () => {
  test("is found in history, between pages and in live", () => {
    const held = store(candle(10), candle(12));
    held.prepend([candle(7), candle(8)]);
    held.close([candle(15)]);
    expect(held.gaps.map((gap) => [gap.from / 60, gap.missing])).toEqual([
      [9, 1],
      [11, 1],
      [13, 2],
    ]);
    expect(held.gapBefore(900)?.missing).toBe(2);
    expect(held.gapBefore(720)?.missing).toBe(1);
    expect(held.gapBefore(600)?.missing).toBe(1);
    expect(held.gapBefore(480)).toBeNull();
  });

  test("has the state that the service declared", () => {
    const held = store(candle(0));
    held.declareGaps([{ from: 60, to: 180, state: "healing" }]);
    held.close([candle(3)]);
    expect(held.gaps[0]?.state).toBe("healing");
    expect(held.declareGaps([{ from: 60, to: 180, state: "confirmed_empty" }])).toBe(true);
    expect(held.gaps[0]?.state).toBe("confirmed_empty");
    expect(held.declareGaps([{ from: 60, to: 180, state: "confirmed_empty" }])).toBe(false);
  });

  test("is no better known than its least known part, and a newer word replaces an older one", () => {
    const held = store(candle(0), candle(6));
    held.declareGaps([{ from: 60, to: 240, state: "confirmed_empty" }]);
    expect(held.gaps[0]?.state).toBe("unknown");
    held.declareGaps([{ from: 240, to: 360, state: "healing" }]);
    expect(held.gaps[0]?.state).toBe("healing");
    held.declareGaps([{ from: 120, to: 360, state: "confirmed_empty" }]);
    expect(held.gaps[0]?.state).toBe("confirmed_empty");
    held.declareGaps([{ from: 120, to: 180, state: "lost" }]);
    expect(held.gaps[0]?.state).toBe("lost");
  });

  test("declared a thousand times over does not fill the memory with states", () => {
    const held = store(candle(0), candle(3));
    held.declareGaps([{ from: 60, to: 180, state: "healing" }]);
    const elsewhere = Array.from({ length: MOST_DECLARED + 500 }, (_, index) => {
      const from = 1_000_000 + index * 120;
      return { from, to: from + 60, state: "unknown" } as const;
    });
    for (const gap of elsewhere) held.declareGaps([gap]);
    expect(held.gaps[0]?.state).toBe("healing");
    const known = elsewhere.reduce((all, gap) => all.with(gap), new DeclaredGaps()).bounded([]);
    expect(known.count).toBe(MOST_DECLARED);
  });
});

describe("memory", () => {
  test("is bounded: the oldest candles go when live exceeds the capacity", () => {
    const held = new SeriesStore("1m", 100);
    held.replace(minutes(0, 100));
    expect(held.full).toBe(true);
    expect(held.close([candle(100)])).toEqual({ kind: "reset" });
    expect(held.count).toBe(90);
    expect(held.lastClosed).toBe(6000);
    expect(held.full).toBe(false);
  });

  test("takes no more of an older page than there is room for, and the newest of it", () => {
    const held = new SeriesStore("1m", 5);
    held.replace(minutes(10, 13));
    held.prepend(minutes(0, 10));
    expect(shown(held)).toBe("8 9 10 11 12");
  });
});

/** Numbers in [0, 1) that a seed decides, so that a failure can be repeated. */
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
    const held = new SeriesStore("1m", 40);
    // The chart: bars by time, redrawn only as the changes tell. It can replace a bar and add one at its end.
    let chart = new Map<number, string>();
    const follow = (change: Change): void => {
      if (change.kind === "reset") chart = new Map();
      if (change.kind === "none" || change.kind === "unjoined") return;
      for (const bar of held.barsFrom(change.kind === "tail" ? change.from : 0)) {
        const { time } = bar.candle;
        if (!chart.has(time)) expect(time).toBeGreaterThan(Math.max(...chart.keys()));
        chart.set(time, `${bar.candle.close}${bar.forming}`);
      }
    };
    follow(held.replace(minutes(50, 50 + pick(20))));
    for (let index = 0; index < 120; index += 1) {
      const head = (held.lastClosed ?? 3000) / 60;
      switch (pick(6)) {
        case 0:
          follow(held.close([candle(head + 1), candle(head + 2)]));
          break;
        case 1:
          follow(held.close([candle(head + 1 + pick(4), pick(9))]));
          break;
        case 2:
          follow(held.close([candle(head - pick(12), pick(9))], true));
          break;
        case 3:
          follow(held.prepend(minutes((held.first ?? 3000) / 60 - pick(6), (held.first ?? 3000) / 60)));
          break;
        default:
          follow(held.form(candle(head + pick(4), next())));
      }
      const bars = held.barsFrom(0);
      expect([...chart.entries()].toSorted(([one], [other]) => one - other)).toEqual(
        bars.map((bar) => [bar.candle.time, `${bar.candle.close}${bar.forming}`]),
      );
      const times = bars.map((bar) => bar.candle.time);
      expect(times).toEqual([...new Set(times)].toSorted((one, other) => one - other));
      expect(held.count).toBeLessThanOrEqual(40);
      const missing = held.gaps.reduce((sum, gap) => sum + gap.missing, 0);
      if (held.first !== null && held.lastClosed !== null) {
        expect(held.count + missing).toBe((held.lastClosed - held.first) / 60 + 1);
      }
    }
  });
});

test("two changes are one that covers both", () => {
  expect(mergeChanges({ kind: "tail", from: 60 }, { kind: "tail", from: 30 })).toEqual({ kind: "tail", from: 30 });
  expect(mergeChanges({ kind: "tail", from: 60 }, { kind: "reset" })).toEqual({ kind: "reset" });
  expect(mergeChanges({ kind: "none" }, { kind: "tail", from: 60 })).toEqual({ kind: "tail", from: 60 });
  expect(mergeChanges({ kind: "reset" }, { kind: "unjoined" })).toEqual({ kind: "unjoined" });
});

describe("a time among the bars", () => {
  const held = store(candle(2), candle(3), candle(6));
  held.form(candle(7));

  test("lies at its bar, closed or forming", () => {
    expect([2, 3, 6, 7].map((minute) => held.positionOf(minute * 60))).toEqual([0, 1, 2, 3]);
  });

  test("lies between its neighbours in a hole", () => {
    expect([4, 5].map((minute) => held.positionOf(minute * 60))).toEqual([1.5, 1.5]);
  });

  test("lies outside by steps of the timeframe", () => {
    expect([0, 1, 8, 10].map((minute) => held.positionOf(minute * 60))).toEqual([-2, -1, 4, 6]);
  });

  test("is held when a closed candle opens there", () => {
    expect([1, 2, 4, 6, 7].map((minute) => held.holds(minute * 60))).toEqual([false, true, false, true, false]);
  });

  test("is the beginning as long as there are none", () => {
    expect(new SeriesStore("1m").positionOf(60)).toBe(0);
  });
});
