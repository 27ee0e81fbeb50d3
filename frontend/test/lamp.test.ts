import { describe, expect, test } from "vitest";
import { type Connection, INITIAL } from "../src/connection.ts";
import { type Evidence, lampOf } from "../src/lamp.ts";
import { parseHealth, parseStatus } from "../src/status.ts";
import { type Polled, STATUS_STALE_MS } from "../src/status-feed.ts";
import { BTC as BTC_ID, seriesOf } from "./support.ts";

const NOW = 1_000_000_000;
const BTC = seriesOf(BTC_ID);
const CONNECTED: Connection = { ...INITIAL, phase: "live", socket: 1, everLive: true };

function answered<T>(value: T | null, at = NOW, since = NOW - 10_000): Polled<T> {
  if (value === null) throw new Error("the answer has another shape");
  return { kind: "answered", at, since, value };
}

function status(more: Record<string, unknown> = {}, spot: Record<string, unknown> = {}): unknown {
  const market = { exchange: "binance", market: "spot", state: "live", detail: null, since: 0, last_frame_at: 0, ...spot };
  const store = { ok: true, detail: null, queued_candles: 0 };
  return { status: "green", status_reason: "all is well", exchanges: [market], store, ...more };
}

function health(more: Record<string, unknown> = {}, stream = "live"): unknown {
  return {
    series_id: BTC.id,
    status: "green",
    status_reason: "up_to_date",
    backfill: { state: "idle" },
    stream: { state: stream, detail: null },
    gaps: { unknown: 0, healing: 0, confirmed_empty: 0, lost: 0 },
    ...more,
  };
}

/** The evidence of a live series, apart from what the test changes. */
function evidence(more: Partial<Evidence> = {}): Evidence {
  return {
    connection: CONNECTED,
    status: answered(parseStatus(status())),
    health: answered(parseHealth(health())),
    series: BTC,
    stream: { state: "live", detail: null, at: NOW - 1 },
    receivedAt: NOW - 2_000,
    ...more,
  };
}

function lamp(more: Partial<Evidence> = {}): { tone: string; label: string; stale: boolean; reason: string | null } {
  const { tone, label, stale, reason } = lampOf(evidence(more), NOW);
  return { tone, label, stale, reason };
}

describe("the lamp", () => {
  test("is live when connection, exchange, stream and candles are", () => {
    expect(lamp()).toEqual({ tone: "good", label: "Live", stale: false, reason: null });
    expect(lampOf(evidence(), NOW).age).toBe(2);
  });

  test("takes the age from the last candle of the page, and before the first, from the last frame of the service", () => {
    expect(lampOf(evidence(), NOW + 3_500).age).toBe(5);
    const polled = answered(parseHealth(health({ now_time: 1000, stream: { state: "live", last_frame_at: 960 } })), NOW - 3_000);
    expect(lampOf(evidence({ receivedAt: null, health: polled }), NOW).age).toBe(43);
    expect(lampOf(evidence({ receivedAt: null }), NOW).age).toBeNull();
  });

  test("is red while the exchange is unreachable, whatever the socket and the stream report", () => {
    const spot = { state: "unreachable", detail: "binance spot gives neither frames nor answers since 14:03:21" };
    const dead = lamp({ status: answered(parseStatus(status({ status: "red" }, spot))) });
    expect(dead).toEqual({
      tone: "bad",
      label: "Exchange down",
      stale: true,
      reason: "Binance spot gives neither frames nor answers since 14:03:21.",
    });
  });

  test.each(["stale", "rest_fallback", "reconnecting", "subscribed", "delisted", "off"])("is not live while the stream is %s", (state) => {
    for (const stream of [null, { state, detail: null, at: NOW + 1 }]) {
      const shown = lamp({ stream, health: answered(parseHealth(health({}, stream === null ? state : "live"))) });
      expect(shown.tone).not.toBe("good");
      expect(shown.label).not.toContain("Live");
      expect(shown.stale).toBe(true);
      expect(shown.reason).not.toBeNull();
    }
  });

  test("takes the newest report on the stream: of an event, or of a later health", () => {
    const stale = { state: "stale", detail: "no frames for 15 s" };
    expect(lamp({ stream: { ...stale, at: NOW + 1 } }).reason).toBe("No frames for 15 s.");
    expect(lamp({ stream: { ...stale, at: NOW - 60_000 } }).label).toBe("Live");
  });

  test("is unknown for an older service, unless its stream reports trouble", () => {
    const older = lamp({ status: { kind: "absent" }, health: { kind: "absent" } });
    expect([older.tone, older.label]).toEqual(["unknown", "State unknown"]);
    const stream = { state: "stale", detail: null, at: NOW };
    expect(lamp({ status: { kind: "absent" }, stream }).label).toBe("Stale");
  });

  test("is unknown when the newest status is stale", () => {
    const at = NOW - STATUS_STALE_MS - 1;
    expect(lamp({ status: answered(parseStatus(status()), at) })).toMatchObject({ tone: "unknown", label: "State unknown" });
    expect(lamp({ status: answered(parseStatus(status()), at), receivedAt: NOW - 60_000 }).stale).toBe(true);
    expect(lamp({ status: answered(parseStatus(status()), at) }).stale).toBe(false);
    expect(lamp({ status: { kind: "none" } })).toMatchObject({ tone: "unknown", label: "Checking" });
  });

  test("is unknown when the service does not list the exchange, or reports a state that this page does not know", () => {
    expect(lamp({ status: answered(parseStatus(status({ exchanges: [] }))) }).tone).toBe("unknown");
    expect(lamp({ status: answered(parseStatus(status({}, { state: "sleepy" }))) }).tone).toBe("unknown");
    expect(lamp({ stream: null, health: { kind: "absent" } }).tone).toBe("unknown");
  });

  test("shows a series that is not followed as stored only", () => {
    const idle = lamp({ status: answered(parseStatus(status({}, { state: "idle", detail: "ingest is off" }))) });
    expect(idle).toEqual({ tone: "off", label: "Stored only", stale: true, reason: "Ingest is off." });
  });

  test("is red when the store fails, and amber when the exchange is degraded", () => {
    const store = { ok: false, detail: "the disk is full" };
    expect(lamp({ status: answered(parseStatus(status({ store }))) })).toMatchObject({ tone: "bad", reason: "The disk is full." });
    expect(lamp({ status: answered(parseStatus(status({}, { state: "degraded" }))) })).toMatchObject({ tone: "warn", label: "Degraded" });
  });

  test("reports trouble of the candles of a live series after two answers in a row", () => {
    const incomplete = parseHealth(health({ status: "red", status_reason: "interior_gap" }));
    expect(lamp({ health: answered(incomplete, NOW, NOW) }).label).toBe("Live");
    expect(lamp({ health: answered(incomplete) })).toMatchObject({ tone: "bad", label: "Incomplete", stale: false });
    const healing = parseHealth(health({ status: "yellow", status_reason: "gap_healing" }));
    expect(lamp({ health: answered(healing) })).toMatchObject({ tone: "warn", reason: "Missing candles are being fetched." });
  });

  test("is amber when another part of the service is in trouble", () => {
    const red = parseStatus(status({ status: "red", status_reason: "ccxt futures is unreachable" }));
    expect(lamp({ status: answered(red) })).toMatchObject({ tone: "warn", label: "Live, trouble elsewhere", stale: false });
    expect(lamp({ status: answered(red, NOW, NOW) }).label).toBe("Live");
  });

  test("is red while the page is not connected, and unknown before the first attempt is over", () => {
    expect(lamp({ connection: { ...CONNECTED, phase: "waiting", downSince: NOW, attempt: 1 } })).toMatchObject({
      tone: "bad",
      label: "Not connected",
      stale: true,
    });
    expect(lamp({ connection: { ...INITIAL, phase: "connecting", downSince: NOW } })).toMatchObject({ tone: "unknown", label: "Connecting" });
  });

  test("is live only when every part of the chain is live", () => {
    const phases = ["connecting", "verifying", "live", "waiting"] as const;
    const states = ["live", "degraded", "unreachable", "idle", "unknown", null];
    const streams = ["live", "stale", "rest_fallback", "reconnecting", "subscribed", "delisted", "off", null];
    for (const phase of phases)
      for (const state of states)
        for (const stream of streams)
          for (const ok of [true, false]) {
            const exchange = parseStatus(status({ store: { ok, detail: null } }, { state }));
            const report = stream === null ? null : { state: stream, detail: null, at: NOW };
            const shown = lamp({ connection: { ...CONNECTED, phase }, status: answered(exchange), stream: report, health: { kind: "absent" } });
            const allLive = phase === "live" && state === "live" && stream === "live" && ok;
            expect(shown.label.includes("Live")).toBe(allLive);
            expect(shown.tone === "good").toBe(allLive);
          }
  });

  test("has a fact for each part, and none for a part whose state is unknown", () => {
    const { facts } = lampOf(evidence(), NOW);
    expect(facts.map(({ name }) => name)).toEqual(["Page", "Store", "Binance spot", "Service", "Stream", "Candles", "Last update"]);
    const withoutStatus = lampOf(evidence({ status: answered(parseStatus(status()), NOW - 60_000) }), NOW).facts;
    expect(withoutStatus.map(({ name, tone }) => [name, tone])).toContainEqual(["Service", "unknown"]);
    expect(withoutStatus.map(({ name }) => name)).not.toContain("Binance spot");
  });
});
