// DrawingStore: the drawings and indicator values of one series, as the deltas applied so far make them.

import type { Cursor, Definition, DrawDelta, Point } from "./drawing.ts";

/** Points kept of an indicator, beyond the largest window asked for; then the oldest go. */
export const POINTS_KEPT = 6000;

export class DrawingStore {
  #epoch: number | null = null;
  #cursor: Cursor | null = null;
  #to: number | null = null;
  #catalogue = new Map<string, Definition>();
  #active: readonly string[] = [];
  readonly #points = new Map<string, Point[]>();
  #generation = 0;

  /** What to ask with; null: for everything. */
  get cursor(): { readonly cursor: Cursor; readonly epoch: number | null } | null {
    return this.#cursor === null ? null : { cursor: this.#cursor, epoch: this.#epoch };
  }

  /** The newest candle that the drawings know. */
  get to(): number | null {
    return this.#to;
  }

  /** Counts how often points were anything but added at the end. */
  get generation(): number {
    return this.#generation;
  }

  /** What is to be shown, in the service's order. */
  get drawings(): Definition[] {
    return this.#active.map((id) => this.#catalogue.get(id)).filter((one) => one !== undefined);
  }

  /** The indicators that have been named, in the service's order. */
  get names(): string[] {
    return [...this.#points.keys()];
  }

  /** The values of an indicator, oldest first. */
  pointsOf(name: string): readonly Point[] {
    return this.#points.get(name) ?? [];
  }

  /** Apply a delta. `whole`: it answers a question without a cursor, so that nothing held before counts. */
  take(delta: DrawDelta, whole: boolean): void {
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
  }

  #append(name: string, points: readonly Point[]): void {
    const held = this.#points.get(name) ?? [];
    let newest = held.at(-1)?.time ?? Number.NEGATIVE_INFINITY;
    for (const point of points) {
      if (point.time <= newest) continue;
      held.push(point);
      newest = point.time;
    }
    if (held.length > POINTS_KEPT) {
      held.splice(0, held.length - Math.floor(POINTS_KEPT * 0.9));
      this.#generation += 1;
    }
    this.#points.set(name, held);
  }

  #forget(): void {
    this.#catalogue.clear();
    this.#points.clear();
    this.#generation += 1;
  }
}
