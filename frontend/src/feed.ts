// Feed: one series on one connection. It carries out what the connection machine decides, joins history to live
// through the store, and tells the page what changed. Everything outside reaches it through `Ports`.

import { backoff, type Command, type Connection, type Event, INITIAL, step } from "./connection.ts";
import { type Candle, nextOpen, parseSeries, type Series } from "./series.ts";
import { type Change, SeriesStore } from "./store.ts";
import {
  parseHistory,
  parseMessage,
  parseRefusal,
  PING_MESSAGE,
  type Message,
  subscribeMessage,
  unsubscribeMessage,
} from "./wire.ts";

export interface Socket {
  send(text: string): void;
  close(): void;
}

export interface SocketEvents {
  opened(): void;
  message(text: string): void;
  closed(): void;
}

export interface Answer {
  readonly status: number;
  readonly body: unknown;
}

export interface Ports {
  openSocket(events: SocketEvents): Socket;
  /** Rejects when the service cannot be reached, its answer cannot be read, or none has come after `timeoutMs`. */
  get(path: string, timeoutMs?: number): Promise<Answer>;
  now(): number;
  /** Call once after `ms`; the result cancels. */
  after(ms: number, call: () => void): () => void;
  random(): number;
}

export type HistoryState =
  | { readonly kind: "none" }
  | { readonly kind: "loading" }
  | { readonly kind: "ready" }
  /** The service cannot answer at present; it is asked again. */
  | { readonly kind: "unreachable"; readonly why: string }
  /** The service refuses the series. */
  | { readonly kind: "refused"; readonly why: string };

/** Where the upstream of the series stands: a state of the health's `stream.state`, and a sentence of the service. */
export interface StreamWord {
  readonly state: string;
  readonly detail: string | null;
}

/** Work that the service does for the series; `state` is null where the event has none. */
export interface WorkWord {
  readonly event: string;
  readonly text: string;
  readonly state: string | null;
}

export interface FeedEvents {
  connection(connection: Connection): void;
  /** A new series is shown, under the name that the service gives it. */
  series(series: Series, store: SeriesStore): void;
  history(state: HistoryState): void;
  changed(change: Change): void;
  /** A candle of the series came from the service, closed or forming. */
  heard(): void;
  /** Candles that correct or fill in what was told before. */
  revised(candles: readonly Candle[]): void;
  /** null: nothing is known of it, because the connection or the series is a new one. */
  stream(stream: StreamWord | null): void;
  work(work: WorkWord): void;
  /** Why the service does not serve the subscription; null once it does. */
  subscription(trouble: string | null): void;
}

export const PAGE_CANDLES = 1000;
const SUBSCRIBE_AGAIN_MS = 15_000;
const RELOAD_AT_MOST_EVERY_MS = 3_000;
const OLDER_AGAIN_MS = 3_000;
/** What is older than the first candle is asked for again so long after there was nothing. */
const OLDER_NONE_AGAIN_MS = 15_000;
/** Events that change what can be asked for, and are no work in progress. */
const SILENT_EVENTS: ReadonlySet<string> = new Set(["history.extended", "slow"]);
const PASSING_ERRORS: ReadonlySet<string> = new Set(["capacity", "rate_limited", "too_many_subscriptions"]);

export class Feed {
  #connection: Connection = INITIAL;
  #socket: Socket | null = null;
  #cancelTick: () => void = () => undefined;

  #series: Series | null = null;
  #store = new SeriesStore("1m");
  #history: HistoryState = { kind: "none" };
  // Counts loads. An answer to an older one is out of date.
  #load = 0;
  #loadedAt = Number.NEGATIVE_INFINITY;
  #failures = 0;
  #cancelRetry: () => void = () => undefined;
  #cancelSubscribe: () => void = () => undefined;
  #loadingOlder = false;
  // After a failure, when older candles may be asked for again.
  #olderNotBefore = Number.NEGATIVE_INFINITY;
  #olderNoneUntil = Number.NEGATIVE_INFINITY;
  // After a `truncated` gap the next candles do not join the history held: they begin a new one.
  #startsOver = false;

  constructor(
    private readonly ports: Ports,
    private readonly events: FeedEvents,
  ) {}

  start(): void {
    this.#dispatch({ type: "start" });
  }

  /** The network is back, or the reader asks to try now. */
  retry(): void {
    this.#dispatch({ type: "retry" });
    if (this.#history.kind === "unreachable") void this.#loadHistory();
  }

  /** The page is seen again after it was hidden. */
  seen(): void {
    this.#dispatch({ type: "seen" });
  }

  /** Show this series from now on. */
  choose(series: Series): void {
    if (this.#series !== null) this.#send(unsubscribeMessage(this.#series.id));
    this.#failures = 0;
    this.#show(series);
    this.events.stream(null);
    this.events.subscription(null);
    void this.#loadHistory();
  }

  /**
   * Ask for candles older than the first one; does nothing while as many are held as are kept, and seldom does anything
   * when there were none: a service may still be fetching them.
   */
  async loadOlder(): Promise<void> {
    const store = this.#store;
    const { first } = store;
    if (this.#series === null || first === null || store.full) return;
    const notBefore = store.olderExists ? this.#olderNotBefore : this.#olderNoneUntil;
    if (this.#loadingOlder || this.ports.now() < notBefore) return;
    this.#loadingOlder = true;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(`${candlesPath(this.#series)}&before=${first}&limit=${PAGE_CANDLES}`);
    } catch {
      // Not reachable: the connection says so.
    } finally {
      this.#loadingOlder = false;
    }
    if (answer?.status !== 200) {
      this.#olderNotBefore = this.ports.now() + OLDER_AGAIN_MS;
    } else if (store === this.#store && store.first === first) {
      const { candles, gaps } = parseHistory(answer.body);
      const change = store.prepend(candles);
      store.declareGaps(gaps);
      this.events.changed(change);
      if (!store.olderExists) this.#olderNoneUntil = this.ports.now() + OLDER_NONE_AGAIN_MS;
    }
    // Otherwise another series was chosen meanwhile, or its history was replaced.
  }

  #show(series: Series): void {
    this.#series = series;
    this.#store = new SeriesStore(series.timeframe);
    this.#startsOver = false;
    this.events.series(series, this.#store);
  }

  async #loadHistory(): Promise<void> {
    const series = this.#series;
    if (series === null) return;
    this.#cancelRetry();
    this.#cancelSubscribe();
    this.#load += 1;
    this.#loadedAt = this.ports.now();
    const load = this.#load;
    this.#setHistory({ kind: "loading" });
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(`${candlesPath(series)}&limit=${PAGE_CANDLES}`);
    } catch {
      // No answer: said below, unless this load is out of date.
    }
    if (load !== this.#load) return;
    if (answer === null) this.#historyFailed("The service cannot be reached.");
    else this.#takeHistory(series, answer);
  }

  #takeHistory(asked: Series, { status, body }: Answer): void {
    if (status >= 500 || status === 429) {
      this.#historyFailed(parseRefusal(status, body));
      return;
    }
    if (status !== 200) {
      this.#setHistory({ kind: "refused", why: parseRefusal(status, body) });
      return;
    }
    this.#failures = 0;
    const history = parseHistory(body);
    const named = history.series === null ? null : parseSeries(history.series);
    if (named !== null && named.id !== asked.id) this.#show(named);
    this.#startsOver = false;
    const change = this.#store.replace(history.candles);
    this.#store.declareGaps(history.gaps);
    this.#setHistory({ kind: "ready" });
    this.events.changed(change);
    this.#subscribe();
  }

  #historyFailed(why: string): void {
    this.#setHistory({ kind: "unreachable", why });
    this.#cancelRetry = this.ports.after(backoff(this.#failures, this.ports.random()), () => void this.#loadHistory());
    this.#failures += 1;
  }

  #setHistory(history: HistoryState): void {
    this.#history = history;
    this.events.history(history);
  }

  /** What is held belongs to another store than the service's: load it again, at a bounded rate. */
  #reload(): void {
    if (this.#history.kind !== "ready") return;
    const wait = this.#loadedAt + RELOAD_AT_MOST_EVERY_MS - this.ports.now();
    this.#setHistory({ kind: "loading" });
    this.#cancelRetry();
    this.#load += 1;
    if (wait <= 0) void this.#loadHistory();
    else this.#cancelRetry = this.ports.after(wait, () => void this.#loadHistory());
  }

  #subscribe(): void {
    this.#cancelSubscribe();
    if (this.#series === null || this.#history.kind !== "ready") return;
    // 0 counts as the time before the first stored candle, so that nothing is missed of a series that is still empty.
    this.#send(subscribeMessage(this.#series.id, this.#store.lastClosed ?? 0));
  }

  #send(text: string): void {
    const { phase } = this.#connection;
    if (phase === "greeting" || phase === "live") this.#socket?.send(text);
  }

  #dispatch(event: Event): void {
    const before = this.#connection;
    const { state, commands } = step(before, event, this.ports.now(), this.ports.random());
    this.#connection = state;
    for (const command of commands) this.#carryOut(command);
    if (state.deadline !== before.deadline) this.#armTick();
    if (state.phase === before.phase) return;
    // What a lost connection told of the stream is no news any more.
    if (before.phase === "live") this.events.stream(null);
    this.events.connection(state);
  }

  #armTick(): void {
    this.#cancelTick();
    const { deadline } = this.#connection;
    if (deadline === null) return;
    this.#cancelTick = this.ports.after(Math.max(0, deadline - this.ports.now()), () => {
      this.#dispatch({ type: "tick" });
      // A timer may fire a little early; then the deadline still stands.
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
            this.#dispatch({ type: "heard", socket });
            this.#take(parseMessage(text));
          },
          closed: () => this.#dispatch({ type: "closed", socket }),
        });
        break;
      case "close":
        this.#socket?.close();
        break;
      case "greet":
        if (this.#history.kind === "unreachable") void this.#loadHistory();
        else this.#subscribe();
        break;
      case "ping":
        this.#socket?.send(PING_MESSAGE);
        break;
      default:
        command satisfies never;
    }
  }

  #take(message: Message): void {
    if (message.type === "pong" || message.type === "unknown") return;
    // Without its history a series has nothing that live candles could join.
    if (message.series !== null && (message.series !== this.#series?.id || this.#history.kind !== "ready")) return;
    const store = this.#store;
    switch (message.type) {
      case "candles":
        this.events.heard();
        if (message.revised) this.events.revised(message.candles);
        if (this.#startsOver && message.candles.length > 0) {
          this.#startsOver = false;
          this.#changed(store.replace(message.candles));
        } else {
          this.#changed(store.close(message.candles, message.revised));
        }
        break;
      case "forming":
        this.events.heard();
        this.#changed(store.form(message.candle));
        break;
      case "gap":
        if (message.reason === "truncated") this.#startsOver = true;
        else if (message.from !== null) {
          const { from, state } = message;
          store.declareGaps([{ from, to: message.to ?? nextOpen(store.timeframe, from), state }]);
        }
        this.events.changed({ kind: "none" });
        break;
      case "subscribed":
        this.events.subscription(null);
        if (message.stream !== null) this.events.stream({ state: message.stream, detail: null });
        // The service's store ends before what is shown: it is not the store that this history came from.
        if (message.head !== null && store.lastClosed !== null && message.head < store.lastClosed) this.#reload();
        break;
      case "system":
        this.#system(message);
        break;
      case "error":
        this.events.subscription(`The service says: ${message.message} (${message.code})`);
        if (PASSING_ERRORS.has(message.code)) {
          this.#cancelSubscribe();
          this.#cancelSubscribe = this.ports.after(SUBSCRIBE_AGAIN_MS, () => this.#subscribe());
        }
        break;
      default:
        message satisfies never;
    }
  }

  #changed(change: Change): void {
    if (change.kind === "unjoined") {
      this.#reload();
      return;
    }
    this.events.subscription(null);
    this.events.changed(change);
  }

  #system({ event, message, state, detail }: Extract<Message, { type: "system" }>): void {
    if (event === "resync") {
      this.#reload();
      return;
    }
    if (event.startsWith("stream.")) {
      this.events.stream({ state: event.slice("stream.".length), detail: message || detail });
      return;
    }
    if (event === "backfill.progress" || event === "history.extended") {
      // Older candles may be there that were not when the reader last scrolled to the beginning.
      this.#store.olderExists = true;
      this.events.changed({ kind: "none" });
    }
    if (!SILENT_EVENTS.has(event)) this.events.work({ event, text: message, state });
  }
}

function candlesPath(series: Series): string {
  return `/api/market/candles?series_id=${encodeURIComponent(series.id)}`;
}
