// SeriesStore: the candles of one series. History and live become one strictly increasing list of closed candles, followed
// by the forming ones. Every method returns what changed, so that the chart redraws nothing else.

import { type Candle, missingBetween, nextOpen } from "./series.ts";
import { DeclaredGaps } from "./declared-gaps.ts";
import type { DeclaredGap, GapState } from "./wire.ts";

/**
 * - `none`: nothing to redraw.
 * - `tail`: bars at `from` and later were replaced or appended; none was removed or inserted.
 * - `reset`: redraw everything.
 * - `unjoined`: the candle contradicts the stored ones, so the history came from another store: load it again.
 */
export type Change =
  | { readonly kind: "none" }
  | { readonly kind: "tail"; readonly from: number }
  | { readonly kind: "reset" }
  | { readonly kind: "unjoined" };

export interface Bar {
  readonly candle: Candle;
  readonly forming: boolean;
}

/** `missing` candles between two closed ones, with open times from `from` (inclusive) to `to` (exclusive). */
export interface Gap {
  readonly from: number;
  readonly to: number;
  readonly missing: number;
  readonly state: GapState;
}

const NONE: Change = { kind: "none" };
const RESET: Change = { kind: "reset" };
const UNJOINED: Change = { kind: "unjoined" };

/** Closed candles in memory; live candles beyond it evict the oldest tenth. */
export const CAPACITY = 50_000;

export class SeriesStore {
  #closed: Candle[] = [];
  // Usually one candle. Two when the close of a candle comes after the first trade of the next.
  #forming: Candle[] = [];
  #missing: { from: number; to: number; missing: number }[] = [];
  #declared = new DeclaredGaps();
  // Cached: `gaps` is read with every frame, and changes seldom.
  #gaps: readonly Gap[] | null = null;

  /** Whether the service may have candles older than the first one; false after an empty answer. */
  olderExists = true;

  constructor(
    readonly timeframe: string,
    readonly capacity = CAPACITY,
  ) {}

  /** Number of closed candles. */
  get count(): number {
    return this.#closed.length;
  }

  get first(): number | null {
    return this.#closed[0]?.time ?? null;
  }

  get lastClosed(): number | null {
    return this.#closed.at(-1)?.time ?? null;
  }

  get lastForming(): number | null {
    return this.#forming.at(-1)?.time ?? null;
  }

  get last(): Bar | null {
    const forming = this.#forming.at(-1);
    if (forming !== undefined) return { candle: forming, forming: true };
    const closed = this.#closed.at(-1);
    return closed === undefined ? null : { candle: closed, forming: false };
  }

  get full(): boolean {
    return this.#closed.length >= this.capacity;
  }

  /** Gaps between the closed candles, oldest first. */
  get gaps(): readonly Gap[] {
    this.#gaps ??= this.#missing.map((span) => ({ ...span, state: this.#declared.stateOf(span) }));
    return this.#gaps;
  }

  /** The bars at `from` and later, in time order: closed ones, then forming ones. */
  barsFrom(from: number): Bar[] {
    const bars: Bar[] = [];
    for (let index = this.#indexFrom(from); index < this.#closed.length; index += 1) {
      const candle = this.#closed[index];
      if (candle !== undefined) bars.push({ candle, forming: false });
    }
    for (const candle of this.#forming) if (candle.time >= from) bars.push({ candle, forming: true });
    return bars;
  }

  /** The bar at `time`, and the close before it (null for the first bar). */
  barAt(time: number): { readonly bar: Bar; readonly previousClose: number | null } | null {
    const forming = this.#forming.findIndex((candle) => candle.time === time);
    if (forming >= 0) {
      const candle = this.#forming[forming];
      const previous = this.#forming[forming - 1] ?? this.#closed.at(-1);
      return candle === undefined ? null : { bar: { candle, forming: true }, previousClose: previous?.close ?? null };
    }
    const index = this.#indexFrom(time);
    const candle = this.#closed[index];
    if (candle === undefined || candle.time !== time) return null;
    return { bar: { candle, forming: false }, previousClose: this.#closed[index - 1]?.close ?? null };
  }

  /** Whether there is a closed candle at `time`. */
  holds(time: number): boolean {
    return this.#closed[this.#indexFrom(time)]?.time === time;
  }

  /**
   * Position of `time` among the bars, counted from 0: a whole number at a bar, a half within a gap, and steps of the
   * timeframe beyond either end.
   */
  positionOf(time: number): number {
    const first = this.#closed[0] ?? this.#forming[0];
    const last = this.last?.candle;
    if (first === undefined || last === undefined) return 0;
    const bars = this.#closed.length + this.#forming.length;
    if (time < first.time) return -1 - missingBetween(this.timeframe, time, first.time);
    if (time > last.time) return bars + missingBetween(this.timeframe, last.time, time);
    const forming = this.#forming.findIndex((candle) => candle.time >= time);
    const index = this.#indexFrom(time);
    if (index === this.#closed.length) return index + Math.max(0, forming);
    return this.#closed[index]?.time === time ? index : index - 0.5;
  }

  /** The gap that ends at `time`; null for none. */
  gapBefore(time: number): Gap | null {
    return this.gaps.find((gap) => gap.to === time) ?? null;
  }

  /** Replaces every closed candle. */
  replace(candles: readonly Candle[]): Change {
    this.#closed = increasing(candles).slice(-this.capacity);
    this.olderExists = true;
    this.#dropForming();
    this.#findMissing();
    return RESET;
  }

  /** Adds history older than the first candle. */
  prepend(candles: readonly Candle[]): Change {
    const { first } = this;
    const older = increasing(candles).filter((candle) => first === null || candle.time < first);
    if (older.length === 0) {
      this.olderExists = false;
      return NONE;
    }
    const room = Math.max(0, this.capacity - this.#closed.length);
    this.#closed = [...older.slice(Math.max(0, older.length - room)), ...this.#closed];
    this.#findMissing();
    return RESET;
  }

  /** Adds closed candles, in time order. `revised`: they may correct stored candles, or fill gaps. */
  close(candles: readonly Candle[], revised = false): Change {
    let change: Change = NONE;
    for (const candle of candles) {
      change = mergeChanges(change, this.#closeCandle(candle, revised));
      if (change.kind === "unjoined") return change;
    }
    if (this.#closed.length > this.capacity) {
      this.#closed = this.#closed.slice(this.#closed.length - Math.floor(this.capacity * 0.9));
      this.#findMissing();
      return RESET;
    }
    return change;
  }

  /** Takes the candle in progress, which never replaces a closed one. */
  form(candle: Candle): Change {
    const { lastClosed, lastForming } = this;
    if (lastClosed !== null && candle.time <= lastClosed) return NONE;
    if (lastForming !== null && candle.time < lastForming) return NONE;
    if (lastForming === candle.time) this.#forming.pop();
    // A candle whose close is late stays beside the next forming one, and is dropped with the one after that.
    const dropped = this.#forming.length > 1;
    if (dropped) this.#forming.shift();
    this.#forming.push(candle);
    return dropped ? RESET : { kind: "tail", from: candle.time };
  }

  /** Takes states of gaps; whether the state of a gap of this store changed. */
  declareGaps(gaps: readonly DeclaredGap[]): boolean {
    const before = this.gaps;
    this.#declared = gaps.reduce((declared, gap) => declared.with(gap), this.#declared).bounded(this.#missing);
    this.#gaps = null;
    return this.gaps.some((gap, index) => gap.state !== before[index]?.state);
  }

  #closeCandle(candle: Candle, revised: boolean): Change {
    const last = this.#closed.at(-1);
    if (last === undefined || candle.time > last.time) {
      this.#closed.push(candle);
      if (last !== undefined) this.#addMissing(last.time, candle.time);
      const wasForming = this.#forming.some((forming) => forming.time === candle.time);
      const removed = this.#dropForming();
      // A bar was removed, or this one is inserted before a forming one.
      return removed || (!wasForming && this.#forming.length > 0) ? RESET : { kind: "tail", from: candle.time };
    }
    const index = this.#indexFrom(candle.time);
    const stored = this.#closed[index];
    if (stored !== undefined && stored.time === candle.time) {
      if (sameCandle(stored, candle)) return NONE;
      if (!revised) return UNJOINED;
      this.#closed[index] = candle;
      return { kind: "tail", from: candle.time };
    }
    if (!revised) return UNJOINED;
    if (index === 0) {
      // Older than the first candle: it is loaded, with its neighbours, when the reader scrolls back.
      this.olderExists = true;
      return NONE;
    }
    this.#closed.splice(index, 0, candle);
    this.#findMissing();
    return RESET;
  }

  /** Drops forming candles up to the last closed one; true when one of them was never closed. */
  #dropForming(): boolean {
    const { lastClosed } = this;
    if (lastClosed === null || this.#forming.length === 0) return false;
    const dropped = this.#forming.filter((candle) => candle.time <= lastClosed);
    this.#forming = this.#forming.filter((candle) => candle.time > lastClosed);
    return dropped.some((candle) => this.#closed[this.#indexFrom(candle.time)]?.time !== candle.time);
  }

  #addMissing(earlier: number, later: number): void {
    const missing = missingBetween(this.timeframe, earlier, later);
    if (missing === 0) return;
    this.#missing.push({ from: nextOpen(this.timeframe, earlier), to: later, missing });
    this.#gaps = null;
  }

  #findMissing(): void {
    this.#missing = [];
    this.#gaps = null;
    let previous: Candle | undefined;
    for (const candle of this.#closed) {
      if (previous !== undefined) this.#addMissing(previous.time, candle.time);
      previous = candle;
    }
  }

  /** Index of the first closed candle at `time` or later. */
  #indexFrom(time: number): number {
    let low = 0;
    let high = this.#closed.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const candle = this.#closed[middle];
      if (candle !== undefined && candle.time < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The change that covers both. */
export function mergeChanges(first: Change, second: Change): Change {
  if (first.kind === "unjoined" || second.kind === "unjoined") return UNJOINED;
  if (first.kind === "reset" || second.kind === "reset") return RESET;
  if (first.kind === "none") return second;
  if (second.kind === "none") return first;
  return { kind: "tail", from: Math.min(first.from, second.from) };
}

/** The candles that are newer than every candle before them. */
function increasing(candles: readonly Candle[]): Candle[] {
  let newest = Number.NEGATIVE_INFINITY;
  return candles.filter((candle) => {
    if (candle.time <= newest) return false;
    newest = candle.time;
    return true;
  });
}

function sameCandle(first: Candle, second: Candle): boolean {
  return (
    first.open === second.open &&
    first.high === second.high &&
    first.low === second.low &&
    first.close === second.close &&
    first.volume === second.volume
  );
}
