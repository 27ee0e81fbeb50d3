import { beforeEach, describe, expect, test } from "vitest";
import { type DrawDelta, type Instruction, parseDrawDelta } from "../src/drawing.ts";
import { type DrawingPage, joinPoints, keepPages, MAX_PAGES, nextPage, OVERLAP_CANDLES, PAGE_CANDLES, pageOf } from "../src/drawing-pages.ts";
import { DrawingStore } from "../src/drawing-store.ts";
import { zonesOf } from "../src/polylines.ts";

const STEP = 60;
const LENGTH = PAGE_CANDLES * STEP;

function page(number: number, more: Partial<DrawingPage> = {}): DrawingPage {
  const start = number * LENGTH;
  const end = start + LENGTH;
  const at = end + (OVERLAP_CANDLES - 1) * STEP;
  return { start, end, at, epoch: 1, points: new Map(), drawings: [], ...more };
}

function pagesOf(...pages: DrawingPage[]): Map<number, DrawingPage> {
  return new Map(pages.map((each) => [each.start, each]));
}

function delta(to: number, more: Record<string, unknown> = {}): DrawDelta {
  const parsed = parseDrawDelta({
    series_id: "x",
    to_candle_time: to,
    epoch: 1,
    active_ids: [],
    instruction_catalog_patch: [],
    series_points: {},
    next_cursor: { version_id: 0, point_time: to },
    ...more,
  });
  if (parsed === null) throw new Error("not a delta");
  return parsed;
}

function points(from: number, to: number, every = STEP): { time: number; value: number }[] {
  return Array.from({ length: Math.ceil((to - from) / every) }, (_, index) => ({ time: from + index * every, value: from + index }));
}

describe("the next page", () => {
  const LAST = 100 * LENGTH;
  const LIVE = LAST - 500 * STEP;

  test("is none while the view is in the live part", () => {
    expect(nextPage({ from: LAST - 200 * STEP, to: LAST, first: 0 }, new Map(), STEP, LIVE, LAST)).toBeNull();
  });

  test("is the page in view, requested with its overlap", () => {
    const view = { from: 7 * LENGTH + 300 * STEP, to: 7 * LENGTH + 500 * STEP, first: 0 };
    const next = nextPage(view, new Map(), STEP, LIVE, LAST);
    expect(next).toEqual({ start: 7 * LENGTH, end: 8 * LENGTH, at: 8 * LENGTH + (OVERLAP_CANDLES - 1) * STEP });
    expect(nextPage(view, pagesOf(page(7)), STEP, LIVE, LAST)).toBeNull();
  });

  test("covers every candle of any view after all requests", () => {
    for (const [from, candles] of [[0, 180], [3.2, 180], [9.95, 200], [12, 7000], [90, 12_000]] as const) {
      const view = { from: from * LENGTH, to: from * LENGTH + candles * STEP, first: 0 };
      let pages = new Map<number, DrawingPage>();
      for (;;) {
        const next = nextPage(view, pages, STEP, LIVE, LAST);
        if (next === null) break;
        expect(pages.has(next.start)).toBe(false);
        pages = keepPages(new Map([...pages, [next.start, { ...page(0), ...next }]]), view);
      }
      for (let time = view.from; time <= Math.min(view.to, LIVE - STEP); time += STEP) {
        expect(pages.has(Math.floor(time / LENGTH) * LENGTH)).toBe(true);
      }
      expect(pages.size).toBeLessThanOrEqual(MAX_PAGES);
    }
  });

  test("is requested once more when its overlap is complete", () => {
    const start = LAST - LENGTH;
    const view = { from: start + 10 * STEP, to: start + 200 * STEP, first: 0 };
    const early = nextPage(view, pagesOf(page(98)), STEP, LIVE, LAST);
    expect(early).toEqual({ start, end: LAST, at: LAST });
    const asked = pagesOf(page(98), page(99, { at: LAST }));
    expect(nextPage(view, asked, STEP, LIVE, LAST + 400 * STEP)).toBeNull();
    expect(nextPage(view, asked, STEP, LIVE, LAST + 600 * STEP)).toMatchObject({ start, at: LAST + (OVERLAP_CANDLES - 1) * STEP });
  });

  test("is none before the first candle", () => {
    const first = 3 * LENGTH + 5 * STEP;
    expect(nextPage({ from: first, to: first + 100 * STEP, first }, pagesOf(page(3)), STEP, LIVE, LAST)).toBeNull();
  });
});

function instruction(id: string, visible: number, definition: Record<string, unknown>): Record<string, unknown> {
  return { version_id: 1, instruction_id: id, visible_time: visible, definition: { color: "#fff", ...definition } };
}
function marker(id: string, time: number, visible: number): Record<string, unknown> {
  return instruction(id, visible, { type: "marker", feature: "pivot.major", time });
}
function line(id: string, feature: string, visible: number, ...times: number[]): Record<string, unknown> {
  return instruction(id, visible, { type: "polyline", feature, points: times.map((time) => ({ time, value: time })) });
}

describe("a page", () => {
  const query = { start: LENGTH, end: 2 * LENGTH, at: 2 * LENGTH + 499 * STEP };
  test("has the points and drawings between its ends", () => {
    const patch = [
      marker("before", LENGTH - STEP, LENGTH + STEP),
      marker("in", LENGTH, LENGTH + 50 * STEP),
      marker("late", 2 * LENGTH - STEP, 2 * LENGTH + 49 * STEP),
      marker("behind", 2 * LENGTH, 2 * LENGTH + 50 * STEP),
      marker("not active", LENGTH + STEP, LENGTH + 50 * STEP),
    ];
    const taken = pageOf(query, delta(query.at, { active_ids: ["before", "in", "late", "behind"], instruction_catalog_patch: patch, series_points: { ema_21: points(0, 3 * LENGTH) } }));
    expect(taken.drawings.map(({ id }) => id)).toEqual(["in", "late"]);
    expect(taken.points.get("ema_21")).toEqual(points(0, 3 * LENGTH).filter(({ time }) => time >= LENGTH && time < 2 * LENGTH));
  });

  test("omits drawings of its head, and cuts the composed line", () => {
    const corners = [LENGTH - 400 * STEP, LENGTH - STEP, LENGTH + 500 * STEP, 2 * LENGTH + 100 * STEP, 2 * LENGTH + 400 * STEP];
    const patch = [
      line("pen.extending", "pen.extending", query.at, 2 * LENGTH - STEP, query.at),
      line("zhongshu.alive:top", "zhongshu.alive", query.at, LENGTH, query.at),
      line("zhongshu.dead:60:top", "zhongshu.dead", 2 * LENGTH, LENGTH, LENGTH + 60 * STEP),
      line("pen.confirmed", "pen.confirmed", query.at, ...corners),
    ];
    const ids = ["pen.extending", "zhongshu.alive:top", "zhongshu.dead:60:top", "pen.confirmed"];
    const taken = pageOf(query, delta(query.at, { active_ids: ids, instruction_catalog_patch: patch }));
    expect(taken.drawings.map(({ id }) => id)).toEqual(["zhongshu.dead:60:top", "pen.confirmed"]);
    const pen = taken.drawings[1]?.definition;
    expect(pen?.type === "polyline" && pen.points.map(({ time }) => time)).toEqual(corners.slice(1, 4));
  });
});

describe("points of pages and live", () => {
  test("are one ascending list, interrupted where a page is missing", () => {
    const pages = [1, 2, 5, 9].map((number) => page(number, { points: new Map([["x", points(number * LENGTH, (number + 1) * LENGTH)]]) }));
    const live = points(10 * LENGTH, 10 * LENGTH + 5 * STEP);
    const joined = joinPoints(pages, "x", live, 10 * LENGTH);
    expect(joined.every((point, index) => index === 0 || point.time > (joined[index - 1]?.time ?? 0))).toBe(true);
    expect(joined.filter((point) => point.breaks).map(({ time }) => time)).toEqual([3 * LENGTH - STEP, 6 * LENGTH - STEP]);
  });

  test("are the live points where both have them", () => {
    const one = page(1, { points: new Map([["x", points(LENGTH, 2 * LENGTH)]]) });
    const live = points(2 * LENGTH - 2 * STEP, 3 * LENGTH).map(({ time }) => ({ time, value: -1 }));
    const joined = joinPoints([one], "x", live, 2 * LENGTH - 2 * STEP);
    expect(joined).toHaveLength(2 * PAGE_CANDLES);
    expect(joined.filter(({ value }) => value === -1)).toHaveLength(PAGE_CANDLES + 2);
    expect(joined.some((point) => point.breaks)).toBe(false);
  });
});

/** A drawing whose id is its feature. */
function told(id: string, time: number): Instruction[] {
  const looks = { position: "aboveBar", color: "", shape: "circle", text: "", size: 1 } as const;
  return [{ id, visibleTime: 5, definition: { type: "marker", feature: id === "zone" ? "pivot.major" : id, time, ...looks } }];
}

describe("the store", () => {
  const view = { from: LENGTH, to: 2 * LENGTH, first: 0 };
  let store: DrawingStore;
  beforeEach(() => {
    store = new DrawingStore();
    store.take(delta(9 * LENGTH, { series_points: { x: points(8 * LENGTH, 9 * LENGTH) } }), true, 8 * LENGTH);
  });

  test("shows a drawing of two pages once, in the version of the newer page", () => {
    store.takePage(page(2, { drawings: told("zone", 7) }), view);
    store.takePage(page(1, { drawings: told("zone", 6) }), view);
    expect(store.drawings.map((one) => one.type === "marker" && one.time)).toEqual([7]);
  });

  test("shows every piece of a composed line", () => {
    for (const number of [1, 2, 3]) store.takePage(page(number, { drawings: told("pen.confirmed", number) }), view);
    expect(store.drawings).toHaveLength(3);
  });

  test("changes its generation when points are inserted, and keeps a bounded number of pages", () => {
    const { generation } = store;
    store.takePage(page(1, { points: new Map([["x", points(LENGTH, 2 * LENGTH)]]) }), view);
    expect(store.generation).toBeGreaterThan(generation);
    expect(store.pointsOf("x")[0]?.time).toBe(LENGTH);
    for (let number = 2; number < 3 * MAX_PAGES; number += 1) store.takePage(page(number), view);
    expect(store.pages.size).toBe(MAX_PAGES);
    expect(store.pages.has(LENGTH)).toBe(true);
  });

  test("drops its pages with a new epoch, and when the candles were loaded again", () => {
    store.takePage(page(1), view);
    store.take(delta(9 * LENGTH + STEP, { epoch: 1 }), false, 8 * LENGTH);
    expect(store.pages.size).toBe(1);
    store.take(delta(9 * LENGTH + STEP, { epoch: 2 }), false, 8 * LENGTH);
    expect(store.pages.size).toBe(0);
    store.takePage(page(1), view);
    store.dropPages();
    expect(store.pages.size).toBe(0);
  });

  test("appends live points to those of pages", () => {
    store.takePage(page(7, { points: new Map([["x", points(7 * LENGTH, 8 * LENGTH)]]) }), view);
    expect(store.pointsOf("x")).toHaveLength(2 * PAGE_CANDLES);
    store.take(delta(9 * LENGTH, { series_points: { x: [{ time: 9 * LENGTH, value: 1 }] } }), false, 8 * LENGTH);
    expect(store.pointsOf("x")).toHaveLength(2 * PAGE_CANDLES + 1);
  });
});

function edges(...ids: string[]): ReturnType<typeof zonesOf> {
  const patch = ids.map((id) => ({
    instruction_id: id,
    visible_time: 5,
    definition: { type: "polyline", feature: "zhongshu.dead", color: "#fff", entryDirection: 1, points: [{ time: 0, value: 1 }, { time: 60, value: 1 }] },
  }));
  const parsed = delta(60, { active_ids: ids, instruction_catalog_patch: patch }).patch.map(({ definition }) => definition);
  return zonesOf(parsed.filter((one) => one.type === "polyline"));
}

describe("the edges of a zone", () => {
  test("form one zone when the names of the lines agree", () => {
    const zones = edges("zhongshu.dead:60:top", "zhongshu.alive:bottom", "zhongshu.dead:60:bottom", "zhongshu.alive:top", "pen.confirmed");
    expect(zones.map(({ top, bottom }) => [top.edge, bottom.edge])).toEqual([
      [{ zone: "zhongshu.alive", side: "top" }, { zone: "zhongshu.alive", side: "bottom" }],
      [{ zone: "zhongshu.dead:60", side: "top" }, { zone: "zhongshu.dead:60", side: "bottom" }],
    ]);
  });

  test("form no zone while an edge is missing", () => {
    expect(edges("zhongshu.dead:60:top", "zhongshu.dead:120:bottom")).toEqual([]);
  });
});
