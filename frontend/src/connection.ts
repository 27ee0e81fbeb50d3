// The connection's state machine: events in, commands out. It knows no socket, timer or clock; `now` is in
// milliseconds and comes with each event, and so does the random number that spreads reconnects.
//
//   connecting --opened--> greeting --heard--> live --closed / silent--> waiting --due--> connecting ...
//
// Sockets are numbered. What an older socket still says is ignored, so a late close cannot end its successor.

export type Phase = "connecting" | "greeting" | "live" | "waiting";

export interface Connection {
  readonly phase: Phase;
  /** Number of the present socket; 0 before the first. */
  readonly socket: number;
  /** Attempts since the connection was last live for a while; decides how long to wait. */
  readonly attempt: number;
  /** Since when the page is not connected; null while live. */
  readonly downSince: number | null;
  /** Whether the page has been live before. */
  readonly everLive: boolean;
  /** When something has to happen unless an event comes first; null when nothing is due. */
  readonly deadline: number | null;
  /** When the present phase began. */
  readonly since: number;
  /** Whether a ping waits for its answer. */
  readonly pinged: boolean;
}

export type Event =
  | { readonly type: "start" }
  | { readonly type: "opened"; readonly socket: number }
  | { readonly type: "heard"; readonly socket: number }
  | { readonly type: "closed"; readonly socket: number }
  /** The deadline may have passed. */
  | { readonly type: "tick" }
  /** The network is back, or the reader asks: do not wait any longer. */
  | { readonly type: "retry" }
  /** The page is seen again: a machine that slept may hold a dead socket. */
  | { readonly type: "seen" };

export type Command =
  | { readonly do: "open"; readonly socket: number }
  | { readonly do: "close"; readonly socket: number }
  /** Subscribe on this socket, from the last closed candle shown. */
  | { readonly do: "greet"; readonly socket: number }
  | { readonly do: "ping"; readonly socket: number };

/** Longest time for a handshake. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** Silence after which a ping is sent. */
export const PING_AFTER_MS = 10_000;
/** Longest wait for the answer to a ping. */
export const PONG_TIMEOUT_MS = 5_000;
/** The first wait before a reconnect; it doubles with each attempt. */
export const BACKOFF_FIRST_MS = 500;
export const BACKOFF_MOST_MS = 15_000;
/** A connection that was live for this long starts its waits from the first again. */
export const SETTLED_AFTER_MS = 5_000;

export const INITIAL: Connection = {
  phase: "waiting",
  socket: 0,
  attempt: 0,
  downSince: null,
  everLive: false,
  deadline: null,
  since: 0,
  pinged: false,
};

export interface Step {
  readonly state: Connection;
  readonly commands: readonly Command[];
}

/** Wait before attempt number `attempt` (0 is the first): exponential, capped, the upper half of it random. */
export function backoff(attempt: number, random: number): number {
  const most = Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** Math.min(attempt, 16));
  return Math.round(most * (0.5 + random / 2));
}

/** Take one event. `random` is in [0, 1). */
export function step(state: Connection, event: Event, now: number, random: number): Step {
  if ("socket" in event && event.socket !== state.socket) return { state, commands: [] };
  switch (event.type) {
    case "start":
      return state.socket === 0 ? connect({ ...state, downSince: now }, now) : { state, commands: [] };
    case "opened":
      if (state.phase !== "connecting") return { state, commands: [] };
      // The answer to the ping proves that the way is open in both directions.
      return {
        state: { ...state, phase: "greeting", since: now, pinged: true, deadline: now + PONG_TIMEOUT_MS },
        commands: [
          { do: "greet", socket: state.socket },
          { do: "ping", socket: state.socket },
        ],
      };
    case "heard":
      if (state.phase === "greeting") {
        return {
          state: {
            ...state,
            phase: "live",
            since: now,
            downSince: null,
            everLive: true,
            pinged: false,
            deadline: now + PING_AFTER_MS,
          },
          commands: [],
        };
      }
      if (state.phase !== "live") return { state, commands: [] };
      return { state: { ...state, pinged: false, deadline: now + PING_AFTER_MS }, commands: [] };
    case "closed":
      return state.phase === "waiting" ? { state, commands: [] } : wait(state, now, random);
    case "tick":
      if (state.deadline === null || now < state.deadline) return { state, commands: [] };
      if (state.phase === "waiting") return connect(state, now);
      if (state.phase === "live" && !state.pinged) return ping(state, now);
      return giveUp(state, now, random);
    case "retry":
      return state.phase === "waiting" && state.socket > 0 ? connect(state, now) : { state, commands: [] };
    case "seen":
      if (state.phase === "waiting" && state.socket > 0) return connect(state, now);
      if (state.phase === "live" && !state.pinged) return ping(state, now);
      return { state, commands: [] };
    default:
      return event satisfies never;
  }
}

function connect(state: Connection, now: number): Step {
  const socket = state.socket + 1;
  return {
    state: { ...state, phase: "connecting", socket, since: now, pinged: false, deadline: now + CONNECT_TIMEOUT_MS },
    commands: [{ do: "open", socket }],
  };
}

function ping(state: Connection, now: number): Step {
  return {
    state: { ...state, pinged: true, deadline: now + PONG_TIMEOUT_MS },
    commands: [{ do: "ping", socket: state.socket }],
  };
}

function giveUp(state: Connection, now: number, random: number): Step {
  const after = wait(state, now, random);
  return { state: after.state, commands: [{ do: "close", socket: state.socket }] };
}

function wait(state: Connection, now: number, random: number): Step {
  const settled = state.phase === "live" && now - state.since >= SETTLED_AFTER_MS;
  const attempt = settled ? 0 : state.attempt;
  return {
    state: {
      ...state,
      phase: "waiting",
      since: now,
      pinged: false,
      attempt: attempt + 1,
      downSince: state.downSince ?? now,
      deadline: now + backoff(attempt, random),
    },
    commands: [],
  };
}
