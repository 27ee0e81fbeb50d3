// DrawingFeed: the drawings of one series, up to its newest closed candle. It requests a delta when a candle has closed or
// changed, and retries while the service's ledgers lag. Older parts that come into view are requested as pages.

import { backoff } from "./connection.ts";
import { type DrawDelta, parseDrawDelta } from "./drawing.ts";
import { nextPage, OVERLAP_CANDLES, PAGE_CANDLES, type PageQuery, pageOf, type View } from "./drawing-pages.ts";
import { DrawingStore } from "./drawing-store.ts";
import type { Answer, Ports } from "./ports.ts";
import { nextOpen, type Series } from "./series.ts";
import { parseRefusal } from "./wire.ts";

/** The newest candles, which are drawn with a cursor; older ones are drawn by pages when they come into view. */
export const LIVE_WINDOW = 500;
/** Delay of a retry while the ledgers lag, in milliseconds. */
const LAG_RETRY_MS = 1000;

export type DrawingState =
  | { readonly kind: "none" }
  | { readonly kind: "ready" }
  /** The ledgers lag the candles: 409, or drawings that end before the newest closed candle. */
  | { readonly kind: "behind" }
  | { readonly kind: "unreachable" }
  | { readonly kind: "refused"; readonly reason: string };

export interface DrawingEvents {
  /** `store` changed, or was replaced. */
  drawn(): void;
  /** `state` may have changed. */
  state(): void;
}

export class DrawingFeed {
  #events: DrawingEvents | null = null;
  #enabled = false;
  #series: Series | null = null;
  #store = new DrawingStore();
  #view: View | null = null;
  // Newest closed candle that the drawings have to reach.
  #target: number | null = null;
  // The newest candles have to be requested; `#whole`: without a cursor, because the history was loaded again.
  #dirty = false;
  #whole = false;
  #inFlight = false;
  // Counts series: an answer about an earlier one is discarded.
  #load = 0;
  #failures = 0;
  #waiting = false;
  #cancelRetry: () => void = () => undefined;
  #liveState: DrawingState = { kind: "none" };
  // Pages have a backoff of their own: a page that fails does not delay the newest candles.
  #pageWaiting = false;
  #pageFailures = 0;
  #pageBehind = false;
  #cancelPageRetry: () => void = () => undefined;

  constructor(private readonly ports: Pick<Ports, "get" | "after" | "random">) {}

  /** Notifies `events` from now on. */
  bind(events: DrawingEvents): void {
    this.#events = events;
  }

  get store(): DrawingStore {
    return this.#store;
  }

  get state(): DrawingState {
    return this.#pageBehind && this.#liveState.kind === "ready" ? { kind: "behind" } : this.#liveState;
  }

  /** The service has drawings: its catalogue is loaded. Before, nothing is requested. */
  enable(): void {
    this.#enabled = true;
    this.#request();
  }

  /** Draws this series from now on, starting with an empty store; null: none. */
  follow(series: Series | null): void {
    this.#load += 1;
    this.#series = series;
    this.#inFlight = false;
    this.#failures = 0;
    this.#view = null;
    this.#target = null;
    this.#dirty = false;
    this.#whole = false;
    this.#stopWaiting();
    this.#store = new DrawingStore();
    this.#events?.drawn();
    this.#setLiveState({ kind: "none" });
  }

  /** The candles were loaded again: every drawing may have changed. The old ones stay until the answer comes. */
  reload(): void {
    this.#whole = true;
    this.#store.dropPages();
    if (this.#target === null) return;
    this.#dirty = true;
    this.#request();
  }

  /** The newest closed candle is at `lastClosed`. `revised`: earlier candles changed, and so may drawings. */
  candles(lastClosed: number | null, revised: boolean): void {
    if (lastClosed === null) return;
    if (!revised && lastClosed === this.#target) return;
    this.#target = lastClosed;
    this.#dirty = true;
    this.#request();
  }

  /** This part of the candles is in view. */
  view(view: View): void {
    this.#view = view;
    this.#request();
  }

  /** Requests the newest candles first, then older parts of the view, one at a time. */
  #request(): void {
    const series = this.#series;
    if (!this.#enabled || series === null || this.#inFlight || this.#waiting) return;
    if (this.#dirty) {
      this.#dirty = false;
      const whole = this.#whole || this.#store.cursor === null;
      this.#whole = false;
      void this.#requestLive(series, whole);
      return;
    }
    if (this.#pageWaiting) return;
    const page = this.#nextPage(series);
    if (page !== null) void this.#requestPage(series, page);
    else if (this.#pageBehind) this.#setPageBehind(false); // the page that lags is out of view
  }

  async #requestLive(series: Series, whole: boolean): Promise<void> {
    const target = this.#target;
    const load = this.#load;
    const answer = await this.#get(this.#path(series, whole));
    if (load !== this.#load) return;
    this.#take(answer, whole, target);
    this.#request();
  }

  async #requestPage(series: Series, page: PageQuery): Promise<void> {
    const load = this.#load;
    const window = PAGE_CANDLES + OVERLAP_CANDLES;
    const id = encodeURIComponent(series.id);
    const answer = await this.#get(`/api/draw/delta?series_id=${id}&window_candles=${window}&at_time=${page.at}`);
    if (load !== this.#load) return;
    this.#takePage(answer, page);
    this.#request();
  }

  /** null without an answer. */
  async #get(path: string): Promise<Answer | null> {
    const load = this.#load;
    this.#inFlight = true;
    try {
      return await this.ports.get(path);
    } catch {
      return null; // retried, unless another series is shown by now
    } finally {
      if (load === this.#load) this.#inFlight = false;
    }
  }

  #nextPage({ timeframe }: Series): PageQuery | null {
    const { to, from, pages } = this.#store;
    if (this.#view === null || to === null || this.#liveState.kind !== "ready") return null;
    return nextPage(this.#view, pages, secondsOf(timeframe), from, to);
  }

  #path(series: Series, whole: boolean): string {
    const path = `/api/draw/delta?series_id=${encodeURIComponent(series.id)}&window_candles=${LIVE_WINDOW}`;
    const position = whole ? null : this.#store.cursor;
    if (position === null) return path;
    const { cursor, epoch } = position;
    const query = `${path}&cursor_version_id=${cursor.versionId}&cursor_point_time=${cursor.pointTime}`;
    return epoch === null ? query : `${query}&epoch=${epoch}`;
  }

  /** `target`: the newest closed candle at the time of the request. */
  #take(answer: Answer | null, whole: boolean, target: number | null): void {
    const delta = this.#deltaOf(answer, whole);
    if (delta === null) {
      // A refused request is repeated with the next candle.
      this.#whole ||= whole;
      return;
    }
    const step = secondsOf(this.#series?.timeframe ?? "1m");
    this.#store.take(delta, whole, (delta.to ?? 0) - (LIVE_WINDOW - 1) * step);
    this.#events?.drawn();
    const behind = target !== null && (delta.to ?? Number.NEGATIVE_INFINITY) < target;
    if (behind) this.#retry(false, LAG_RETRY_MS);
    this.#setLiveState({ kind: behind ? "behind" : "ready" });
  }

  #takePage(answer: Answer | null, page: PageQuery): void {
    const delta = answer?.status === 200 ? parseDrawDelta(answer.body) : null;
    if (delta === null) {
      const lags = answer?.status === 409;
      this.#retryPage(lags ? LAG_RETRY_MS : backoff(this.#pageFailures, this.ports.random()));
      this.#pageFailures += 1;
      if (lags) this.#setPageBehind(true);
    } else if (delta.epoch !== this.#store.epoch) {
      // The ledger was rewound between two answers: the live drawings first, then this page again.
      this.#retryPage(LAG_RETRY_MS);
      this.#dirty = true;
    } else if (this.#view !== null) {
      this.#pageFailures = 0;
      this.#store.takePage(pageOf(page, delta), this.#view);
      this.#events?.drawn();
      this.#setPageBehind(false);
    }
  }

  #retryPage(ms: number): void {
    this.#pageWaiting = true;
    this.#cancelPageRetry = this.ports.after(ms, () => {
      this.#pageWaiting = false;
      this.#request();
    });
  }

  /** The delta; null, after scheduling a retry where one helps, for any other answer. */
  #deltaOf(answer: Answer | null, whole: boolean): DrawDelta | null {
    if (answer === null || answer.status >= 500 || answer.status === 429) {
      this.#retry(whole, backoff(this.#failures, this.ports.random()));
      this.#failures += 1;
      this.#setLiveState({ kind: "unreachable" });
      return null;
    }
    this.#failures = 0;
    if (answer.status === 409) {
      this.#retry(whole, LAG_RETRY_MS);
      this.#setLiveState({ kind: "behind" });
      return null;
    }
    const delta = answer.status === 200 ? parseDrawDelta(answer.body) : null;
    if (delta === null) this.#setLiveState({ kind: "refused", reason: parseRefusal(answer.status, answer.body) });
    return delta;
  }

  #setLiveState(state: DrawingState): void {
    this.#liveState = state;
    this.#events?.state();
  }

  #setPageBehind(behind: boolean): void {
    this.#pageBehind = behind;
    this.#events?.state();
  }

  #retry(whole: boolean, ms: number): void {
    this.#dirty = true;
    this.#whole ||= whole;
    this.#waiting = true;
    this.#cancelRetry = this.ports.after(ms, () => {
      this.#waiting = false;
      this.#request();
    });
  }

  #stopWaiting(): void {
    this.#cancelRetry();
    this.#cancelPageRetry();
    this.#waiting = false;
    this.#pageWaiting = false;
    this.#pageFailures = 0;
    this.#pageBehind = false;
  }
}

/** Seconds of a candle; of a calendar month, those of January. */
function secondsOf(timeframe: string): number {
  return nextOpen(timeframe, 0);
}
