// SeriesHistory: the shown series and its live store. It loads the newest candles, older ones when the reader scrolls
// back, and everything again when the store contradicts the service's. The feed adds live candles.

import { backoff } from "./connection.ts";
import type { Answer, Ports } from "./ports.ts";
import { parseSeries, type Series } from "./series.ts";
import { type Change, SeriesStore } from "./store.ts";
import { historyPath, parseHistory, parseRefusal } from "./wire.ts";

export type HistoryState =
  | { readonly kind: "none" }
  | { readonly kind: "loading" }
  | { readonly kind: "ready" }
  /** The service cannot answer at present; the load is retried. */
  | { readonly kind: "unreachable"; readonly reason: string }
  /** The service refuses the series. */
  | { readonly kind: "refused"; readonly reason: string };

export interface HistoryEvents {
  /** Another series is shown, or none: `series` and `live` are new. */
  series(): void;
  state(): void;
  changed(change: Change): void;
  /** The newest candles were loaded: live candles can join them. */
  loaded(): void;
}

/** Least time between two reloads, in milliseconds. */
const RELOAD_INTERVAL_MS = 3_000;
/** Delay before older candles are requested again after a failure, and after an empty answer, in milliseconds. */
const OLDER_RETRY_MS = 3_000;
const OLDER_EMPTY_RETRY_MS = 15_000;

/** Requests for older candles of one store. Times are in milliseconds of the page's clock. */
interface OlderRequests {
  inFlight: boolean;
  notBefore: number;
  notBeforeIfEmpty: number;
}

export class SeriesHistory {
  #series: Series | null = null;
  #live = new SeriesStore("1m");
  #state: HistoryState = { kind: "none" };
  // Counts loads: an answer to an earlier one is discarded.
  #load = 0;
  #loadedAt = Number.NEGATIVE_INFINITY;
  #failures = 0;
  #cancelRetry: () => void = () => undefined;
  #older = noOlderRequests();

  constructor(
    private readonly ports: Pick<Ports, "get" | "now" | "after" | "random">,
    private readonly events: HistoryEvents,
  ) {}

  /** The shown series, under the name that the service gives it; null for none. */
  get series(): Series | null {
    return this.#series;
  }

  /** The newest candles of the series. */
  get live(): SeriesStore {
    return this.#live;
  }

  get state(): HistoryState {
    return this.#state;
  }

  /** Shows this series from now on; null: none. */
  choose(series: Series | null): void {
    this.#failures = 0;
    this.#show(series);
    void this.#loadNewest();
  }

  /** Loads now if the last load failed; whether it did. */
  retry(): boolean {
    if (this.#state.kind !== "unreachable") return false;
    void this.#loadNewest();
    return true;
  }

  /** The store contradicts the service's: loads everything again, at a bounded rate. */
  reload(): void {
    if (this.#state.kind !== "ready") return;
    const delay = this.#loadedAt + RELOAD_INTERVAL_MS - this.ports.now();
    this.#setState({ kind: "loading" });
    this.#cancelRetry();
    this.#load += 1;
    if (delay <= 0) void this.#loadNewest();
    else this.#cancelRetry = this.ports.after(delay, () => void this.#loadNewest());
  }

  /**
   * Requests candles older than the first one. Does nothing while the store is full, a request is in flight, or the
   * last answer was empty a moment ago: a service may still be fetching them.
   */
  async loadOlder(): Promise<void> {
    const store = this.#live;
    const older = this.#older;
    const { first } = store;
    if (this.#series === null || first === null || store.full) return;
    const notBefore = store.olderExists ? older.notBefore : older.notBeforeIfEmpty;
    if (older.inFlight || this.ports.now() < notBefore) return;
    older.inFlight = true;
    const answer = await this.#get(historyPath(this.#series, { before: first }));
    older.inFlight = false;
    if (answer?.status !== 200) {
      older.notBefore = this.ports.now() + OLDER_RETRY_MS;
    } else if (store === this.#live && store.first === first) {
      const { candles, gaps } = parseHistory(answer.body);
      const change = store.prepend(candles);
      store.declareGaps(gaps);
      this.events.changed(change);
      if (!store.olderExists) older.notBeforeIfEmpty = this.ports.now() + OLDER_EMPTY_RETRY_MS;
    }
    // Otherwise another series was chosen meanwhile, or the history was replaced.
  }

  #show(series: Series | null): void {
    this.#series = series;
    this.#live = new SeriesStore(series?.timeframe ?? "1m");
    this.#older = noOlderRequests();
    this.events.series();
  }

  async #loadNewest(): Promise<void> {
    const series = this.#series;
    this.#cancelRetry();
    this.#load += 1;
    this.#loadedAt = this.ports.now();
    const load = this.#load;
    this.#setState({ kind: series === null ? "none" : "loading" });
    if (series === null) return;
    const answer = await this.#get(historyPath(series));
    if (load !== this.#load) return;
    if (answer === null) this.#failed("The service cannot be reached.");
    else this.#take(series, answer);
  }

  #take(requested: Series, { status, body }: Answer): void {
    if (status >= 500 || status === 429) {
      this.#failed(parseRefusal(status, body));
      return;
    }
    if (status !== 200) {
      this.#setState({ kind: "refused", reason: parseRefusal(status, body) });
      return;
    }
    this.#failures = 0;
    const history = parseHistory(body);
    const named = history.series === null ? null : parseSeries(history.series);
    if (named !== null && named.id !== requested.id) this.#show(named);
    const change = this.#live.replace(history.candles);
    this.#live.declareGaps(history.gaps);
    this.#setState({ kind: "ready" });
    this.events.changed(change);
    this.events.loaded();
  }

  #failed(reason: string): void {
    this.#setState({ kind: "unreachable", reason });
    this.#cancelRetry = this.ports.after(backoff(this.#failures, this.ports.random()), () => void this.#loadNewest());
    this.#failures += 1;
  }

  #setState(state: HistoryState): void {
    this.#state = state;
    this.events.state();
  }

  /** null without an answer: the lamp shows that the service is unreachable. */
  async #get(path: string): Promise<Answer | null> {
    try {
      return await this.ports.get(path);
    } catch {
      return null;
    }
  }
}

function noOlderRequests(): OlderRequests {
  return { inFlight: false, notBefore: Number.NEGATIVE_INFINITY, notBeforeIfEmpty: Number.NEGATIVE_INFINITY };
}
