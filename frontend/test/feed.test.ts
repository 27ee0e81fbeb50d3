import { beforeEach, describe, expect, test } from "vitest";
import type { Connection } from "../src/connection.ts";
import { type Answer, Feed, type HistoryState, type Ports, type SocketEvents, type StreamWord, type WorkWord } from "../src/feed.ts";
import { parseSeries, type Series } from "../src/series.ts";
import { SeriesStore } from "../src/store.ts";

const BTC = "binance:spot:BTC/USDT:1m";
const ETH = "binance:spot:ETH/USDT:1m";

/** The candle of minute `minute` as the service writes it. */
function candle(minute: number, close = 1): Record<string, number> {
  return { candle_time: minute * 60, open: 1, high: 2, low: 0.5, close, volume: 3 };
}

function minutes(from: number, to: number): Record<string, number>[] {
  return Array.from({ length: to - from }, (_, index) => candle(from + index));
}

function named(id: string): Series {
  const series = parseSeries(id);
  if (series === null) throw new Error(`${id} is no series`);
  return series;
}

/** The service and the browser as the feed sees them; time moves only by `pass`. */
class World {
  now = 1_000_000;
  readonly sockets: FakeSocket[] = [];
  readonly asked: { path: string; answer(answer: Answer): Promise<void>; fail(): Promise<void> }[] = [];
  #timers: { at: number; call: () => void }[] = [];

  connection: Connection | null = null;
  history: HistoryState = { kind: "none" };
  store = new SeriesStore("1m");
  series = "";
  stream: StreamWord | null = null;
  subscription: string | null = null;
  readonly works: WorkWord[] = [];
  heard = 0;

  readonly ports: Ports = {
    openSocket: (events) => {
      const socket = new FakeSocket(events);
      this.sockets.push(socket);
      return socket;
    },
    get: (path) =>
      new Promise((resolve, reject) => {
        this.asked.push({
          path,
          answer: async (answer) => {
            resolve(answer);
            await settled();
          },
          fail: async () => {
            reject(new TypeError("network"));
            await settled();
          },
        });
      }),
    now: () => this.now,
    after: (ms, call) => {
      const timer = { at: this.now + ms, call };
      this.#timers.push(timer);
      return () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      };
    },
    random: () => 0.5,
  };

  readonly feed = new Feed(this.ports, {
    connection: (connection) => {
      this.connection = connection;
    },
    series: (series, store) => {
      this.series = series.id;
      this.store = store;
    },
    history: (state) => {
      this.history = state;
    },
    changed: () => undefined,
    heard: () => {
      this.heard += 1;
    },
    revised: () => undefined,
    stream: (stream) => {
      this.stream = stream;
    },
    work: (work) => {
      this.works.push(work);
    },
    subscription: (trouble) => {
      this.subscription = trouble;
    },
  });

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (socket === undefined) throw new Error("no socket was opened");
    return socket;
  }

  /** The newest request. */
  get request(): World["asked"][number] {
    const asked = this.asked.at(-1);
    if (asked === undefined) throw new Error("nothing was asked");
    return asked;
  }

  pass(ms: number): void {
    const until = this.now + ms;
    for (;;) {
      const next = this.#timers.toSorted((one, other) => one.at - other.at)[0];
      if (next === undefined || next.at > until) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.now = Math.max(this.now, next.at);
      next.call();
    }
    this.now = until;
  }

  /** Connected, with minutes 0 to 9 of BTC/USDT as history. */
  async shown(): Promise<this> {
    this.feed.start();
    this.feed.choose(named(BTC));
    this.socket.open();
    await this.request.answer({ status: 200, body: { series_id: BTC, server_head_time: 540, candles: minutes(0, 10) } });
    this.socket.say({ type: "subscribed", series_id: BTC, head_time: 540, stream: "live" });
    return this;
  }
}

class FakeSocket {
  readonly sent: Record<string, unknown>[] = [];
  closed = false;

  constructor(readonly events: SocketEvents) {}

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>);
  }

  close(): void {
    this.closed = true;
  }

  open(): void {
    this.events.opened();
    this.say({ type: "pong" });
  }

  say(message: Record<string, unknown>): void {
    this.events.message(JSON.stringify(message));
  }

  get subscriptions(): unknown[] {
    return this.sent.filter((message) => message["type"] === "subscribe").map((message) => [message["series_id"], message["since"]]);
  }
}

/** Let promises that are settled be taken note of. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await Promise.resolve();
}

function times(store: SeriesStore): number[] {
  return store.barsFrom(0).map((bar) => bar.candle.time / 60);
}

let world: World;
beforeEach(() => {
  world = new World();
});

describe("a chosen series", () => {
  test("is asked for its history and then subscribed from the newest candle of it", async () => {
    await world.shown();
    expect(world.asked.map((asked) => asked.path)).toEqual([`/api/market/candles?series_id=${encodeURIComponent(BTC)}&limit=1000`]);
    expect(world.socket.subscriptions).toEqual([[BTC, 540]]);
    expect(world.connection?.phase).toBe("live");
    expect(world.history.kind).toBe("ready");
  });

  test("is subscribed when the connection comes after the history", async () => {
    world.feed.start();
    world.feed.choose(named(BTC));
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(0, 10) } });
    expect(world.socket.sent).toEqual([]);
    world.socket.open();
    expect(world.socket.subscriptions).toEqual([[BTC, 540]]);
  });

  test("is subscribed from the beginning of time while nothing is stored", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(named(BTC));
    await world.request.answer({ status: 200, body: { series_id: BTC, server_head_time: null, candles: [] } });
    expect(world.socket.subscriptions).toEqual([[BTC, 0]]);
  });

  test("takes the name that the service gives it", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(named("binance:futures:BTC/USDT:USDT:1m"));
    await world.request.answer({ status: 200, body: { series_id: "binance:futures:BTC/USDT:1m", candles: minutes(0, 2) } });
    expect(world.series).toBe("binance:futures:BTC/USDT:1m");
    expect(world.socket.subscriptions).toEqual([["binance:futures:BTC/USDT:1m", 60]]);
    world.socket.say({ type: "candle_closed", series_id: "binance:futures:BTC/USDT:1m", candle: candle(2) });
    expect(times(world.store)).toEqual([0, 1, 2]);
  });

  test("gives way to another: the first is unsubscribed and its late answers are ignored", async () => {
    await world.shown();
    const btc = world.store;
    world.feed.choose(named(ETH));
    expect(world.socket.sent.at(-1)).toEqual({ type: "unsubscribe", series_id: BTC });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(10) });
    expect(btc.lastClosed).toBe(540);
    await world.request.answer({ status: 200, body: { series_id: ETH, candles: minutes(3, 5) } });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(11) });
    expect(times(world.store)).toEqual([3, 4]);
    expect(world.socket.subscriptions.at(-1)).toEqual([ETH, 240]);
  });

  test("shows why the service refuses it, and does not ask again", async () => {
    world.feed.start();
    world.feed.choose(named(BTC));
    await world.request.answer({ status: 404, body: { detail: "no such symbol", code: "unknown_series" } });
    expect(world.history).toEqual({ kind: "refused", why: "no such symbol" });
    world.socket.open();
    world.pass(5_000);
    expect(world.asked).toHaveLength(1);
    expect(world.socket.subscriptions).toEqual([]);
  });

  test("is asked for again, at growing intervals, while the service cannot answer", async () => {
    world.feed.start();
    world.feed.choose(named(BTC));
    await world.request.fail();
    expect(world.history.kind).toBe("unreachable");
    world.pass(400);
    expect(world.asked).toHaveLength(2);
    await world.request.answer({ status: 503, body: { detail: "starting" } });
    expect(world.history).toEqual({ kind: "unreachable", why: "starting" });
    world.pass(400);
    expect(world.asked).toHaveLength(2);
    world.pass(400);
    expect(world.asked).toHaveLength(3);
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(0, 2) } });
    expect(world.history.kind).toBe("ready");
  });
});

describe("live", () => {
  test("moves the last candle, closes it, and goes on", async () => {
    await world.shown();
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: candle(10, 1.5) });
    expect(world.store.last).toMatchObject({ forming: true, candle: { close: 1.5 } });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(10, 1.6) });
    expect(world.store.last).toMatchObject({ forming: false, candle: { close: 1.6 } });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: candle(11) });
    expect(world.store.lastForming).toBe(660);
  });

  test("knows what a hole is after a page load, of the newest and of older candles", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(named(BTC));
    const gaps = [{ start_time: 7200, end_time: 7320, state: "confirmed_empty" }];
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: [...minutes(110, 120), ...minutes(122, 130)], gaps } });
    expect(world.store.gaps).toEqual([{ from: 7200, to: 7320, missing: 2, state: "confirmed_empty" }]);
    void world.feed.loadOlder();
    const older = [{ start_time: 6300, end_time: 6360, state: "lost" }];
    await world.request.answer({ status: 200, body: { candles: [...minutes(100, 105), ...minutes(106, 110)], gaps: older } });
    expect(world.store.gaps.map(({ from, state }) => [from, state])).toEqual([
      [6300, "lost"],
      [7200, "confirmed_empty"],
    ]);
  });

  test("notes the state of a declared hole", async () => {
    await world.shown();
    world.socket.say({ type: "gap", series_id: BTC, expected_next_time: 600, actual_time: 720, reason: "missing", state: "healing" });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(12) });
    expect(world.store.gaps).toEqual([{ from: 600, to: 720, missing: 2, state: "healing" }]);
  });

  test("tells each state of the exchange's stream, and forgets it with the connection", async () => {
    await world.shown();
    expect(world.stream).toEqual({ state: "live", detail: null });
    world.socket.say({ type: "system", series_id: BTC, event: "stream.stale", message: "no frames for 15 s", data: {} });
    expect(world.stream).toEqual({ state: "stale", detail: "no frames for 15 s" });
    const detail = "no frames since 14:03";
    world.socket.say({ type: "system", series_id: BTC, event: "stream.rest_fallback", message: "", data: { detail } });
    expect(world.stream).toEqual({ state: "rest_fallback", detail });
    world.socket.say({ type: "system", series_id: BTC, event: "stream.live", message: "frames again", data: {} });
    expect(world.stream?.state).toBe("live");
    world.socket.events.closed();
    expect(world.stream).toBeNull();
  });

  test("tells work in progress with its state", async () => {
    await world.shown();
    const told = { type: "system", series_id: BTC, event: "backfill.progress" };
    world.socket.say({ ...told, message: "history is read: 40 %", data: { state: "running" } });
    world.socket.say({ ...told, message: "history is read", data: { state: "succeeded" } });
    expect(world.works).toEqual([
      { event: "backfill.progress", text: "history is read: 40 %", state: "running" },
      { event: "backfill.progress", text: "history is read", state: "succeeded" },
    ]);
  });

  test("hears of older history without a notice, and asks for it when the reader is there", async () => {
    await world.shown();
    void world.feed.loadOlder();
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: [] } });
    expect(world.store.olderExists).toBe(false);
    world.socket.say({ type: "system", series_id: BTC, event: "history.extended", message: "older", data: { first_time: -600 } });
    expect(world.store.olderExists).toBe(true);
    expect(world.works).toEqual([]);
  });

  test("takes several corrections in one batch", async () => {
    await world.shown();
    world.socket.say({ type: "candles_batch", series_id: BTC, revised: true, candles: [candle(3, 1.7), candle(5, 1.8)] });
    expect(world.asked).toHaveLength(1);
    expect(world.store.barAt(300)?.bar.candle.close).toBe(1.8);
  });

  test("counts what is heard of the series", async () => {
    await world.shown();
    const { heard } = world;
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: candle(10, 1.5) });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(10, 1.5) });
    world.socket.say({ type: "candle_forming", series_id: ETH, candle: candle(10, 1.5) });
    world.socket.say({ type: "pong" });
    expect(world.heard).toBe(heard + 2);
  });

  test("a subscription that was refused is no longer said to be, once it is acknowledged", async () => {
    await world.shown();
    world.socket.say({ type: "error", series_id: BTC, code: "rate_limited", message: "too fast" });
    expect(world.subscription).toContain("too fast");
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 540, stream: "live" });
    expect(world.subscription).toBeNull();
  });

  test("subscribes again a while after the service had no capacity", async () => {
    await world.shown();
    world.socket.say({ type: "error", series_id: BTC, code: "capacity", message: "ondemand_ingest_capacity" });
    expect(world.subscription).toContain("ondemand_ingest_capacity");
    expect(world.socket.subscriptions).toHaveLength(1);
    for (let second = 0; second < 16; second += 1) {
      world.socket.say({ type: "pong" });
      world.pass(1_000);
    }
    expect(world.socket.subscriptions).toHaveLength(2);
  });
});

describe("a broken connection", () => {
  test("resumes from the last closed candle shown, without a hole or a double", async () => {
    await world.shown();
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(10) });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: candle(11) });
    world.socket.events.closed();
    expect(world.connection).toMatchObject({ phase: "waiting", downSince: world.now });
    world.pass(600);
    expect(world.sockets).toHaveLength(2);
    world.socket.open();
    expect(world.socket.subscriptions).toEqual([[BTC, 600]]);
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 840, stream: "live" });
    world.socket.say({ type: "candles_batch", series_id: BTC, candles: minutes(11, 15) });
    world.socket.say({ type: "candle_forming", series_id: BTC, candle: candle(15) });
    expect(times(world.store)).toEqual(Array.from({ length: 16 }, (_, index) => index));
    expect(world.store.gaps).toEqual([]);
    expect(world.asked).toHaveLength(1);
  });

  test("says nothing more through its old socket", async () => {
    await world.shown();
    const old = world.socket;
    old.events.closed();
    world.pass(600);
    world.socket.open();
    old.say({ type: "candle_closed", series_id: BTC, candle: candle(10) });
    old.events.closed();
    expect(world.store.lastClosed).toBe(540);
    expect(world.connection?.phase).toBe("live");
  });

  test("is noticed by its silence", async () => {
    await world.shown();
    world.pass(10_000);
    expect(world.socket.sent.at(-1)).toEqual({ type: "ping" });
    world.pass(5_000);
    expect(world.sockets[0]?.closed).toBe(true);
    expect(world.connection?.phase).toBe("waiting");
  });

  test("begins the history anew when more was missed than the service catches up", async () => {
    await world.shown();
    world.socket.events.closed();
    world.pass(600);
    world.socket.open();
    world.socket.say({ type: "gap", series_id: BTC, expected_next_time: 600, actual_time: 6000, reason: "truncated", state: "unknown" });
    world.socket.say({ type: "candles_batch", series_id: BTC, candles: minutes(100, 105) });
    expect(times(world.store)).toEqual([100, 101, 102, 103, 104]);
    expect(world.store.gaps).toEqual([]);
    expect(world.store.olderExists).toBe(true);
  });
});

describe("another store behind the service", () => {
  test("is noticed when its head is older than what is shown, and loaded", async () => {
    await world.shown();
    world.socket.events.closed();
    world.pass(4_000);
    world.socket.open();
    world.socket.say({ type: "subscribed", series_id: BTC, head_time: 120, stream: "live" });
    expect(world.asked).toHaveLength(2);
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(0, 3) } });
    expect(times(world.store)).toEqual([0, 1, 2]);
    expect(world.socket.subscriptions.at(-1)).toEqual([BTC, 120]);
  });

  test("is noticed when its candles contradict what is shown, and loaded at a bounded rate", async () => {
    await world.shown();
    world.pass(4_000);
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(9, 7) });
    expect(world.asked).toHaveLength(2);
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(0, 10) } });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(9, 7) });
    world.socket.say({ type: "candle_closed", series_id: BTC, candle: candle(9, 7) });
    expect(world.asked).toHaveLength(2);
    world.pass(3_000);
    expect(world.asked).toHaveLength(3);
  });
});

describe("scrolling back", () => {
  test("asks for the page before the first candle, one at a time, until none comes", async () => {
    world.feed.start();
    world.socket.open();
    world.feed.choose(named(BTC));
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(100, 110) } });
    void world.feed.loadOlder();
    void world.feed.loadOlder();
    expect(world.asked).toHaveLength(2);
    expect(world.request.path).toContain("&before=6000&limit=1000");
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(90, 100) } });
    expect(world.store.first).toBe(5400);
    void world.feed.loadOlder();
    expect(world.request.path).toContain("&before=5400&");
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: [] } });
    void world.feed.loadOlder();
    expect(world.asked).toHaveLength(3);

    // The service was still fetching them.
    world.pass(15_000);
    void world.feed.loadOlder();
    expect(world.asked).toHaveLength(4);
    await world.request.answer({ status: 200, body: { series_id: BTC, candles: minutes(80, 90) } });
    expect(world.store.first).toBe(4800);
  });

  test("drops a page that comes after another series was chosen", async () => {
    await world.shown();
    void world.feed.loadOlder();
    const page = world.request;
    world.feed.choose(named(ETH));
    await world.request.answer({ status: 200, body: { series_id: ETH, candles: minutes(100, 102) } });
    await page.answer({ status: 200, body: { series_id: BTC, candles: minutes(-10, 0) } });
    expect(times(world.store)).toEqual([100, 101]);
  });

  test("asks again a while after an attempt that failed", async () => {
    await world.shown();
    void world.feed.loadOlder();
    await world.request.fail();
    void world.feed.loadOlder();
    expect(world.asked).toHaveLength(2);
    world.pass(3_000);
    void world.feed.loadOlder();
    expect(world.asked).toHaveLength(3);
  });
});
