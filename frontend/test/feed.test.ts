import { beforeEach, describe, expect, test } from "vitest";
import { Feed, type Place } from "../src/feed.ts";
import type { SeriesStore } from "../src/store.ts";
import { BTC, ETH, type Request, seriesOf, settled, wireCandle, wireMinutes, World } from "./support.ts";

/** The page's feed, and the service as the test plays it. */
class FeedWorld extends World {
  readonly feed = new Feed(this.ports);
  readonly exchanges: Place[] = [];
  readonly closed: boolean[] = [];

  constructor() {
    super();
    this.feed.bind({
      connection: () => undefined,
      series: () => undefined,
      history: () => undefined,
      bars: () => undefined,
      closed: (revised) => this.closed.push(revised),
      exchanged: (place) => this.exchanges.push(place),
      lamp: () => undefined,
      notices: () => undefined,
    });
  }

  /** Requests for pages of history. */
  get pages(): Request[] {
    return this.requestsTo("/api/market/candles");
  }

  get page(): Request {
    return this.requestTo("/api/market/candles");
  }

  get live(): SeriesStore {
    return this.feed.live;
  }

  /** Connected, with minutes 0 to 9 of BTC/USDT as history. */
  async shown(): Promise<this> {
    this.feed.start();
    this.feed.choose(seriesOf(BTC));
    this.socket.open();
    await this.page.answer(200, { series_id: BTC, server_head_time: 540, candles: wireMinutes(0, 10) });
    this.socket.say({ type: "subscribed", series_id: BTC, head_time: 540, stream: "live" });
    return this;
  }
}

const GREEN = {
  status: "green",
  status_reason: "live",
  exchanges: [{ exchange: "binance", market: "spot", state: "live", detail: null }],
  store: { ok: true, detail: null },
};

function times(store: SeriesStore): number[] {
  return store.barsFrom(0).map((bar) => bar.candle.time / 60);
}

let world: FeedWorld;
beforeEach(() => {
  world = new FeedWorld();
});

describe("a chosen series", () => {
  test("loads its history, and is subscribed from the newest candle", async () => {
    await world.shown();
    expect(world.pages.map(({ path }) => path)).toEqual([`/api/market/candles?series_id=${encodeURIComponent(BTC)}&limit=1000`]);
    expect(world.socket.subscriptions).toEqual([[BTC, 540]]);
    expect(world.feed.connection.phase).toBe("live");
    expect(world.feed.history.kind).toBe("ready");
  });

  test("is subscribed when the connection comes after the history", async () => {
    world.feed.start();
    world.feed.choose(seriesOf(BTC));
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(0, 10) });
    expect(world.socket.sent).toEqual([]);
    world.socket.open();
    expect(world.socket.subscriptions).toEqual([[BTC, 540]]);
  });

  test("is subscribed from time 0 while nothing is stored", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(seriesOf(BTC));
    await world.page.answer(200, { series_id: BTC, server_head_time: null, candles: [] });
    expect(world.socket.subscriptions).toEqual([[BTC, 0]]);
  });

  test("takes the name that the service gives it", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(seriesOf("binance:futures:BTC/USDT:USDT:1m"));
    await world.page.answer(200, { series_id: "binance:futures:BTC/USDT:1m", candles: wireMinutes(0, 2) });
    expect(world.feed.series?.id).toBe("binance:futures:BTC/USDT:1m");
    expect(world.socket.subscriptions).toEqual([["binance:futures:BTC/USDT:1m", 60]]);
    world.socket.say({ type: "candle_closed", series_id: "binance:futures:BTC/USDT:1m", candle: wireCandle(2) });
    expect(times(world.live)).toEqual([0, 1, 2]);
  });

  test("is replaced by another: the first is unsubscribed, and its late answers are discarded", async () => {
    await world.shown();
    const btc = world.live;
    world.feed.choose(seriesOf(ETH));
    expect(world.socket.sent.at(-1)).toEqual({ type: "unsubscribe", series_id: BTC });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10) });
    expect(btc.lastClosed).toBe(540);
    await world.page.answer(200, { series_id: ETH, candles: wireMinutes(3, 5) });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(11) });
    expect(times(world.live)).toEqual([3, 4]);
    expect(world.socket.subscriptions.at(-1)).toEqual([ETH, 240]);
  });

  test("keeps the reason of a refusal, and is not requested again", async () => {
    world.feed.start();
    world.feed.choose(seriesOf(BTC));
    await world.page.answer(404, { detail: "no such symbol", code: "unknown_series" });
    expect(world.feed.history).toEqual({ kind: "refused", reason: "no such symbol" });
    world.socket.open();
    world.pass(5_000);
    expect(world.pages).toHaveLength(1);
    expect(world.socket.subscriptions).toEqual([]);
  });

  test("is requested again with backoff while the service cannot answer", async () => {
    world.feed.start();
    world.feed.choose(seriesOf(BTC));
    await world.page.fail();
    expect(world.feed.history.kind).toBe("unreachable");
    world.pass(400);
    expect(world.pages).toHaveLength(2);
    await world.page.answer(503, { detail: "starting" });
    expect(world.feed.history).toEqual({ kind: "unreachable", reason: "starting" });
    world.pass(400);
    expect(world.pages).toHaveLength(2);
    world.pass(400);
    expect(world.pages).toHaveLength(3);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(0, 2) });
    expect(world.feed.history.kind).toBe("ready");
  });
});

describe("live", () => {
  test("updates the forming candle, closes it, and continues", async () => {
    await world.shown();
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: wireCandle(10, 1.5) });
    expect(world.live.last).toMatchObject({ forming: true, candle: { close: 1.5 } });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10, 1.6) });
    expect(world.live.last).toMatchObject({ forming: false, candle: { close: 1.6 } });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: wireCandle(11) });
    expect(world.live.lastForming).toBe(660);
  });

  test("loads the states of gaps with the newest candles and with older ones", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(seriesOf(BTC));
    const gaps = [{ start_time: 7200, end_time: 7320, state: "confirmed_empty" }];
    await world.page.answer(200, { series_id: BTC, candles: [...wireMinutes(110, 120), ...wireMinutes(122, 130)], gaps });
    expect(world.live.gaps).toEqual([{ from: 7200, to: 7320, missing: 2, state: "confirmed_empty" }]);
    world.feed.loadOlder();
    const older = [{ start_time: 6300, end_time: 6360, state: "lost" }];
    await world.page.answer(200, { candles: [...wireMinutes(100, 105), ...wireMinutes(106, 110)], gaps: older });
    expect(world.live.gaps.map(({ from, state }) => [from, state])).toEqual([
      [6300, "lost"],
      [7200, "confirmed_empty"],
    ]);
  });

  test("takes the state of a declared gap", async () => {
    await world.shown();
    world.socket.say({ type: "gap", series_id: BTC, expected_next_time: 600, actual_time: 720, reason: "missing", state: "healing" });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(12) });
    expect(world.live.gaps).toEqual([{ from: 600, to: 720, missing: 2, state: "healing" }]);
  });

  test("shows each state of the exchange's stream in the lamp, and forgets it with the connection", async () => {
    world.respond = (path) => (path.includes("/status") ? { status: 200, body: GREEN } : undefined);
    await world.shown();
    await settled();
    expect(world.feed.lamp.label).toBe("Live");
    world.socket.say({ type: "system", series_id: BTC, event: "stream.stale", message: "no frames for 15 s", data: {} });
    expect(world.feed.lamp).toMatchObject({ label: "Stale", reason: "No frames for 15 s.", stale: true });
    const detail = "no frames since 14:03";
    world.socket.say({ type: "system", series_id: BTC, event: "stream.rest_fallback", message: "", data: { detail } });
    expect(world.feed.lamp).toMatchObject({ label: "Over REST", reason: "No frames since 14:03." });
    world.socket.say({ type: "system", series_id: BTC, event: "stream.live", message: "frames again", data: {} });
    expect(world.feed.lamp.label).toBe("Live");
    world.socket.events.closed();
    expect(world.feed.lamp.label).toBe("Not connected");
    world.pass(600);
    world.socket.open();
    await settled();
    expect(world.feed.lamp.label).toBe("Checking");
  });

  test("shows work in progress until it is done, or the connection that would report its end is lost", async () => {
    await world.shown();
    const event = { type: "system", series_id: BTC, event: "backfill.progress" };
    world.socket.say({ ...event, message: "40 % of the history", data: { state: "running" } });
    expect(world.feed.work).toBe("40 % of the history");
    world.socket.say({ ...event, message: "the history is complete", data: { state: "succeeded" } });
    expect(world.feed.work).toBeNull();
    world.socket.say({ ...event, message: "40 % of the history", data: { state: "running" } });
    world.socket.events.closed();
    expect(world.feed.work).toBeNull();
  });

  test("learns of older history without a notice, and loads it on demand", async () => {
    await world.shown();
    world.feed.loadOlder();
    await world.page.answer(200, { series_id: BTC, candles: [] });
    expect(world.live.olderExists).toBe(false);
    world.closed.length = 0;
    world.socket.say({ type: "system", series_id: BTC, event: "history.extended", message: "older", data: { first_time: -600 } });
    expect(world.live.olderExists).toBe(true);
    expect(world.feed.work).toBeNull();
    expect(world.closed).toContain(true); // the drawings are requested again
  });

  test("takes several corrections in one batch", async () => {
    await world.shown();
    world.socket.say({ type: "candles_batch", series_id: BTC, revised: true, candles: [wireCandle(3, 1.7), wireCandle(5, 1.8)] });
    expect(world.pages).toHaveLength(1);
    expect(world.live.barAt(300)?.bar.candle.close).toBe(1.8);
  });

  test("counts the age of the lamp from the last candle of the series, and from nothing else", async () => {
    await world.shown();
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: wireCandle(10, 1.5) });
    world.pass(3_000);
    world.socket.say({ type: "candle_forming", series_id: ETH, candle: wireCandle(10, 1.5) });
    world.socket.say({ type: "pong" });
    expect(world.feed.lamp.age).toBe(3);
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10, 1.5) });
    expect(world.feed.lamp.age).toBe(0);
  });

  test("a refused subscription is no trouble any more once it is acknowledged", async () => {
    await world.shown();
    world.socket.say({ type: "error", series_id: BTC, code: "rate_limited", message: "too fast" });
    expect(world.feed.trouble).toContain("too fast");
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 540, stream: "live" });
    expect(world.feed.trouble).toBeNull();
  });

  test("retries the subscription after the service had no capacity", async () => {
    await world.shown();
    world.socket.say({ type: "error", series_id: BTC, code: "capacity", message: "ondemand_ingest_capacity" });
    expect(world.feed.trouble).toContain("ondemand_ingest_capacity");
    expect(world.socket.subscriptions).toHaveLength(1);
    for (let second = 0; second < 16; second += 1) {
      world.socket.say({ type: "pong" });
      world.pass(1_000);
    }
    expect(world.socket.subscriptions).toHaveLength(2);
  });
});

describe("a broken connection", () => {
  test("resumes from the last closed candle, without a hole or a duplicate", async () => {
    await world.shown();
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10) });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: wireCandle(11) });
    world.socket.events.closed();
    expect(world.feed.connection).toMatchObject({ phase: "waiting", downSince: world.now });
    world.pass(600);
    expect(world.sockets).toHaveLength(2);
    world.socket.open();
    expect(world.socket.subscriptions).toEqual([[BTC, 600]]);
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 840, stream: "live" });
    world.socket.say({ type: "candles_batch", series_id: BTC, candles: wireMinutes(11, 15) });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: wireCandle(15) });
    expect(times(world.live)).toEqual(Array.from({ length: 16 }, (_, index) => index));
    expect(world.live.gaps).toEqual([]);
    expect(world.pages).toHaveLength(1);
  });

  test("ignores late messages of its old socket", async () => {
    await world.shown();
    const old = world.socket;
    old.events.closed();
    world.pass(600);
    world.socket.open();
    old.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10) });
    old.events.closed();
    expect(world.live.lastClosed).toBe(540);
    expect(world.feed.connection.phase).toBe("live");
  });

  test("is detected by its silence", async () => {
    await world.shown();
    world.pass(10_000);
    expect(world.socket.sent.at(-1)).toEqual({ type: "ping" });
    world.pass(5_000);
    expect(world.sockets[0]?.closed).toBe(true);
    expect(world.feed.connection.phase).toBe("waiting");
  });

  test("starts a new history when the catch-up is truncated", async () => {
    await world.shown();
    world.socket.events.closed();
    world.pass(600);
    world.socket.open();
    world.socket.say({ type: "gap", series_id: BTC, expected_next_time: 600, actual_time: 6000, reason: "truncated", state: "unknown" });
    world.socket.say({ type: "candles_batch", series_id: BTC, candles: wireMinutes(100, 105) });
    expect(times(world.live)).toEqual([100, 101, 102, 103, 104]);
    expect(world.live.gaps).toEqual([]);
    expect(world.live.olderExists).toBe(true);
  });
});

describe("another store behind the service", () => {
  test("is detected when its head is before the newest candle, and loaded", async () => {
    await world.shown();
    world.socket.events.closed();
    world.pass(4_000);
    world.socket.open();
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 120, stream: "live" });
    expect(world.pages).toHaveLength(2);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(0, 3) });
    expect(times(world.live)).toEqual([0, 1, 2]);
    expect(world.socket.subscriptions.at(-1)).toEqual([BTC, 120]);
  });

  test("is detected when its candles contradict the shown ones, and loaded at a bounded rate", async () => {
    await world.shown();
    world.pass(4_000);
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(9, 7) });
    expect(world.pages).toHaveLength(2);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(0, 10) });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(9, 7) });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(9, 7) });
    expect(world.pages).toHaveLength(2);
    world.pass(3_000);
    expect(world.pages).toHaveLength(3);
  });
});

describe("scrolling back", () => {
  test("loads the page before the first candle, one at a time, until a page is empty", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(seriesOf(BTC));
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(100, 110) });
    world.feed.loadOlder();
    world.feed.loadOlder();
    expect(world.pages).toHaveLength(2);
    expect(world.page.path).toContain("&before=6000&limit=1000");
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(90, 100) });
    expect(world.live.first).toBe(5400);
    world.feed.loadOlder();
    expect(world.page.path).toContain("&before=5400&");
    await world.page.answer(200, { series_id: BTC, candles: [] });
    world.feed.loadOlder();
    expect(world.pages).toHaveLength(3);

    // The service was still fetching them.
    world.pass(15_000);
    world.feed.loadOlder();
    expect(world.pages).toHaveLength(4);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(80, 90) });
    expect(world.live.first).toBe(4800);
  });

  test("discards a page that comes after another series was chosen", async () => {
    await world.shown();
    world.feed.loadOlder();
    const { page } = world;
    world.feed.choose(seriesOf(ETH));
    await world.page.answer(200, { series_id: ETH, candles: wireMinutes(100, 102) });
    await page.answer(200, { series_id: BTC, candles: wireMinutes(-10, 0) });
    expect(times(world.live)).toEqual([100, 101]);
  });

  test("retries after a delay when a page failed", async () => {
    await world.shown();
    world.feed.loadOlder();
    await world.page.fail();
    world.feed.loadOlder();
    expect(world.pages).toHaveLength(2);
    world.pass(3_000);
    world.feed.loadOlder();
    expect(world.pages).toHaveLength(3);
  });

  test("is not held up by a page of the series before that is still in flight", async () => {
    await world.shown();
    world.feed.loadOlder();
    world.feed.choose(seriesOf(ETH));
    await world.page.answer(200, { series_id: ETH, candles: wireMinutes(100, 102) });
    world.feed.loadOlder();
    expect(world.page.path).toContain(`${encodeURIComponent(ETH)}&before=6000&`);
  });

  test("is not delayed by a failure of the series before", async () => {
    await world.shown();
    world.feed.loadOlder();
    await world.page.fail();
    world.feed.choose(seriesOf(ETH));
    await world.page.answer(200, { series_id: ETH, candles: wireMinutes(100, 102) });
    world.feed.loadOlder();
    expect(world.page.path).toContain(`${encodeURIComponent(ETH)}&before=6000&`);
  });

  test("to the first candle shows the past beside the live candles, and every way back to them", async () => {
    await world.shown();
    expect(world.feed.showOldest()).toBe(true);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(-2000, -1000) });
    expect([world.feed.showsPast, world.feed.shown.first, world.exchanges]).toEqual([true, -2000 * 60, ["start"]]);
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10) });
    expect([world.feed.live.lastClosed, world.feed.shown.lastClosed]).toEqual([600, -1001 * 60]);
    expect(world.feed.showNewest()).toBe(true);
    expect([world.feed.showsPast, world.feed.showNewest(), world.exchanges]).toEqual([false, false, ["start", "end"]]);

    world.feed.showOldest();
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(-2000, -1000) });
    world.socket.say({ type: "system", series_id: BTC, event: "resync", message: "", data: {} });
    world.pass(3_000);
    await world.page.answer(200, { series_id: BTC, candles: wireMinutes(0, 12) });
    expect([world.feed.showsPast, world.exchanges.at(-1)]).toEqual([false, "end"]);
  });
});

describe("no series", () => {
  test("shows nothing of the one before, whose late answers are discarded", async () => {
    await world.shown();
    world.feed.loadOlder();
    const { page } = world;
    world.feed.choose(null);
    expect(world.socket.sent.at(-1)).toEqual({ type: "unsubscribe", series_id: BTC });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: wireCandle(10) });
    await page.answer(200, { series_id: BTC, candles: wireMinutes(-10, 0) });
    expect([world.feed.series, world.feed.history.kind, world.live.count]).toEqual([null, "none", 0]);
    world.socket.events.closed();
    world.pass(600);
    world.socket.open();
    expect(world.socket.subscriptions).toEqual([]);
  });
});

describe("the lamp", () => {
  test("becomes unknown by itself when the service does not answer any more", async () => {
    world.respond = (path) => (path.includes("/status") ? { status: 200, body: GREEN } : undefined);
    await world.shown();
    await settled();
    expect(world.feed.lamp.label).toBe("Live");
    const { now } = world;
    world.respond = () => undefined;
    for (let second = 0; second < 9; second += 1) {
      world.socket.say({ type: "pong" });
      world.pass(1_000);
    }
    expect(world.feed.lamp).toMatchObject({ label: "State unknown", tone: "unknown" });
    expect(world.feed.lampSince - now).toBe(8_000);
  });
});
