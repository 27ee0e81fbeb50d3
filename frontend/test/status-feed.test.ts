import { beforeEach, describe, expect, test } from "vitest";
import type { Answer, Ports } from "../src/feed.ts";
import { parseSeries, type Series } from "../src/series.ts";
import { parseHealth, parseStatus, type SeriesHealth, type ServiceStatus } from "../src/status.ts";
import { ABSENT_AGAIN_MS, HEALTH_EVERY_MS, STATUS_EVERY_MS, StatusFeed, type Told } from "../src/status-feed.ts";

const BTC = "binance:spot:BTC/USDT:1m";
const ETH = "binance:spot:ETH/USDT:1m";

function named(id: string): Series {
  const series = parseSeries(id);
  if (series === null) throw new Error(`${id} is no series`);
  return series;
}

/** A service that answers at once, unless it is gone; time moves only by `pass`. */
class World {
  now = 1_000_000;
  gone = false;
  answers: Record<string, Answer> = {};
  readonly asked: string[] = [];
  status: Told<ServiceStatus> = { kind: "none" };
  health: Told<SeriesHealth> = { kind: "none" };
  #timers: { at: number; call: () => void }[] = [];

  readonly ports: Pick<Ports, "get" | "after" | "now"> = {
    get: (path) => {
      this.asked.push(path);
      const answer = this.answers[path.split("?")[0] ?? ""];
      return this.gone || answer === undefined ? Promise.reject(new TypeError("network")) : Promise.resolve(answer);
    },
    now: () => this.now,
    after: (ms, call) => {
      const timer = { at: this.now + ms, call };
      this.#timers.push(timer);
      return () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      };
    },
  };

  readonly feed = new StatusFeed(this.ports, {
    status: (status, health) => {
      this.status = status;
      this.health = health;
    },
  });

  async pass(ms: number): Promise<void> {
    const until = this.now + ms;
    for (;;) {
      for (let turn = 0; turn < 10; turn += 1) await Promise.resolve();
      const next = this.#timers.toSorted((one, other) => one.at - other.at)[0];
      if (next === undefined || next.at > until) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.now = next.at;
      next.call();
    }
    this.now = until;
  }

  say(level: string): void {
    this.answers["/api/market/status"] = { status: 200, body: { status: level, status_reason: "x", exchanges: [], store: { ok: true } } };
  }
}

let world: World;
beforeEach(() => {
  world = new World();
  world.say("green");
  world.answers["/api/market/health"] = { status: 200, body: { series_id: BTC, status: "green", status_reason: "up_to_date" } };
});

describe("the status", () => {
  test("is asked for again and again, and has the time of its newest answer and of its first like it", async () => {
    world.feed.start();
    await world.pass(3 * STATUS_EVERY_MS);
    expect(world.asked).toHaveLength(4);
    expect(world.status).toMatchObject({ kind: "told", at: 1_000_000 + 3 * STATUS_EVERY_MS, since: 1_000_000, what: { level: "green" } });
    world.say("red");
    await world.pass(STATUS_EVERY_MS);
    expect(world.status).toMatchObject({ at: world.now, since: world.now, what: { level: "red" } });
  });

  test("keeps its age while the service is gone, and is asked for all the time", async () => {
    world.feed.start();
    await world.pass(0);
    const { now } = world;
    world.gone = true;
    await world.pass(10 * STATUS_EVERY_MS);
    expect(world.status).toMatchObject({ kind: "told", at: now });
    world.gone = false;
    await world.pass(STATUS_EVERY_MS);
    expect(world.status).toMatchObject({ kind: "told", at: world.now });
  });

  test("of an older service is absent, and seldom asked for", async () => {
    world.answers["/api/market/status"] = { status: 404, body: { detail: "nothing here", code: "not_found" } };
    world.feed.start();
    await world.pass(ABSENT_AGAIN_MS - 1);
    expect(world.asked).toHaveLength(1);
    expect(world.status).toEqual({ kind: "absent" });
    world.say("green");
    await world.pass(1);
    expect(world.status).toMatchObject({ kind: "told" });
  });

  test("is asked for at once when something happens, once at a time", async () => {
    world.feed.start();
    await world.pass(500);
    world.feed.soon();
    world.feed.soon();
    await world.pass(0);
    expect(world.asked).toHaveLength(3);
    await world.pass(STATUS_EVERY_MS);
    expect(world.asked).toHaveLength(4);
  });
});

describe("the health", () => {
  test("is that of the series that is shown", async () => {
    world.feed.follow(named(BTC));
    await world.pass(HEALTH_EVERY_MS);
    expect(world.asked).toHaveLength(2);
    expect(world.health).toMatchObject({ what: { series: BTC, reason: "up_to_date" } });
    world.feed.follow(named(ETH));
    expect(world.health).toEqual({ kind: "none" });
    expect(world.asked.at(-1)).toContain(encodeURIComponent(ETH));
  });

  test("is not taken from an answer about the series before", async () => {
    world.feed.follow(named(BTC));
    world.answers["/api/market/health"] = { status: 404, body: null };
    world.feed.follow(named(ETH));
    await world.pass(0);
    expect(world.health).toEqual({ kind: "absent" });
  });
});

describe("answers of the wire", () => {
  test("are read tolerantly: what is missing is not known", () => {
    expect(parseStatus(null)).toBeNull();
    expect(parseStatus({ status: 1 })).toBeNull();
    expect(parseStatus({ status: "blue", exchanges: [{ exchange: "x" }, null, { exchange: "x", market: "spot", state: 4 }] })).toEqual({
      level: null,
      reason: null,
      exchanges: [{ exchange: "x", market: "spot", state: "unknown", detail: null }],
      storeOk: null,
      storeDetail: null,
    });
    expect(parseHealth({ status: "green" })).toBeNull();
    expect(parseHealth({ series_id: BTC })).toMatchObject({ level: null, stream: null, gaps: { unknown: 0, lost: 0 } });
  });
});
