// DrawingFeed: keeps the drawings of one series at its newest closed candle. It asks for a delta when a candle has
// closed or changed, again while the service's ledgers catch up, and for everything when a larger window is shown.

import { backoff } from "./connection.ts";
import { parseDrawDelta } from "./drawing.ts";
import { DrawingStore } from "./drawing-store.ts";
import type { Answer, Ports } from "./feed.ts";
import type { Series } from "./series.ts";
import { parseRefusal } from "./wire.ts";

/** Windows grow by steps of this many candles, so that a longer history is not asked for with every candle. */
const WINDOW_STEP = 1000;
/** The most candles that the service draws at once. */
export const WINDOW_MAX = 5000;
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
  #window = 0;
  #wanted: number | null = null;
  #dirty = false;
  // Everything is to be asked for: the window has become larger, or the history was loaded anew.
  #whole = false;
  #asking = false;
  // Counts series; an answer about an earlier one is out of date.
  #load = 0;
  #failures = 0;
  #waiting = false;
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
    this.#window = 0;
    this.#wanted = null;
    this.#dirty = false;
    this.#stopWaiting();
    this.#startOver();
    this.events.state({ kind: "none" });
  }

  /** The candles were loaded anew: nothing that is held need still hold. What is drawn stays until the answer comes. */
  reload(): void {
    this.#whole = true;
    if (this.#wanted === null) return;
    this.#dirty = true;
    this.#ask();
  }

  /**
   * `count` closed candles are shown, the newest at `lastClosed`. `revised`: one that was shown already has changed,
   * so that drawings may have, too.
   */
  candles(count: number, lastClosed: number | null, revised: boolean): void {
    if (lastClosed === null) return;
    const window = Math.min(WINDOW_MAX, (Math.floor(count / WINDOW_STEP) + 1) * WINDOW_STEP);
    const larger = window > this.#window;
    if (!larger && !revised && lastClosed === this.#wanted) return;
    this.#window = Math.max(window, this.#window);
    this.#wanted = lastClosed;
    this.#dirty = true;
    this.#whole ||= larger;
    this.#ask();
  }

  #ask(): void {
    const series = this.#series;
    if (!this.#enabled || series === null || !this.#dirty || this.#asking || this.#waiting) return;
    this.#asking = true;
    this.#dirty = false;
    const whole = this.#whole || this.#store.cursor === null;
    this.#whole = false;
    void this.#get(series, whole);
  }

  async #get(series: Series, whole: boolean): Promise<void> {
    const load = this.#load;
    const wanted = this.#wanted;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(this.#path(series, whole));
    } catch {
      // No answer: asked again below, unless another series is shown by now.
    }
    if (load !== this.#load) return;
    this.#asking = false;
    this.#take(answer, whole, wanted);
    this.#ask();
  }

  #path(series: Series, whole: boolean): string {
    const path = `/api/draw/delta?series_id=${encodeURIComponent(series.id)}&window_candles=${this.#window}`;
    const held = whole ? null : this.#store.cursor;
    if (held === null) return path;
    const { cursor, epoch } = held;
    const known = `${path}&cursor_version_id=${cursor.versionId}&cursor_point_time=${cursor.pointTime}`;
    return epoch === null ? known : `${known}&epoch=${epoch}`;
  }

  /** `wanted` is the newest candle that was shown when it was asked. */
  #take(answer: Answer | null, whole: boolean, wanted: number | null): void {
    if (answer === null || answer.status >= 500 || answer.status === 429) {
      this.#again(whole, backoff(this.#failures, this.ports.random()));
      this.#failures += 1;
      this.events.state({ kind: "unreachable" });
      return;
    }
    this.#failures = 0;
    if (answer.status === 409) {
      this.#again(whole, BEHIND_AGAIN_MS);
      this.events.state({ kind: "behind" });
      return;
    }
    const delta = answer.status === 200 ? parseDrawDelta(answer.body) : null;
    if (delta === null) {
      // Asked again with the next candle.
      this.#whole ||= whole;
      this.events.state({ kind: "refused", why: parseRefusal(answer.status, answer.body) });
      return;
    }
    this.#store.take(delta, whole);
    this.events.drawn(this.#store);
    const behind = wanted !== null && (delta.to ?? Number.NEGATIVE_INFINITY) < wanted;
    if (behind) this.#again(false, BEHIND_AGAIN_MS);
    this.events.state({ kind: behind ? "behind" : "ready" });
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
    this.#waiting = false;
  }

  #startOver(): void {
    this.#whole = false;
    this.#store = new DrawingStore();
    this.events.drawn(this.#store);
  }
}
