import { beforeEach, describe, expect, test } from "vitest";
import { GapFeed } from "../src/gap-feed.ts";
import { PastFeed } from "../src/past.ts";
import type { Answer } from "../src/ports.ts";
import type { Candle } from "../src/series.ts";
import type { GapCounts } from "../src/status.ts";
import { SeriesStore } from "../src/store.ts";
import { PAGE_CANDLES } from "../src/wire.ts";
import { BTC, candle, candles, seriesOf, wireCandles, World } from "./support.ts";

/** A service that has these candles, and answers at once, unless it is down. */
class Service extends World {
  down = false;
  gaps: { start_time: number; end_time: number; state: string }[] = [];

  constructor(readonly stored: readonly Candle[]) {
    super();
  }

  override respond = (path: string): Answer | null => {
    if (this.down) return null;
    const query = new URLSearchParams(path.split("?")[1]);
    const limit = Number(query.get("limit"));
    const before = query.get("before");
    const page =
      before === null
        ? this.stored.filter(({ time }) => time > Number(query.get("since"))).slice(0, limit)
        : this.stored.filter(({ time }) => time < Number(before)).slice(-limit);
    return { status: 200, body: { series_id: BTC, candles: wireCandles(page), gaps: this.gaps } };
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
    service = new Service(candles(1, 5000));
    live = new SeriesStore("1m");
    live.replace(candles(4000, 5000));
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

  test("opens at the first stored candle, far from the live ones", async () => {
    await past.open(seriesOf(BTC), live);
    expect(times(past.store)).toEqual([60, PAGE_CANDLES * 60, 0]);
    expect([opened, joined]).toEqual([1, []]);
    expect(live.first).toBe(4000 * 60);
  });

  test("loads newer candles until they meet the live ones, without a hole or a duplicate", async () => {
    await past.open(seriesOf(BTC), live);
    live.close([candle(5000)]);
    for (let turn = 0; turn < 10 && past.store !== null; turn += 1) await past.loadNewer();
    expect(joined).toEqual([false]);
    expect(past.store).toBeNull();
    expect(times(live)).toEqual([60, 5000 * 60, 0]);
    expect(live.count).toBe(5000);
    expect(live.olderExists).toBe(false);
  });

  test("joins the live candles at once when these begin close to it", async () => {
    live.replace(candles(500, 5000));
    await past.open(seriesOf(BTC), live);
    expect([opened, joined, past.store]).toEqual([0, [true], null]);
    expect(times(live)).toEqual([60, 4999 * 60, 0]);
  });

  test("does nothing without an answer, and retries after a delay", async () => {
    service.down = true;
    await past.open(seriesOf(BTC), live);
    expect([past.store, opened]).toEqual([null, 0]);
    service.down = false;
    await past.open(seriesOf(BTC), live);
    service.down = true;
    const { length } = service.requests;
    await past.loadNewer();
    await past.loadNewer();
    expect(service.requests).toHaveLength(length + 1);
    service.now += 3000;
    service.down = false;
    await past.loadNewer();
    expect(times(past.store)[1]).toBe(2 * PAGE_CANDLES * 60);
  });

  test("discards an answer that comes after its end", async () => {
    const opening = past.open(seriesOf(BTC), live);
    past.end();
    await opening;
    expect([past.store, opened]).toEqual([null, 0]);
  });

  test("takes corrections of its own candles alone", async () => {
    await past.open(seriesOf(BTC), live);
    past.revised([{ ...candle(5), close: 1.5 }, { ...candle(4500), close: 1.5 }]);
    expect(past.store?.barAt(300)?.bar.candle.close).toBe(1.5);
    expect(times(past.store)[1]).toBe(PAGE_CANDLES * 60);
  });
});

function counts(more: Partial<GapCounts> = {}): GapCounts {
  return { unknown: 0, healing: 0, confirmedEmpty: 0, lost: 0, ...more };
}

describe("the state of a gap", () => {
  let service: Service;
  let store: SeriesStore;
  let changes: number;
  let feed: GapFeed;
  beforeEach(() => {
    store = new SeriesStore("1m");
    store.replace([...candles(1, 10), ...candles(12, 20)]);
    service = new Service([...candles(1, 10), ...candles(12, 20)]);
    changes = 0;
    feed = new GapFeed(service.ports, () => {
      changes += 1;
    });
  });

  test("is requested again when the counts of the health change, until it is confirmed empty", async () => {
    await feed.counted(seriesOf(BTC), store, counts({ unknown: 2 }));
    expect(store.gaps[0]?.state).toBe("unknown");
    await feed.counted(seriesOf(BTC), store, counts({ unknown: 2 }));
    expect(service.requests).toHaveLength(1);
    service.gaps = [{ start_time: 600, end_time: 720, state: "confirmed_empty" }];
    await feed.counted(seriesOf(BTC), store, counts({ confirmedEmpty: 2 }));
    expect([store.gaps[0]?.state, changes]).toEqual(["confirmed_empty", 1]);
    await feed.counted(seriesOf(BTC), store, counts({ confirmedEmpty: 3 }));
    expect(service.requests).toHaveLength(2);
  });

  test("is requested again after a failure", async () => {
    service.down = true;
    await feed.counted(seriesOf(BTC), store, counts({ unknown: 2 }));
    service.down = false;
    await feed.counted(seriesOf(BTC), store, counts({ unknown: 2 }));
    expect(service.requests).toHaveLength(2);
  });

  test("is not requested when no candle is missing", async () => {
    store.replace(candles(1, 20));
    await feed.counted(seriesOf(BTC), store, counts({ unknown: 2 }));
    expect(service.requests).toEqual([]);
  });
});
