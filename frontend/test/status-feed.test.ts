import { beforeEach, describe, expect, test } from "vitest";
import type { Answer } from "../src/ports.ts";
import { parseHealth, parseStatus } from "../src/status.ts";
import { ABSENT_INTERVAL_MS, HEALTH_INTERVAL_MS, STATUS_INTERVAL_MS, StatusFeed } from "../src/status-feed.ts";
import { BTC, ETH, seriesOf, World } from "./support.ts";

/** A service that answers at once, unless it is down. */
class StatusWorld extends World {
  down = false;
  answers: Record<string, Answer> = {};
  readonly feed = new StatusFeed(this.ports, () => undefined);

  override respond = (path: string): Answer | null => (this.down ? null : (this.answers[path.split("?")[0] ?? ""] ?? null));

  setLevel(level: string): void {
    this.answers["/api/market/status"] = { status: 200, body: { status: level, status_reason: "x", exchanges: [], store: { ok: true } } };
  }
}

let world: StatusWorld;
beforeEach(() => {
  world = new StatusWorld();
  world.setLevel("green");
  world.answers["/api/market/health"] = { status: 200, body: { series_id: BTC, status: "green", status_reason: "up_to_date" } };
});

describe("the status", () => {
  test("is polled, and keeps the times of its newest answer and of the first with the same level", async () => {
    world.feed.start();
    await world.passWithAnswers(3 * STATUS_INTERVAL_MS);
    expect(world.requests).toHaveLength(4);
    expect(world.feed.status).toMatchObject({ kind: "answered", at: 1_000_000 + 3 * STATUS_INTERVAL_MS, since: 1_000_000, value: { level: "green" } });
    world.setLevel("red");
    await world.passWithAnswers(STATUS_INTERVAL_MS);
    expect(world.feed.status).toMatchObject({ at: world.now, since: world.now, value: { level: "red" } });
  });

  test("keeps its age while the service is down, and is polled on", async () => {
    world.feed.start();
    await world.passWithAnswers(0);
    const { now } = world;
    world.down = true;
    await world.passWithAnswers(10 * STATUS_INTERVAL_MS);
    expect(world.feed.status).toMatchObject({ kind: "answered", at: now });
    world.down = false;
    await world.passWithAnswers(STATUS_INTERVAL_MS);
    expect(world.feed.status).toMatchObject({ kind: "answered", at: world.now });
  });

  test("of an older service is absent, and polled seldom", async () => {
    world.answers["/api/market/status"] = { status: 404, body: { detail: "nothing here", code: "not_found" } };
    world.feed.start();
    await world.passWithAnswers(ABSENT_INTERVAL_MS - 1);
    expect(world.requests).toHaveLength(1);
    expect(world.feed.status).toEqual({ kind: "absent" });
    world.setLevel("green");
    await world.passWithAnswers(1);
    expect(world.feed.status).toMatchObject({ kind: "answered" });
  });

  test("is polled at once on a refresh, with one repetition afterwards", async () => {
    world.feed.start();
    await world.passWithAnswers(500);
    world.feed.refresh();
    world.feed.refresh();
    await world.passWithAnswers(0);
    expect(world.requests).toHaveLength(3);
    await world.passWithAnswers(STATUS_INTERVAL_MS);
    expect(world.requests).toHaveLength(4);
  });
});

describe("the health", () => {
  test("is that of the followed series", async () => {
    world.feed.follow(seriesOf(BTC));
    await world.passWithAnswers(HEALTH_INTERVAL_MS);
    expect(world.requests).toHaveLength(2);
    expect(world.feed.health).toMatchObject({ value: { series: BTC, reason: "up_to_date" } });
    world.feed.follow(seriesOf(ETH));
    expect(world.feed.health).toEqual({ kind: "none" });
    expect(world.requests.at(-1)?.path).toContain(encodeURIComponent(ETH));
  });

  test("is not taken from a late answer about another series", async () => {
    world.feed.follow(seriesOf(BTC));
    world.answers["/api/market/health"] = { status: 404, body: null };
    world.feed.follow(seriesOf(ETH));
    await world.passWithAnswers(0);
    expect(world.feed.health).toEqual({ kind: "absent" });
  });
});

describe("an answer", () => {
  test("is parsed tolerantly: what is missing is unknown", () => {
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
