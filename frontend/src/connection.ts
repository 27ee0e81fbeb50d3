// The state machine of the connection: events in, commands out. Pure: no socket, timer or clock. `now` is in
// milliseconds and comes with each event, as does the random number that spreads reconnects.
//
//   connecting --opened--> verifying --received--> live --closed / silent--> waiting --due--> connecting ...
//
// Sockets are numbered. Events of an older socket are ignored, so a late close cannot end its successor.

export type Phase = "connecting" | "verifying" | "live" | "waiting";

export interface Connection {
  readonly phase: Phase;
  /** Number of the present socket; 0 before the first. */
  readonly socket: number;
  /** Attempts since the connection was last stable; decides the backoff. */
  readonly attempt: number;
  /** Start of the present outage; null while live. */
  readonly downSince: number | null;
  /** Whether the page has been live before. */
  readonly everLive: boolean;
  /** Time of the next action unless an event comes first; null when nothing is due. */
  readonly deadline: number | null;
  /** Start of the present phase. */
  readonly since: number;
  /** Whether a ping is in flight. */
  readonly pinging: boolean;
}

export type Event =
  | { readonly type: "start" }
  | { readonly type: "opened"; readonly socket: number }
  | { readonly type: "received"; readonly socket: number }
  | { readonly type: "closed"; readonly socket: number }
  /** The deadline may have passed. */
  | { readonly type: "tick" }
  /** The network is back, or the reader asks: reconnect now. */
  | { readonly type: "retry" }
  /** The page is visible again: a machine that slept may hold a dead socket. */
  | { readonly type: "visible" };

export type Command =
  | { readonly do: "open"; readonly socket: number }
  | { readonly do: "close"; readonly socket: number }
  /** Subscribe on this socket, from the last closed candle. */
  | { readonly do: "subscribe"; readonly socket: number }
  | { readonly do: "ping"; readonly socket: number };

/** Timeout of a handshake, in milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** Silence after which a ping is sent, in milliseconds. */
export const PING_AFTER_MS = 10_000;
/** Timeout of the answer to a ping, in milliseconds. */
export const PONG_TIMEOUT_MS = 5_000;
/** Backoff before the first reconnect, in milliseconds; doubles with each attempt up to `BACKOFF_MAX_MS`. */
export const BACKOFF_INITIAL_MS = 500;
export const BACKOFF_MAX_MS = 15_000;
/** A connection that was live for this long, in milliseconds, is stable: its next backoff is the initial one. */
export const STABLE_AFTER_MS = 5_000;

export const INITIAL: Connection = {
  phase: "waiting",
  socket: 0,
  attempt: 0,
  downSince: null,
  everLive: false,
  deadline: null,
  since: 0,
  pinging: false,
};

export interface Step {
  readonly state: Connection;
  readonly commands: readonly Command[];
}

/** Milliseconds before attempt number `attempt` (0 is the first): exponential, capped, the upper half random. */
export function backoff(attempt: number, random: number): number {
  const max = Math.min(BACKOFF_MAX_MS, BACKOFF_INITIAL_MS * 2 ** Math.min(attempt, 16));
  return Math.round(max * (0.5 + random / 2));
}

/** The state after `event`, and what to do. `random` is in [0, 1). */
export function step(state: Connection, event: Event, now: number, random: number): Step {
  if ("socket" in event && event.socket !== state.socket) return { state, commands: [] };
  switch (event.type) {
    case "start":
      return state.socket === 0 ? connect({ ...state, downSince: now }, now) : { state, commands: [] };
    case "opened":
      if (state.phase !== "connecting") return { state, commands: [] };
      // The pong proves that the connection works in both directions.
      return {
        state: { ...state, phase: "verifying", since: now, pinging: true, deadline: now + PONG_TIMEOUT_MS },
        commands: [
          { do: "subscribe", socket: state.socket },
          { do: "ping", socket: state.socket },
        ],
      };
    case "received":
      if (state.phase === "verifying") {
        return {
          state: {
            ...state,
            phase: "live",
            since: now,
            downSince: null,
            everLive: true,
            pinging: false,
            deadline: now + PING_AFTER_MS,
          },
          commands: [],
        };
      }
      if (state.phase !== "live") return { state, commands: [] };
      return { state: { ...state, pinging: false, deadline: now + PING_AFTER_MS }, commands: [] };
    case "closed":
      return state.phase === "waiting" ? { state, commands: [] } : wait(state, now, random);
    case "tick":
      if (state.deadline === null || now < state.deadline) return { state, commands: [] };
      if (state.phase === "waiting") return connect(state, now);
      if (state.phase === "live" && !state.pinging) return ping(state, now);
      return abandon(state, now, random);
    case "retry":
      return state.phase === "waiting" && state.socket > 0 ? connect(state, now) : { state, commands: [] };
    case "visible":
      if (state.phase === "waiting" && state.socket > 0) return connect(state, now);
      if (state.phase === "live" && !state.pinging) return ping(state, now);
      return { state, commands: [] };
    default:
      return event satisfies never;
  }
}

function connect(state: Connection, now: number): Step {
  const socket = state.socket + 1;
  return {
    state: { ...state, phase: "connecting", socket, since: now, pinging: false, deadline: now + CONNECT_TIMEOUT_MS },
    commands: [{ do: "open", socket }],
  };
}

function ping(state: Connection, now: number): Step {
  return {
    state: { ...state, pinging: true, deadline: now + PONG_TIMEOUT_MS },
    commands: [{ do: "ping", socket: state.socket }],
  };
}

function abandon(state: Connection, now: number, random: number): Step {
  const after = wait(state, now, random);
  return { state: after.state, commands: [{ do: "close", socket: state.socket }] };
}

function wait(state: Connection, now: number, random: number): Step {
  const stable = state.phase === "live" && now - state.since >= STABLE_AFTER_MS;
  const attempt = stable ? 0 : state.attempt;
  return {
    state: {
      ...state,
      phase: "waiting",
      since: now,
      pinging: false,
      attempt: attempt + 1,
      downSince: state.downSince ?? now,
      deadline: now + backoff(attempt, random),
    },
    commands: [],
  };
}
