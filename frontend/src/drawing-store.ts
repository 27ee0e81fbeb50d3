// DrawingStore: the drawings and indicator values of one series: those of the newest candles, from the applied deltas, and
// pages of older ones.

import type { Cursor, Definition, DrawDelta, Point } from "./drawing.ts";
import { type DrawingPage, joinPoints, keepPages, type View } from "./drawing-pages.ts";

/** Most live points of an indicator; beyond it the oldest tenth is dropped. More than the live window has. */
export const MAX_POINTS = 3000;

/** Points of an indicator, joined from pages and the live part, and what they were joined from. */
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

  /** Position to request a delta with; null: everything has to be requested. */
  get cursor(): { readonly cursor: Cursor; readonly epoch: number | null } | null {
    return this.#cursor === null ? null : { cursor: this.#cursor, epoch: this.#epoch };
  }

  get epoch(): number | null {
    return this.#epoch;
  }

  /** Open time of the newest candle that the drawings cover. */
  get to(): number | null {
    return this.#to;
  }

  /** Open time at which the live drawings begin; pages hold what is older. */
  get from(): number {
    return this.#from;
  }

  /** Pages of older parts by their start, in time order. */
  get pages(): ReadonlyMap<number, DrawingPage> {
    return this.#pages;
  }

  /** Counts changes of points other than appending. */
  get generation(): number {
    return this.#generation;
  }

  /** The drawings, older parts first, in the service's order. Of two versions, the newer part's counts. */
  get drawings(): Definition[] {
    const drawings = new Map<string, Definition>();
    for (const page of this.#pages.values()) {
      for (const { id, definition } of page.drawings) {
        const composed = drawings.has(id) && definition.feature === id;
        drawings.set(composed ? `${id} ${page.start}` : id, definition);
      }
    }
    for (const id of this.#active) {
      const definition = this.#catalogue.get(id);
      // A composed line comes in pieces: the live piece does not replace those of the pages.
      if (definition !== undefined) drawings.set(definition.feature === id ? `${id} live` : id, definition);
    }
    return [...drawings.values()];
  }

  /** Names of the indicators, in the service's order. */
  get names(): string[] {
    return [...this.#points.keys()];
  }

  /** The values of an indicator, oldest first. */
  pointsOf(name: string): readonly Point[] {
    const live = this.#points.get(name) ?? [];
    if (this.#pages.size === 0) return live;
    const joined = this.#joined.get(name);
    const newest = live.at(-1)?.time;
    if (joined?.generation === this.#generation && joined.live === live.length && joined.newest === newest) return joined.points;
    const points = joinPoints(this.#pages.values(), name, live, this.#from);
    this.#joined.set(name, { generation: this.#generation, live: live.length, newest, points });
    return points;
  }

  /**
   * Applies a delta of the newest candles.
   *
   * delta: the answer of the service.
   * whole: the request had no cursor, so the answer replaces everything.
   * from: open time of the first candle that the answer covers.
   */
  take(delta: DrawDelta, whole: boolean, from: number): void {
    if (delta.epoch !== this.#epoch && this.#pages.size > 0) this.#setPages(new Map());
    if (whole || delta.epoch !== this.#epoch) this.#clear();
    for (const { id, definition } of delta.patch) this.#catalogue.set(id, definition);
    this.#active = delta.active;
    // The window only moves forward: a drawing that left it does not come back.
    const active = new Set(delta.active);
    for (const id of this.#catalogue.keys()) if (!active.has(id)) this.#catalogue.delete(id);
    for (const [name, points] of delta.points) this.#append(name, points);
    this.#epoch = delta.epoch;
    this.#cursor = delta.cursor;
    this.#to = delta.to;
    this.#from = from;
  }

  /** Takes a page, in place of an earlier one with the same start; the pages furthest from the view are dropped. */
  takePage(page: DrawingPage, view: View): void {
    this.#setPages(keepPages(new Map([...this.#pages, [page.start, page]]), view));
  }

  /** The candles were loaded again: older parts have to be requested again. */
  dropPages(): void {
    if (this.#pages.size > 0) this.#setPages(new Map());
  }

  #setPages(pages: ReadonlyMap<number, DrawingPage>): void {
    this.#pages = pages;
    this.#joined.clear();
    this.#generation += 1;
  }

  #append(name: string, points: readonly Point[]): void {
    const stored = this.#points.get(name) ?? [];
    let newest = stored.at(-1)?.time ?? Number.NEGATIVE_INFINITY;
    for (const point of points) {
      if (point.time <= newest) continue;
      stored.push(point);
      newest = point.time;
    }
    if (stored.length > MAX_POINTS) {
      stored.splice(0, stored.length - Math.floor(MAX_POINTS * 0.9));
      this.#generation += 1;
    }
    this.#points.set(name, stored);
  }

  #clear(): void {
    this.#catalogue.clear();
    this.#points.clear();
    this.#joined.clear();
    this.#generation += 1;
  }
}
