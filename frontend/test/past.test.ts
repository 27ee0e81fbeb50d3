import { beforeEach, describe, expect, test } from "vitest";
import { type Answer, PAGE_CANDLES, type Ports } from "../src/feed.ts";
import { GapFeed } from "../src/gap-feed.ts";
import { PastFeed } from "../src/past.ts";
import { type Candle, parseSeries, type Series } from "../src/series.ts";
import type { GapCounts } from "../src/status.ts";
import { SeriesStore } from "../src/store.ts";

const BTC = "binance:spot:BTC/USDT:1m";

function named(id: string): Series {
  const series = parseSeries(id);
  if (series === null) throw new Error(`${id} is no series`);
  return series;
}

function candle(minute: number): Candle {
  return { time: minute * 60, open: 1, high: 2, low: 0.5, close: 1, volume: 3 };
}

function minutes(from: number, to: number): Candle[] {
  return Array.from({ length: to - from }, (_, index) => candle(from + index));
}

function wire(candles: readonly Candle[]): Record<string, number>[] {
  return candles.map(({ time, ...values }) => ({ candle_time: time, ...values }));
}

/** A service that has these candles, and answers at once. */
class Service {
  now = 0;
  gone = false;
  readonly asked: string[] = [];
  gaps: { start_time: number; end_time: number; state: string }[] = [];

  constructor(public candles: Candle[]) {}

  readonly ports: Pick<Ports, "get" | "now"> = {
    now: () => this.now,
    get: (path): Promise<Answer> => {
      this.asked.push(path);
      if (this.gone) return Promise.reject(new TypeError("network"));
      const query = new URLSearchParams(path.split("?")[1]);
      const limit = Number(query.get("limit"));
      const before = query.get("before");
      const page =
        before === null
          ? this.candles.filter(({ time }) => time > Number(query.get("since"))).slice(0, limit)
          : this.candles.filter(({ time }) => time < Number(before)).slice(-limit);
      return Promise.resolve({ status: 200, body: { series_id: BTC, candles: wire(page), gaps: this.gaps } });
    },
  };
}

function times(store: SeriesStore | null): [number | null, number | null, number] {
  return [store === null ? null : store.first, store === null ? null : store.lastClosed, store?.gaps.length ?? -1];
}

describe("the past", () => {
  let service: Service;
  let live: SeriesStore;
  let past: PastFeed;
  let opened: number;
  let joined: boolean[];
  beforeEach(() => {
    service = new Service(minutes(1, 5000));
    live = new SeriesStore("1m");
    live.replace(minutes(4000, 5000));
    opened = 0;
    joined = [];
    past = new PastFeed(service.ports, {
      opened: () => {
        opened += 1;
      },
      changed: () => undefined,
      joined: (opening) => {
        joined.push(opening);
      },
    });
  });

  test("opens at the first stored candle, far from what is held", async () => {
    await past.open(named(BTC), live);
    expect(times(past.store)).toEqual([60, PAGE_CANDLES * 60, 0]);
    expect([opened, joined]).toEqual([1, []]);
    expect(live.first).toBe(4000 * 60);
  });

  test("goes on to newer candles until it meets the live ones, without a hole or a double", async () => {
    await past.open(named(BTC), live);
    live.close([candle(5000)]);
    for (let turn = 0; turn < 10 && past.store !== null; turn += 1) await past.loadNewer();
    expect(joined).toEqual([false]);
    expect(past.store).toBeNull();
    expect(times(live)).toEqual([60, 5000 * 60, 0]);
    expect(live.count).toBe(5000);
    expect(live.olderExists).toBe(false);
  });

  test("is the live history at once when that begins close to it", async () => {
    live.replace(minutes(500, 5000));
    await past.open(named(BTC), live);
    expect([opened, joined, past.store]).toEqual([0, [true], null]);
    expect(times(live)).toEqual([60, 4999 * 60, 0]);
  });

  test("does nothing without an answer, and asks again a while later", async () => {
    service.gone = true;
    await past.open(named(BTC), live);
    expect([past.store, opened]).toEqual([null, 0]);
    service.gone = false;
    await past.open(named(BTC), live);
    service.gone = true;
    const { length } = service.asked;
    await past.loadNewer();
    await past.loadNewer();
    expect(service.asked).toHaveLength(length + 1);
    service.now += 3000;
    service.gone = false;
    await past.loadNewer();
    expect(times(past.store)[1]).toBe(2 * PAGE_CANDLES * 60);
  });

  test("drops an answer that comes after its end", async () => {
    const opening = past.open(named(BTC), live);
    past.end();
    await opening;
    expect([past.store, opened]).toEqual([null, 0]);
  });

  test("takes corrections of the candles that it shows, and of no others", async () => {
    await past.open(named(BTC), live);
    past.revised([{ ...candle(5), close: 1.5 }, { ...candle(4500), close: 1.5 }]);
    expect(past.store?.barAt(300)?.bar.candle.close).toBe(1.5);
    expect(times(past.store)[1]).toBe(PAGE_CANDLES * 60);
  });
});

function counts(more: Partial<GapCounts> = {}): GapCounts {
  return { unknown: 0, healing: 0, confirmedEmpty: 0, lost: 0, ...more };
}

describe("what is known of holes", () => {
  let service: Service;
  let store: SeriesStore;
  let changes: number;
  let feed: GapFeed;
  beforeEach(() => {
    store = new SeriesStore("1m");
    store.replace([...minutes(1, 10), ...minutes(12, 20)]);
    service = new Service([...minutes(1, 10), ...minutes(12, 20)]);
    changes = 0;
    feed = new GapFeed(service.ports, () => {
      changes += 1;
    });
  });

  test("is asked for again when the counts of the health change, until the exchange has none", async () => {
    await feed.counted(named(BTC), store, counts({ unknown: 2 }));
    expect(store.gaps[0]?.state).toBe("unknown");
    await feed.counted(named(BTC), store, counts({ unknown: 2 }));
    expect(service.asked).toHaveLength(1);
    service.gaps = [{ start_time: 600, end_time: 720, state: "confirmed_empty" }];
    await feed.counted(named(BTC), store, counts({ confirmedEmpty: 2 }));
    expect([store.gaps[0]?.state, changes]).toEqual(["confirmed_empty", 1]);
    await feed.counted(named(BTC), store, counts({ confirmedEmpty: 3 }));
    expect(service.asked).toHaveLength(2);
  });

  test("is asked for again when there was no answer", async () => {
    service.gone = true;
    await feed.counted(named(BTC), store, counts({ unknown: 2 }));
    service.gone = false;
    await feed.counted(named(BTC), store, counts({ unknown: 2 }));
    expect(service.asked).toHaveLength(2);
  });

  test("is of no interest where nothing is missing", async () => {
    store.replace(minutes(1, 20));
    await feed.counted(named(BTC), store, counts({ unknown: 2 }));
    expect(service.asked).toEqual([]);
  });
});
