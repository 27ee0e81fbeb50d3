// DrawingStore: the drawings and indicator values of one series: the newest candles', as the deltas applied so far make
// them, and pages of older ones.

import type { Cursor, Definition, DrawDelta, Point } from "./drawing.ts";
import { type DrawingPage, joinPoints, keepPages, type View } from "./drawing-pages.ts";

/** Live points kept of an indicator, beyond the window asked for; then the oldest go. */
export const MAX_POINTS = 3000;

interface Joined {
  readonly generation: number;
  readonly live: number;
  readonly newest: number | undefined;
  readonly points: readonly Point[];
}

export class DrawingStore {
  #epoch: number | null = null;
  #cursor: Cursor | null = null;
  #to: number | null = null;
  #from = Number.POSITIVE_INFINITY;
  #catalogue = new Map<string, Definition>();
  #active: readonly string[] = [];
  readonly #points = new Map<string, Point[]>();
  #pages: ReadonlyMap<number, DrawingPage> = new Map();
  #generation = 0;
  readonly #joined = new Map<string, Joined>();

  /** What to ask with; null: for everything. */
  get cursor(): { readonly cursor: Cursor; readonly epoch: number | null } | null {
    return this.#cursor === null ? null : { cursor: this.#cursor, epoch: this.#epoch };
  }

  get epoch(): number | null {
    return this.#epoch;
  }

  /** The newest candle that the drawings know. */
  get to(): number | null {
    return this.#to;
  }

  /** The live drawings begin here; pages are what is older. */
  get from(): number {
    return this.#from;
  }

  /** Older parts, by their start, in time order. */
  get pages(): ReadonlyMap<number, DrawingPage> {
    return this.#pages;
  }

  /** Counts how often points were anything but added at the end. */
  get generation(): number {
    return this.#generation;
  }

  /** What is to be shown: older parts first, in the service's order. A newer part's word on a drawing counts. */
  get drawings(): Definition[] {
    const shown = new Map<string, Definition>();
    for (const page of this.#pages.values()) {
      for (const { id, definition } of page.drawings) {
        const composed = shown.has(id) && definition.feature === id;
        shown.set(composed ? `${id} ${page.start}` : id, definition);
      }
    }
    for (const id of this.#active) {
      const definition = this.#catalogue.get(id);
      // A line over a whole window is told in pieces: the live one does not replace those of the pages.
      if (definition !== undefined) shown.set(definition.feature === id ? `${id} live` : id, definition);
    }
    return [...shown.values()];
  }

  /** The indicators that have been named, in the service's order. */
  get names(): string[] {
    return [...this.#points.keys()];
  }

  /** The values of an indicator, oldest first. */
  pointsOf(name: string): readonly Point[] {
    const live = this.#points.get(name) ?? [];
    if (this.#pages.size === 0) return live;
    const held = this.#joined.get(name);
    const newest = live.at(-1)?.time;
    if (held?.generation === this.#generation && held.live === live.length && held.newest === newest) return held.points;
    const points = joinPoints(this.#pages.values(), name, live, this.#from);
    this.#joined.set(name, { generation: this.#generation, live: live.length, newest, points });
    return points;
  }

  /**
   * Apply a delta of the newest candles, those from `from` on. `whole`: it answers a question without a cursor, so that
   * nothing held before counts.
   */
  take(delta: DrawDelta, whole: boolean, from: number): void {
    if (delta.epoch !== this.#epoch && this.#pages.size > 0) this.#setPages(new Map());
    if (whole || delta.epoch !== this.#epoch) this.#forget();
    for (const { id, definition } of delta.patch) this.#catalogue.set(id, definition);
    this.#active = delta.active;
    // A window only moves on: what it does not show any more does not come back.
    const shown = new Set(delta.active);
    for (const id of this.#catalogue.keys()) if (!shown.has(id)) this.#catalogue.delete(id);
    for (const [name, points] of delta.points) this.#append(name, points);
    this.#epoch = delta.epoch;
    this.#cursor = delta.cursor;
    this.#to = delta.to;
    this.#from = from;
  }

  /** Take a page, in place of the one that began there; those far from the view make room. */
  takePage(page: DrawingPage, view: View): void {
    this.#setPages(keepPages(new Map([...this.#pages, [page.start, page]]), view));
  }

  /** The candles were loaded anew: older parts are asked for again. */
  dropPages(): void {
    if (this.#pages.size > 0) this.#setPages(new Map());
  }

  #setPages(pages: ReadonlyMap<number, DrawingPage>): void {
    this.#pages = pages;
    this.#joined.clear();
    this.#generation += 1;
  }

  #append(name: string, points: readonly Point[]): void {
    const held = this.#points.get(name) ?? [];
    let newest = held.at(-1)?.time ?? Number.NEGATIVE_INFINITY;
    for (const point of points) {
      if (point.time <= newest) continue;
      held.push(point);
      newest = point.time;
    }
    if (held.length > MAX_POINTS) {
      held.splice(0, held.length - Math.floor(MAX_POINTS * 0.9));
      this.#generation += 1;
    }
    this.#points.set(name, held);
  }

  #forget(): void {
    this.#catalogue.clear();
    this.#points.clear();
    this.#joined.clear();
    this.#generation += 1;
  }
}
