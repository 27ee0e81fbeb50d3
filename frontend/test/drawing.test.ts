import { beforeEach, describe, expect, test } from "vitest";
import { parseCatalogue, parseDrawDelta, type DrawDelta } from "../src/drawing.ts";
import { DrawingFeed, LIVE_WINDOW } from "../src/drawing-feed.ts";
import { DrawingStore, MAX_POINTS } from "../src/drawing-store.ts";
import { decodeChoices, encodeChoices, Layers } from "../src/layers.ts";
import { BTC, ETH, seriesOf, World } from "./support.ts";

function marker(minute: number, more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    version_id: 1,
    instruction_id: `pivot.major:${minute * 60}:support:50`,
    kind: "marker",
    visible_time: minute * 60,
    definition: {
      type: "marker",
      feature: "pivot.major",
      time: minute * 60,
      position: "belowBar",
      color: "#2b8fa8",
      shape: "circle",
      text: "",
      size: 1,
      ...more,
    },
  };
}

const LINE = {
  version_id: 3,
  instruction_id: "pen.confirmed",
  kind: "polyline",
  visible_time: 600,
  definition: {
    type: "polyline",
    feature: "pen.confirmed",
    points: [{ time: 0, value: 1 }, { time: 600, value: 2.5 }],
    color: "#3f83f0",
    lineWidth: 2,
  },
};

function points(...minutes: number[]): { time: number; value: number }[] {
  return minutes.map((minute) => ({ time: minute * 60, value: minute }));
}

/** A delta as the service writes it. */
function body(to: number, more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    schema_version: 1,
    series_id: BTC,
    to_candle_id: `${BTC}:${to * 60}`,
    to_candle_time: to * 60,
    epoch: 1,
    active_ids: [],
    instruction_catalog_patch: [],
    series_points: {},
    next_cursor: { version_id: 0, point_time: to * 60 },
    ...more,
  };
}

function parsed(value: unknown): DrawDelta {
  const delta = parseDrawDelta(value);
  if (delta === null) throw new Error("not a delta");
  return delta;
}

describe("a delta", () => {
  test("is parsed whole", () => {
    const ids = [marker(3)["instruction_id"], "pen.confirmed"];
    const delta = parsed(
      body(10, {
        active_ids: ids,
        instruction_catalog_patch: [marker(3), LINE],
        series_points: { ema_21: points(9, 10), rsi_14: [] },
        next_cursor: { version_id: 3, point_time: 600 },
      }),
    );
    expect(delta.active).toEqual(ids);
    expect(delta.patch.map(({ definition }) => definition)).toEqual([
      marker(3)["definition"],
      { ...LINE.definition, lineStyle: "solid", edge: null },
    ]);
    expect([...delta.points]).toEqual([
      ["ema_21", points(9, 10)],
      ["rsi_14", []],
    ]);
    expect(delta.cursor).toEqual({ versionId: 3, pointTime: 600 });
    expect([delta.epoch, delta.to, delta.series]).toEqual([1, 600, BTC]);
  });

  test("loses only the instructions that are not understood", () => {
    const odd = { instruction_id: "x", definition: { type: "circle", feature: "x" } };
    const bent = { ...LINE, definition: { ...LINE.definition, points: [{ time: 0, value: null }, { time: 60, value: 1 }] } };
    const delta = parsed(body(10, { instruction_catalog_patch: [odd, null, bent, marker(3)] }));
    expect(delta.patch).toHaveLength(1);
  });

  test.each([null, [], {}, { active_ids: [] }, "text"])("cannot be %j", (other) => {
    expect(parseDrawDelta(other)).toBeNull();
  });
});

describe("the store", () => {
  const first = body(10, {
    active_ids: ["a", "b"],
    instruction_catalog_patch: [
      { ...marker(3), instruction_id: "a" },
      { ...marker(4), instruction_id: "b" },
    ],
    series_points: { ema_21: points(8, 9, 10) },
    next_cursor: { version_id: 2, point_time: 600 },
  });
  const second = body(11, {
    active_ids: ["b", "c"],
    instruction_catalog_patch: [
      { ...marker(5), instruction_id: "c" },
      { ...marker(4, { text: "new" }), instruction_id: "b" },
    ],
    series_points: { ema_21: points(11) },
    next_cursor: { version_id: 4, point_time: 660 },
  });
  let store: DrawingStore;
  beforeEach(() => {
    store = new DrawingStore();
    store.take(parsed(first), true, 0);
  });

  function shown(): unknown[] {
    return store.drawings.map((drawing) => (drawing.type === "marker" ? [drawing.time, drawing.text] : drawing.type));
  }

  test("shows what is active, newest versions, in the service's order", () => {
    store.take(parsed(second), false, 0);
    expect(shown()).toEqual([[240, "new"], [300, ""]]);
    expect(store.pointsOf("ema_21")).toEqual(points(8, 9, 10, 11));
    expect(store.cursor).toEqual({ cursor: { versionId: 4, pointTime: 660 }, epoch: 1 });
    expect(store.to).toBe(660);
  });

  test("is the same after a repeated delta", () => {
    store.take(parsed(second), false, 0);
    const before = [shown(), store.pointsOf("ema_21"), store.generation];
    store.take(parsed(second), false, 0);
    expect([shown(), store.pointsOf("ema_21"), store.generation]).toEqual(before);
  });

  test("drops everything with a new epoch", () => {
    const { generation } = store;
    store.take(parsed({ ...second, epoch: 2 }), false, 0);
    expect(shown()).toEqual([[240, "new"], [300, ""]]);
    expect(store.pointsOf("ema_21")).toEqual(points(11));
    expect(store.generation).toBeGreaterThan(generation);
  });

  test("is replaced by the answer to a request without a cursor", () => {
    store.take(parsed({ ...second, active_ids: ["a", "b"] }), true, 0);
    expect(shown()).toEqual([[240, "new"]]);
  });

  test("keeps its generation while points are only appended", () => {
    const { generation } = store;
    store.take(parsed(second), false, 0);
    expect(store.generation).toBe(generation);
  });

  test("keeps a bounded number of points", () => {
    const many = Array.from({ length: MAX_POINTS + 1 }, (_, minute) => minute + 20);
    store.take(parsed(body(99_999, { series_points: { ema_21: points(...many) } })), false, 0);
    expect(store.pointsOf("ema_21").length).toBeLessThanOrEqual(MAX_POINTS);
    expect(store.pointsOf("ema_21").at(-1)).toEqual(points(MAX_POINTS + 20)[0]);
  });
});

/** The drawings' feed, and the service as the test plays it. */
class DrawingWorld extends World {
  readonly feed = new DrawingFeed(this.ports);

  get query(): Record<string, string> {
    return Object.fromEntries(new URLSearchParams(this.request.path.split("?")[1]));
  }

  /** Drawings of BTC/USDT up to minute 10, cursor 2. */
  async shown(): Promise<void> {
    this.feed.enable();
    this.feed.follow(seriesOf(BTC));
    this.feed.candles(600, false);
    await this.request.answer(200, body(10, { next_cursor: { version_id: 2, point_time: 600 } }));
  }
}

describe("the feed", () => {
  let world: DrawingWorld;
  beforeEach(() => {
    world = new DrawingWorld();
  });

  test("requests everything first, then a delta with each closed candle", async () => {
    await world.shown();
    expect(world.query).toEqual({ series_id: BTC, window_candles: String(LIVE_WINDOW) });
    expect(world.feed.state).toEqual({ kind: "ready" });
    world.feed.candles(600, false);
    expect(world.requests).toHaveLength(1);
    world.feed.candles(660, false);
    expect(world.query).toEqual({
      series_id: BTC,
      window_candles: String(LIVE_WINDOW),
      cursor_version_id: "2",
      cursor_point_time: "600",
      epoch: "1",
    });
  });

  test("requests nothing from a service without drawings", () => {
    world.feed.follow(seriesOf(BTC));
    world.feed.candles(600, false);
    expect(world.requests).toEqual([]);
    world.feed.enable();
    expect(world.requests).toHaveLength(1);
  });

  test("has one request in flight", async () => {
    await world.shown();
    world.feed.candles(660, false);
    world.feed.candles(720, false);
    expect(world.requests).toHaveLength(2);
    await world.request.answer(200, body(11));
    expect(world.feed.state).toEqual({ kind: "ready" });
    expect(world.requests).toHaveLength(3);
    await world.request.answer(200, body(12));
    expect(world.requests).toHaveLength(3);
  });

  test("requests a delta when an earlier candle has changed", async () => {
    await world.shown();
    world.feed.candles(600, true);
    expect(world.requests).toHaveLength(2);
  });

  test("is behind and retries while the ledgers lag", async () => {
    await world.shown();
    world.feed.candles(660, false);
    await world.request.answer(409, { detail: "ledger_out_of_sync:overlay", code: "ledger_out_of_sync:overlay" });
    expect(world.feed.state).toEqual({ kind: "behind" });
    world.feed.candles(720, false);
    expect(world.requests).toHaveLength(2);
    world.pass(1000);
    expect(world.requests).toHaveLength(3);
    expect(world.query["cursor_version_id"]).toBe("2");
    await world.request.answer(200, body(12));
    expect(world.feed.state).toEqual({ kind: "ready" });
  });

  test("retries when the drawings end before the newest candle", async () => {
    await world.shown();
    world.feed.candles(660, false);
    await world.request.answer(200, body(10));
    expect(world.feed.state).toEqual({ kind: "behind" });
    world.pass(1000);
    await world.request.answer(200, body(11));
    expect(world.feed.state).toEqual({ kind: "ready" });
    world.pass(60_000);
    expect(world.requests).toHaveLength(3);
  });

  test("retries after a failure with a growing backoff", async () => {
    await world.shown();
    world.feed.candles(660, false);
    await world.request.fail();
    expect(world.feed.state).toEqual({ kind: "unreachable" });
    const delays: number[] = [];
    for (let turn = 0; turn < 3; turn += 1) {
      const from = world.now;
      const { length } = world.requests;
      while (world.requests.length === length) world.pass(50);
      delays.push(world.now - from);
      await world.request.answer(503, null);
    }
    expect(delays).toEqual(delays.toSorted((first, second) => first - second));
    expect(delays[2]).toBeGreaterThan(delays[0] ?? 0);
  });

  test("keeps the reason of a refusal, and retries with the next candle", async () => {
    await world.shown();
    world.feed.candles(660, false);
    await world.request.answer(422, { detail: "no", code: "bad_request" });
    expect(world.feed.state).toEqual({ kind: "refused", reason: "no" });
    world.pass(60_000);
    expect(world.requests).toHaveLength(2);
    world.feed.candles(720, false);
    expect(world.requests).toHaveLength(3);
  });

  test("requests everything when the candles were loaded again", async () => {
    await world.shown();
    world.feed.reload();
    expect(world.requests).toHaveLength(2);
    expect(world.query).toEqual({ series_id: BTC, window_candles: String(LIVE_WINDOW) });
  });

  test("discards an answer about a series that is no longer shown", async () => {
    await world.shown();
    world.feed.candles(660, false);
    const late = world.request;
    world.feed.follow(seriesOf(ETH));
    expect(world.feed.store.to).toBeNull();
    world.feed.candles(240, false);
    expect(world.query["series_id"]).toBe(ETH);
    await late.answer(200, body(11));
    expect(world.feed.store.to).toBeNull();
    await world.request.answer(200, body(4, { series_id: ETH }));
    expect(world.feed.store.to).toBe(240);
  });
});

describe("pages of older drawings", () => {
  let world: DrawingWorld;
  beforeEach(async () => {
    world = new DrawingWorld();
    world.feed.enable();
    world.feed.follow(seriesOf(BTC));
    world.feed.candles(6000 * 60, false);
    await world.request.answer(200, body(6000));
    world.feed.view({ from: 3100 * 60, to: 3200 * 60, first: 0 });
  });

  test("that lag are behind until their answer comes", async () => {
    expect(world.query["at_time"]).toBeDefined();
    await world.request.answer(409, { detail: "ledger_out_of_sync:overlay", code: "ledger_out_of_sync:overlay" });
    expect(world.feed.state).toEqual({ kind: "behind" });
    world.pass(1000);
    await world.request.answer(200, body(4499));
    expect(world.feed.state).toEqual({ kind: "ready" });
  });

  test("that lag are behind no longer than they are in view", async () => {
    await world.request.answer(409, { detail: "ledger_out_of_sync:overlay", code: "ledger_out_of_sync:overlay" });
    world.feed.view({ from: 5900 * 60, to: 6000 * 60, first: 0 });
    world.pass(1000);
    expect(world.feed.state).toEqual({ kind: "ready" });
  });
});

describe("layers", () => {
  const groups = parseCatalogue({
    schema_version: 1,
    factors: [
      {
        key: "pivot",
        label: "Pivots",
        default_visible: true,
        sub_features: [
          { key: "pivot.major", label: "Major pivots", default_visible: true },
          { key: "pivot.minor", label: "Minor pivots", default_visible: false },
        ],
      },
      {
        key: "macd_12_26_9",
        label: "MACD(12,26,9)",
        default_visible: true,
        pane: "own",
        sub_features: [
          { key: "macd_12_26_9.macd", label: "MACD", default_visible: true },
          { key: "macd_12_26_9.macdhist", label: "MACD(12,26,9) macdhist", default_visible: true, style: "histogram" },
        ],
      },
      { key: "ema_21", label: "EMA(21)", default_visible: true, pane: "price", sub_features: [] },
      { key: "sma_9", label: "SMA(9)", default_visible: false, pane: "price", sub_features: [] },
      null,
    ],
  });
  const layers = new Layers(groups);

  test("are visible as the catalogue proposes", () => {
    expect(groups.map((group) => group.key)).toEqual(["pivot", "macd_12_26_9", "ema_21", "sma_9"]);
    const names = ["pivot.major", "pivot.minor", "macd_12_26_9.macdhist", "ema_21", "sma_9", "level.named"];
    expect(names.map((name) => layers.visible(name))).toEqual([true, false, true, true, false, true]);
    expect(layers.find("macd_12_26_9.macdhist")?.layer.look).toBe("histogram");
    expect(layers.find("macd_12_26_9.macdhist")?.layer.label).toBe("macdhist");
    expect(layers.find("ema_21")?.group.pane).toBe("price");
  });

  test("are visible as the reader chooses", () => {
    const chosen = layers.choose(["pivot.minor"], true).choose(["ema_21", "pivot.major"], false);
    const names = ["pivot.major", "pivot.minor", "ema_21"];
    expect(names.map((name) => chosen.visible(name))).toEqual([false, true, false]);
    expect(decodeChoices(encodeChoices(chosen.choices))).toEqual(chosen.choices);
  });

  test("without room show the panes that the reader chose", () => {
    const narrow = new Layers(groups, new Map(), false);
    expect(["pivot.major", "ema_21", "macd_12_26_9.macd"].map((name) => narrow.visible(name))).toEqual([true, true, false]);
    expect(narrow.choose(["macd_12_26_9.macd"], true).visible("macd_12_26_9.macd")).toBe(true);
  });

  test("that the catalogue does not name can be hidden", () => {
    const all = layers.including(["pivot.major", "level.named"]).including(["level.line", "level.named"]);
    expect(all.groups.at(-1)?.layers.map((layer) => layer.key)).toEqual(["level.named", "level.line"]);
    expect(all.choose(["level.named"], false).visible("level.named")).toBe(false);
    expect(all.including(["level.named"])).toBe(all);
  });

  test.each([null, "", "{", "[]", "1", '{"a":1}'])("are not chosen by %j", (text) => {
    expect(decodeChoices(text).size).toBe(0);
  });
});
