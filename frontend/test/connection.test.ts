import { describe, expect, test } from "vitest";
import {
  backoff,
  BACKOFF_INITIAL_MS,
  BACKOFF_MAX_MS,
  type Command,
  CONNECT_TIMEOUT_MS,
  type Connection,
  type Event,
  INITIAL,
  PING_AFTER_MS,
  PONG_TIMEOUT_MS,
  STABLE_AFTER_MS,
  step,
} from "../src/connection.ts";

/** Feeds events to the state machine and keeps the last commands. */
class Run {
  state: Connection = INITIAL;
  commands: Command[] = [];
  now = 1_000_000;

  constructor(private readonly random = 0) {}

  take(event: Event): this {
    const { state, commands } = step(this.state, event, this.now, this.random);
    this.state = state;
    this.commands = [...commands];
    return this;
  }

  after(ms: number): this {
    this.now += ms;
    return this;
  }

  /** Lets time pass to the deadline. */
  due(): this {
    if (this.state.deadline !== null) this.now = this.state.deadline;
    return this.take({ type: "tick" });
  }

  live(): this {
    this.take({ type: "start" });
    const { socket } = this.state;
    return this.take({ type: "opened", socket }).take({ type: "received", socket });
  }
}

describe("a start", () => {
  test("opens the first socket, subscribes and pings on it, and is live with the first message", () => {
    const run = new Run().take({ type: "start" });
    expect(run.commands).toEqual([{ do: "open", socket: 1 }]);
    expect(run.state.phase).toBe("connecting");
    run.take({ type: "opened", socket: 1 });
    expect(run.commands).toEqual([
      { do: "subscribe", socket: 1 },
      { do: "ping", socket: 1 },
    ]);
    expect(run.state.phase).toBe("verifying");
    run.take({ type: "received", socket: 1 });
    expect(run.state).toMatchObject({ phase: "live", downSince: null, everLive: true });
  });

  test("happens once", () => {
    expect(new Run().take({ type: "start" }).take({ type: "start" }).commands).toEqual([]);
  });
});

describe("a lost connection", () => {
  test("keeps the time of its loss through every attempt", () => {
    const run = new Run().live().after(60_000);
    const lost = run.now;
    run.take({ type: "closed", socket: 1 });
    expect(run.state).toMatchObject({ phase: "waiting", downSince: lost });
    run.due().take({ type: "closed", socket: 2 }).due();
    expect(run.state).toMatchObject({ phase: "connecting", socket: 3, downSince: lost });
    run.take({ type: "opened", socket: 3 });
    expect(run.state.downSince).toBe(lost);
    run.take({ type: "received", socket: 3 });
    expect(run.state.downSince).toBeNull();
  });

  test("reconnects with a backoff that doubles up to a limit", () => {
    const run = new Run(0.999_999).live().after(STABLE_AFTER_MS);
    const backoffs: number[] = [];
    run.take({ type: "closed", socket: 1 });
    for (let index = 0; index < 8; index += 1) {
      backoffs.push((run.state.deadline ?? 0) - run.now);
      run.due();
      expect(run.commands).toEqual([{ do: "open", socket: index + 2 }]);
      run.take({ type: "closed", socket: index + 2 });
    }
    expect(backoffs).toEqual([500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
  });

  test("does not reconnect before its backoff is over", () => {
    const run = new Run().live().after(STABLE_AFTER_MS).take({ type: "closed", socket: 1 });
    expect(run.take({ type: "tick" }).commands).toEqual([]);
    expect(run.state.phase).toBe("waiting");
  });

  test("reconnects at once when the network is back or the page is visible again", () => {
    for (const type of ["retry", "visible"] as const) {
      const run = new Run().live().take({ type: "closed", socket: 1 }).take({ type });
      expect(run.commands).toEqual([{ do: "open", socket: 2 }]);
    }
  });

  test("keeps its long backoff while each connection ends at once", () => {
    const run = new Run().live();
    for (let socket = 1; socket < 6; socket += 1) {
      run.take({ type: "closed", socket }).due().take({ type: "opened", socket: socket + 1 }).take({ type: "received", socket: socket + 1 });
    }
    expect(run.take({ type: "closed", socket: 6 }).state.attempt).toBe(6);
  });

  test("starts with the initial backoff after a stable connection", () => {
    const run = new Run().live().take({ type: "closed", socket: 1 }).due().take({ type: "closed", socket: 2 }).due();
    run.take({ type: "opened", socket: 3 }).take({ type: "received", socket: 3 }).after(STABLE_AFTER_MS);
    run.take({ type: "closed", socket: 3 });
    expect((run.state.deadline ?? 0) - run.now).toBe(BACKOFF_INITIAL_MS / 2);
  });
});

describe("an older socket", () => {
  test("is ignored", () => {
    const run = new Run().live().take({ type: "closed", socket: 1 }).due();
    const before = run.state;
    for (const type of ["opened", "received", "closed"] as const) run.take({ type, socket: 1 });
    expect(run.state).toBe(before);
  });
});

describe("a silent socket", () => {
  test("is pinged, and stays live when it answers", () => {
    const run = new Run().live().due();
    expect(run.now).toBe(1_000_000 + PING_AFTER_MS);
    expect(run.commands).toEqual([{ do: "ping", socket: 1 }]);
    run.after(PONG_TIMEOUT_MS - 1).take({ type: "received", socket: 1 });
    expect(run.state).toMatchObject({ phase: "live", pinging: false, deadline: run.now + PING_AFTER_MS });
  });

  test("is closed when it does not answer", () => {
    const run = new Run().live().due().due();
    expect(run.commands).toEqual([{ do: "close", socket: 1 }]);
    expect(run.state).toMatchObject({ phase: "waiting", downSince: run.now });
    // Its close event comes late, if at all.
    const { deadline } = run.state;
    expect(run.take({ type: "closed", socket: 1 }).state.deadline).toBe(deadline);
  });

  test("is pinged at once when the page is visible again, and only once", () => {
    const run = new Run().live().after(100).take({ type: "visible" });
    expect(run.commands).toEqual([{ do: "ping", socket: 1 }]);
    expect(run.take({ type: "visible" }).commands).toEqual([]);
  });

  test("is closed when it never opens, or never answers the first ping", () => {
    const connecting = new Run().take({ type: "start" }).due();
    expect(connecting.now).toBe(1_000_000 + CONNECT_TIMEOUT_MS);
    expect(connecting.commands).toEqual([{ do: "close", socket: 1 }]);
    const verifying = new Run().take({ type: "start" }).take({ type: "opened", socket: 1 }).due();
    expect(verifying.commands).toEqual([{ do: "close", socket: 1 }]);
    expect(verifying.state.everLive).toBe(false);
  });
});

test("a backoff is spread over its upper half and never exceeds the limit", () => {
  expect(backoff(3, 0)).toBe(2000);
  expect(backoff(3, 0.999_999)).toBe(4000);
  expect(backoff(500, 0.999_999)).toBe(BACKOFF_MAX_MS);
});
