import { describe, expect, test } from "vitest";
import { type Connection, INITIAL } from "../src/connection.ts";
import { type Known, lampOf } from "../src/lamp.ts";
import { parseSeries } from "../src/series.ts";
import { parseHealth, parseStatus } from "../src/status.ts";
import { STATUS_OLD_MS, type Told } from "../src/status-feed.ts";

const NOW = 1_000_000_000;
const BTC = parseSeries("binance:spot:BTC/USDT:1m");
const CONNECTED: Connection = { ...INITIAL, phase: "live", socket: 1, everLive: true };

function told<T>(what: T | null, at = NOW, since = NOW - 10_000): Told<T> {
  if (what === null) throw new Error("not understood");
  return { kind: "told", at, since, what };
}

function status(more: Record<string, unknown> = {}, spot: Record<string, unknown> = {}): unknown {
  const market = { exchange: "binance", market: "spot", state: "live", detail: null, since: 0, last_frame_at: 0, ...spot };
  const store = { ok: true, detail: null, queued_candles: 0 };
  return { status: "green", status_reason: "all is well", exchanges: [market], store, ...more };
}

function health(more: Record<string, unknown> = {}, stream = "live"): unknown {
  return {
    series_id: BTC?.id,
    status: "green",
    status_reason: "up_to_date",
    backfill: { state: "idle" },
    stream: { state: stream, detail: null },
    gaps: { unknown: 0, healing: 0, confirmed_empty: 0, lost: 0 },
    ...more,
  };
}

/** A series that is live, but for what the test changes. */
function known(more: Partial<Known> = {}): Known {
  return {
    connection: CONNECTED,
    status: told(parseStatus(status())),
    health: told(parseHealth(health())),
    series: BTC,
    stream: { state: "live", detail: null, at: NOW - 1 },
    heardAt: NOW - 2_000,
    ...more,
  };
}

function lamp(more: Partial<Known> = {}): { tone: string; label: string; old: boolean; reason: string | null } {
  const { tone, label, old, reason } = lampOf(known(more), NOW);
  return { tone, label, old, reason };
}

describe("the lamp", () => {
  test("is live when connection, exchange, stream and candles are", () => {
    expect(lamp()).toEqual({ tone: "good", label: "Live", old: false, reason: null });
    expect(lampOf(known(), NOW).age).toBe(2);
  });

  test("counts the age from what the page heard, and before that from what the service heard", () => {
    expect(lampOf(known(), NOW + 3_500).age).toBe(5);
    const polled = told(parseHealth(health({ now_time: 1000, stream: { state: "live", last_frame_at: 960 } })), NOW - 3_000);
    expect(lampOf(known({ heardAt: null, health: polled }), NOW).age).toBe(43);
    expect(lampOf(known({ heardAt: null }), NOW).age).toBeNull();
  });

  test("is red while the exchange is unreachable, whatever the socket and the stream say", () => {
    const spot = { state: "unreachable", detail: "binance spot gives neither frames nor answers since 14:03:21" };
    const dead = lamp({ status: told(parseStatus(status({ status: "red" }, spot))) });
    expect(dead).toEqual({
      tone: "bad",
      label: "Exchange down",
      old: true,
      reason: "Binance spot gives neither frames nor answers since 14:03:21.",
    });
  });

  test.each(["stale", "rest_fallback", "reconnecting", "subscribed", "delisted", "off"])("is not live while the stream is %s", (state) => {
    for (const stream of [null, { state, detail: null, at: NOW + 1 }]) {
      const shown = lamp({ stream, health: told(parseHealth(health({}, stream === null ? state : "live"))) });
      expect(shown.tone).not.toBe("good");
      expect(shown.label).not.toContain("Live");
      expect(shown.old).toBe(true);
      expect(shown.reason).not.toBeNull();
    }
  });

  test("takes the newer word on the stream: of the event or of the health that was asked for later", () => {
    const stale = { state: "stale", detail: "no frames for 15 s" };
    expect(lamp({ stream: { ...stale, at: NOW + 1 } }).reason).toBe("No frames for 15 s.");
    expect(lamp({ stream: { ...stale, at: NOW - 60_000 } }).label).toBe("Live");
  });

  test("is unknown when the service is an older one, and says what the stream says", () => {
    const older = lamp({ status: { kind: "absent" }, health: { kind: "absent" } });
    expect([older.tone, older.label]).toEqual(["unknown", "State unknown"]);
    const stream = { state: "stale", detail: null, at: NOW };
    expect(lamp({ status: { kind: "absent" }, stream }).label).toBe("Stale");
  });

  test("is unknown when the service has not said for a while how it is", () => {
    const at = NOW - STATUS_OLD_MS - 1;
    expect(lamp({ status: told(parseStatus(status()), at) })).toMatchObject({ tone: "unknown", label: "State unknown" });
    expect(lamp({ status: told(parseStatus(status()), at), heardAt: NOW - 60_000 }).old).toBe(true);
    expect(lamp({ status: told(parseStatus(status()), at) }).old).toBe(false);
    expect(lamp({ status: { kind: "none" } })).toMatchObject({ tone: "unknown", label: "Checking" });
  });

  test("is unknown when the service does not name the exchange, or tells a state that this page does not know", () => {
    expect(lamp({ status: told(parseStatus(status({ exchanges: [] }))) }).tone).toBe("unknown");
    expect(lamp({ status: told(parseStatus(status({}, { state: "sleepy" }))) }).tone).toBe("unknown");
    expect(lamp({ stream: null, health: { kind: "absent" } }).tone).toBe("unknown");
  });

  test("says of a series that nobody follows that it is stored only", () => {
    const idle = lamp({ status: told(parseStatus(status({}, { state: "idle", detail: "ingest is off" }))) });
    expect(idle).toEqual({ tone: "off", label: "Stored only", old: true, reason: "Ingest is off." });
  });

  test("is red when the store fails, and amber when the exchange is degraded", () => {
    const store = { ok: false, detail: "the disk is full" };
    expect(lamp({ status: told(parseStatus(status({ store }))) })).toMatchObject({ tone: "bad", reason: "The disk is full." });
    expect(lamp({ status: told(parseStatus(status({}, { state: "degraded" }))) })).toMatchObject({ tone: "warn", label: "Degraded" });
  });

  test("says what ails the candles of a live series, once two answers in a row say so", () => {
    const ill = parseHealth(health({ status: "red", status_reason: "interior_gap" }));
    expect(lamp({ health: told(ill, NOW, NOW) }).label).toBe("Live");
    expect(lamp({ health: told(ill) })).toMatchObject({ tone: "bad", label: "Incomplete", old: false });
    const healing = parseHealth(health({ status: "yellow", status_reason: "gap_healing" }));
    expect(lamp({ health: told(healing) })).toMatchObject({ tone: "warn", reason: "Missing candles are being fetched." });
  });

  test("is amber when another part of the service is in trouble", () => {
    const red = parseStatus(status({ status: "red", status_reason: "ccxt futures is unreachable" }));
    expect(lamp({ status: told(red) })).toMatchObject({ tone: "warn", label: "Live, trouble elsewhere", old: false });
    expect(lamp({ status: told(red, NOW, NOW) }).label).toBe("Live");
  });

  test("is red while the page itself is not connected, and says nothing before the first attempt is over", () => {
    expect(lamp({ connection: { ...CONNECTED, phase: "waiting", downSince: NOW, attempt: 1 } })).toMatchObject({
      tone: "bad",
      label: "Not connected",
      old: true,
    });
    expect(lamp({ connection: { ...INITIAL, phase: "connecting", downSince: NOW } })).toMatchObject({ tone: "unknown", label: "Connecting" });
  });

  test("is never live with anything of the chain in another state than live", () => {
    const phases = ["connecting", "greeting", "live", "waiting"] as const;
    const states = ["live", "degraded", "unreachable", "idle", "unknown", null];
    const streams = ["live", "stale", "rest_fallback", "reconnecting", "subscribed", "delisted", "off", null];
    for (const phase of phases)
      for (const state of states)
        for (const stream of streams)
          for (const ok of [true, false]) {
            const exchange = parseStatus(status({ store: { ok, detail: null } }, { state }));
            const word = stream === null ? null : { state: stream, detail: null, at: NOW };
            const shown = lamp({ connection: { ...CONNECTED, phase }, status: told(exchange), stream: word, health: { kind: "absent" } });
            const allLive = phase === "live" && state === "live" && stream === "live" && ok;
            expect(shown.label.includes("Live")).toBe(allLive);
            expect(shown.tone === "good").toBe(allLive);
          }
  });

  test("behind it, the panel has a line for each part, and does not call old what it does not know", () => {
    const { facts } = lampOf(known(), NOW);
    expect(facts.map(({ name }) => name)).toEqual(["Page", "Store", "Binance spot", "Service", "Stream", "Candles", "Last update"]);
    const silent = lampOf(known({ status: told(parseStatus(status()), NOW - 60_000) }), NOW).facts;
    expect(silent.map(({ name, tone }) => [name, tone])).toContainEqual(["Service", "unknown"]);
    expect(silent.map(({ name }) => name)).not.toContain("Binance spot");
  });
});
