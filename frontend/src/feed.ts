// Feed: one series on one connection. It carries out what the connection machine decides, joins history to live
// through the store, and tells the page what changed. Everything outside reaches it through `Ports`.

import { backoff, type Command, type Connection, type Event, INITIAL, step } from "./connection.ts";
import { parseSeries, type Series } from "./series.ts";
import { type Change, SeriesStore } from "./store.ts";
import {
  parseHistory,
  parseMessage,
  parseRefusal,
  PING_MESSAGE,
  type ServerMessage,
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
  /** Rejects when the service cannot be reached or its answer cannot be read. */
  get(path: string): Promise<Answer>;
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

/** Something worth a sentence. `key` names its place: a newer notice of the same key replaces the older. */
export interface Notice {
  readonly key: "stream" | "subscription" | "progress";
  readonly text: string | null;
}

export interface FeedEvents {
  connection(connection: Connection): void;
  /** A new series is shown, under the name that the service gives it. */
  series(series: Series, store: SeriesStore): void;
  history(state: HistoryState): void;
  changed(change: Change): void;
  notice(notice: Notice): void;
}

export const PAGE_CANDLES = 1000;
const SUBSCRIBE_AGAIN_MS = 15_000;
const RELOAD_AT_MOST_EVERY_MS = 3_000;
const OLDER_AGAIN_MS = 3_000;
/** What is older than the first candle is asked for again so long after there was nothing. */
const OLDER_NONE_AGAIN_MS = 15_000;
const PASSING_ERRORS: ReadonlySet<string> = new Set(["capacity", "rate_limited", "too_many_subscriptions"]);
const STREAM_TROUBLE: Readonly<Record<string, string>> = {
  stale: "The exchange's stream of this series is silent.",
  rest_fallback: "The exchange's stream is silent; candles come over REST for now.",
  reconnecting: "The service is reconnecting to the exchange.",
  delisted: "This symbol is no longer traded.",
};

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
    this.events.notice({ key: "stream", text: null });
    this.events.notice({ key: "subscription", text: null });
    this.events.notice({ key: "progress", text: null });
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
      this.events.changed(store.prepend(parseHistory(answer.body).candles));
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
    if (state.phase !== before.phase) this.events.connection(state);
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

  #take(message: ServerMessage): void {
    if (message.type === "pong" || message.type === "unknown") return;
    // Without its history a series has nothing that live candles could join.
    if (message.series !== null && (message.series !== this.#series?.id || this.#history.kind !== "ready")) return;
    const store = this.#store;
    switch (message.type) {
      case "candles":
        if (this.#startsOver && message.candles.length > 0) {
          this.#startsOver = false;
          this.#changed(store.replace(message.candles));
        } else {
          this.#changed(store.close(message.candles, message.revised));
        }
        break;
      case "forming":
        this.#changed(store.form(message.candle));
        break;
      case "gap":
        if (message.reason === "truncated") this.#startsOver = true;
        else if (message.from !== null) store.declareGap(message.from, message.state);
        this.events.changed({ kind: "none" });
        break;
      case "subscribed":
        this.#streamState(message.stream);
        // The service's store ends before what is shown: it is not the store that this history came from.
        if (message.head !== null && store.lastClosed !== null && message.head < store.lastClosed) this.#reload();
        break;
      case "system":
        this.#system(message.event, message.state === "succeeded" ? "" : message.message);
        break;
      case "error":
        this.events.notice({ key: "subscription", text: `The service says: ${message.message} (${message.code})` });
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
    this.events.notice({ key: "subscription", text: null });
    this.events.changed(change);
  }

  #streamState(state: string | null): void {
    this.events.notice({ key: "stream", text: (state === null ? undefined : STREAM_TROUBLE[state]) ?? null });
  }

  #system(event: string, message: string): void {
    if (event === "resync") {
      this.#reload();
    } else if (event.startsWith("stream.")) {
      const state = event.slice("stream.".length);
      this.events.notice({ key: "stream", text: state === "live" ? null : message || (STREAM_TROUBLE[state] ?? null) });
    } else if (event === "backfill.progress") {
      // Older candles may be there that were not when the reader last scrolled to the beginning.
      this.#store.olderExists = true;
      this.events.notice({ key: "progress", text: message || null });
      this.events.changed({ kind: "none" });
    } else {
      this.events.notice({ key: "progress", text: message || null });
    }
  }
}

function candlesPath(series: Series): string {
  return `/api/market/candles?series_id=${encodeURIComponent(series.id)}`;
}
