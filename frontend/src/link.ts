// Link: the WebSocket to the service. It carries out the commands of the connection's state machine and keeps its timer.

import { type Command, type Connection, type Event, INITIAL, step } from "./connection.ts";
import type { Ports, Socket } from "./ports.ts";
import { PING_MESSAGE } from "./wire.ts";

export interface LinkEvents {
  /** The connection entered another phase; `before` is the connection before that. */
  phase(before: Connection): void;
  /** A socket is open: subscribe to the shown series. */
  opened(): void;
  message(text: string): void;
}

export class Link {
  #connection: Connection = INITIAL;
  #socket: Socket | null = null;
  #cancelTick: () => void = () => undefined;

  constructor(
    private readonly ports: Pick<Ports, "openSocket" | "now" | "after" | "random">,
    private readonly events: LinkEvents,
  ) {}

  get connection(): Connection {
    return this.#connection;
  }

  start(): void {
    this.#dispatch({ type: "start" });
  }

  /** Reconnect now instead of after the backoff. */
  retry(): void {
    this.#dispatch({ type: "retry" });
  }

  /** The page is visible again after it was hidden. */
  visible(): void {
    this.#dispatch({ type: "visible" });
  }

  /** Sends on an open socket; without one the text is dropped, because each new socket subscribes again. */
  send(text: string): void {
    const { phase } = this.#connection;
    if (phase === "verifying" || phase === "live") this.#socket?.send(text);
  }

  #dispatch(event: Event): void {
    const before = this.#connection;
    const { state, commands } = step(before, event, this.ports.now(), this.ports.random());
    this.#connection = state;
    for (const command of commands) this.#carryOut(command);
    if (state.deadline !== before.deadline) this.#armTick();
    if (state.phase !== before.phase) this.events.phase(before);
  }

  #armTick(): void {
    this.#cancelTick();
    const { deadline } = this.#connection;
    if (deadline === null) return;
    this.#cancelTick = this.ports.after(Math.max(0, deadline - this.ports.now()), () => {
      this.#dispatch({ type: "tick" });
      // A timer may fire a little early: the deadline is still ahead then.
      if (this.#connection.deadline === deadline) this.#armTick();
    });
  }

  #carryOut(command: Command): void {
    const { socket } = command;
    switch (command.do) {
      case "open":
        this.#socket = this.ports.openSocket({
          opened: () => this.#dispatch({ type: "opened", socket }),
          message: (text) => {
            if (socket !== this.#connection.socket) return;
            this.#dispatch({ type: "received", socket });
            this.events.message(text);
          },
          closed: () => this.#dispatch({ type: "closed", socket }),
        });
        break;
      case "close":
        this.#socket?.close();
        break;
      case "subscribe":
        this.events.opened();
        break;
      case "ping":
        this.#socket?.send(PING_MESSAGE);
        break;
      default:
        command satisfies never;
    }
  }
}
