// DrawingFeed: keeps the drawings of one series at its newest closed candle: it asks for a delta when a candle has closed
// or changed, and again while the service's ledgers catch up. Older parts that come into view are asked for as pages.

import { backoff } from "./connection.ts";
import { type DrawDelta, parseDrawDelta } from "./drawing.ts";
import { nextPage, OVERLAP_CANDLES, PAGE_CANDLES, type PageQuery, pageOf, type View } from "./drawing-pages.ts";
import { DrawingStore } from "./drawing-store.ts";
import type { Answer, Ports } from "./feed.ts";
import { nextOpen, type Series } from "./series.ts";
import { parseRefusal } from "./wire.ts";

/** The newest candles that are drawn with a cursor; what is older is drawn by pages when it comes into view. */
export const LIVE_WINDOW = 500;
/** Between two questions while the ledgers catch up. */
const BEHIND_AGAIN_MS = 1000;

export type DrawingState =
  | { readonly kind: "none" }
  | { readonly kind: "ready" }
  /** The ledgers lag the candles: 409, or drawings that end before the newest closed candle. */
  | { readonly kind: "behind" }
  | { readonly kind: "unreachable" }
  | { readonly kind: "refused"; readonly why: string };

export interface DrawingEvents {
  /** There is something else to draw. */
  drawn(store: DrawingStore): void;
  state(state: DrawingState): void;
}

export class DrawingFeed {
  #enabled = false;
  #series: Series | null = null;
  #store = new DrawingStore();
  #view: View | null = null;
  #wanted: number | null = null;
  #dirty = false;
  // Everything is to be asked for: the history was loaded anew.
  #whole = false;
  #asking = false;
  // Counts series; an answer about an earlier one is out of date.
  #load = 0;
  #failures = 0;
  #waiting = false;
  #state: DrawingState["kind"] = "none";
  // The waits of pages are their own: a page that fails does not keep the newest candles waiting.
  #pageWaiting = false;
  #pageFailures = 0;
  #cancelPageAgain: () => void = () => undefined;
  #cancelAgain: () => void = () => undefined;

  constructor(
    private readonly ports: Pick<Ports, "get" | "after" | "random">,
    private readonly events: DrawingEvents,
  ) {}

  /** The service has drawings: its catalogue was told. Until then nothing is asked. */
  enable(): void {
    this.#enabled = true;
    this.#ask();
  }

  /** Draw this series from now on; nothing is known of it yet. */
  follow(series: Series): void {
    this.#load += 1;
    this.#series = series;
    this.#asking = false;
    this.#failures = 0;
    this.#view = null;
    this.#wanted = null;
    this.#dirty = false;
    this.#stopWaiting();
    this.#startOver();
    this.#setState({ kind: "none" });
  }

  /** The candles were loaded anew: nothing that is held need still hold. What is drawn stays until the answer comes. */
  reload(): void {
    this.#whole = true;
    this.#store.dropPages();
    if (this.#wanted === null) return;
    this.#dirty = true;
    this.#ask();
  }

  /** The newest closed candle is at `lastClosed`. `revised`: one that was shown already has changed, so drawings may have, too. */
  candles(lastClosed: number | null, revised: boolean): void {
    if (lastClosed === null) return;
    if (!revised && lastClosed === this.#wanted) return;
    this.#wanted = lastClosed;
    this.#dirty = true;
    this.#ask();
  }

  /** This part of the candles is in view. */
  view(view: View): void {
    this.#view = view;
    this.#ask();
  }

  /** One question at a time: the newest candles first, then older parts of the view. */
  #ask(): void {
    const series = this.#series;
    if (!this.#enabled || series === null || this.#asking || this.#waiting) return;
    if (this.#dirty) {
      this.#dirty = false;
      const whole = this.#whole || this.#store.cursor === null;
      this.#whole = false;
      void this.#askLive(series, whole);
      return;
    }
    const page = this.#pageWaiting ? null : this.#pageWanted(series);
    if (page !== null) void this.#askPage(series, page);
  }

  async #askLive(series: Series, whole: boolean): Promise<void> {
    const wanted = this.#wanted;
    const load = this.#load;
    const answer = await this.#get(this.#path(series, whole));
    if (load !== this.#load) return;
    this.#take(answer, whole, wanted);
    this.#ask();
  }

  async #askPage(series: Series, page: PageQuery): Promise<void> {
    const load = this.#load;
    const window = PAGE_CANDLES + OVERLAP_CANDLES;
    const id = encodeURIComponent(series.id);
    const answer = await this.#get(`/api/draw/delta?series_id=${id}&window_candles=${window}&at_time=${page.at}`);
    if (load !== this.#load) return;
    this.#takePage(answer, page);
    this.#ask();
  }

  /** null without an answer. */
  async #get(path: string): Promise<Answer | null> {
    const load = this.#load;
    this.#asking = true;
    try {
      return await this.ports.get(path);
    } catch {
      return null; // asked again, unless another series is shown by now
    } finally {
      if (load === this.#load) this.#asking = false;
    }
  }

  #pageWanted({ timeframe }: Series): PageQuery | null {
    const { to, from, pages } = this.#store;
    if (this.#view === null || to === null || this.#state !== "ready") return null;
    return nextPage(this.#view, pages, stepOf(timeframe), from, to);
  }

  #path(series: Series, whole: boolean): string {
    const path = `/api/draw/delta?series_id=${encodeURIComponent(series.id)}&window_candles=${LIVE_WINDOW}`;
    const held = whole ? null : this.#store.cursor;
    if (held === null) return path;
    const { cursor, epoch } = held;
    const known = `${path}&cursor_version_id=${cursor.versionId}&cursor_point_time=${cursor.pointTime}`;
    return epoch === null ? known : `${known}&epoch=${epoch}`;
  }

  /** `wanted` is the newest candle that was shown when it was asked. */
  #take(answer: Answer | null, whole: boolean, wanted: number | null): void {
    const delta = this.#deltaOf(answer, whole);
    if (delta === null) {
      // Refused: asked again with the next candle.
      this.#whole ||= whole;
      return;
    }
    const step = stepOf(this.#series?.timeframe ?? "1m");
    this.#store.take(delta, whole, (delta.to ?? 0) - (LIVE_WINDOW - 1) * step);
    this.events.drawn(this.#store);
    const behind = wanted !== null && (delta.to ?? Number.NEGATIVE_INFINITY) < wanted;
    if (behind) this.#again(false, BEHIND_AGAIN_MS);
    this.#setState({ kind: behind ? "behind" : "ready" });
  }

  #takePage(answer: Answer | null, page: PageQuery): void {
    const delta = answer?.status === 200 ? parseDrawDelta(answer.body) : null;
    if (delta === null) {
      this.#pageAgain(answer?.status === 409 ? BEHIND_AGAIN_MS : backoff(this.#pageFailures, this.ports.random()));
      this.#pageFailures += 1;
      if (answer?.status === 409) this.events.state({ kind: "behind" });
    } else if (delta.epoch !== this.#store.epoch) {
      // The ledger was rewound between two answers: the live drawings first, and this page again.
      this.#pageAgain(BEHIND_AGAIN_MS);
      this.#dirty = true;
    } else if (this.#view !== null) {
      this.#pageFailures = 0;
      this.#store.takePage(pageOf(page, delta), this.#view);
      this.events.drawn(this.#store);
      this.events.state({ kind: this.#state === "ready" ? "ready" : "behind" });
    }
  }

  #pageAgain(ms: number): void {
    this.#pageWaiting = true;
    this.#cancelPageAgain = this.ports.after(ms, () => {
      this.#pageWaiting = false;
      this.#ask();
    });
  }

  /** null, and what is to be done about it, when the answer is no delta. */
  #deltaOf(answer: Answer | null, whole: boolean): DrawDelta | null {
    if (answer === null || answer.status >= 500 || answer.status === 429) {
      this.#again(whole, backoff(this.#failures, this.ports.random()));
      this.#failures += 1;
      this.#setState({ kind: "unreachable" });
      return null;
    }
    this.#failures = 0;
    if (answer.status === 409) {
      this.#again(whole, BEHIND_AGAIN_MS);
      this.#setState({ kind: "behind" });
      return null;
    }
    const delta = answer.status === 200 ? parseDrawDelta(answer.body) : null;
    if (delta === null) this.#setState({ kind: "refused", why: parseRefusal(answer.status, answer.body) });
    return delta;
  }

  #setState(state: DrawingState): void {
    this.#state = state.kind;
    this.events.state(state);
  }

  #again(whole: boolean, ms: number): void {
    this.#dirty = true;
    this.#whole ||= whole;
    this.#waiting = true;
    this.#cancelAgain = this.ports.after(ms, () => {
      this.#waiting = false;
      this.#ask();
    });
  }

  #stopWaiting(): void {
    this.#cancelAgain();
    this.#cancelPageAgain();
    this.#waiting = false;
    this.#pageWaiting = false;
    this.#pageFailures = 0;
  }

  #startOver(): void {
    this.#whole = false;
    this.#store = new DrawingStore();
    this.events.drawn(this.#store);
  }
}

/** Seconds of a candle; of a calendar month, of the longest. */
function stepOf(timeframe: string): number {
  return nextOpen(timeframe, 0);
}
