// SeriesStore: what is known of one series. History and live become one strictly increasing list of closed
// candles, followed by the forming ones. Every method says what changed, so that the chart redraws no more than that.

import { type Candle, missingBetween, nextOpen } from "./series.ts";
import { DeclaredGaps } from "./declared-gaps.ts";
import type { DeclaredGap, GapState } from "./wire.ts";

/**
 * - `none`: nothing to redraw.
 * - `tail`: bars at `from` and later were replaced, or added behind all others; none was taken away or put between.
 * - `reset`: draw everything again.
 * - `unjoined`: the candle contradicts what is held, so this history belongs to another store: load it again.
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

/** A hole between two closed candles: `missing` candles from `from` up to, but not at, `to`. */
export interface Gap {
  readonly from: number;
  readonly to: number;
  readonly missing: number;
  readonly state: GapState;
}

const NONE: Change = { kind: "none" };
const RESET: Change = { kind: "reset" };
const UNJOINED: Change = { kind: "unjoined" };

/** Candles kept in memory; a tenth of it is let go, oldest first, when live candles exceed it. */
export const CAPACITY = 50_000;

export class SeriesStore {
  #closed: Candle[] = [];
  // Usually one. More when the close of a candle comes after the first trade of the next one.
  #forming: Candle[] = [];
  #holes: { from: number; to: number; missing: number }[] = [];
  #declared = new DeclaredGaps();
  // `gaps` is read with every frame, and holes change seldom.
  #gaps: readonly Gap[] | null = null;

  /** Whether the service may hold candles older than the first one here; false when it had none when last asked. */
  olderExists = true;

  constructor(
    readonly timeframe: string,
    readonly capacity = CAPACITY,
  ) {}

  /** Closed candles held. */
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

  /** Holes between the closed candles, oldest first. */
  get gaps(): readonly Gap[] {
    this.#gaps ??= this.#holes.map((hole) => ({ ...hole, state: this.#declared.stateOf(hole) }));
    return this.#gaps;
  }

  /** Every bar at `from` and later, in time order: closed ones, then forming ones. */
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
   * Where `time` lies among the bars, counted from 0: a whole number at a bar, halves in holes, and steps of the
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

  /** The hole that ends at `time`, if there is one. */
  gapBefore(time: number): Gap | null {
    return this.gaps.find((gap) => gap.to === time) ?? null;
  }

  /** Take `candles` in place of everything closed. */
  replace(candles: readonly Candle[]): Change {
    this.#closed = increasing(candles).slice(-this.capacity);
    this.olderExists = true;
    this.#dropForming();
    this.#findHoles();
    return RESET;
  }

  /** History older than the first candle. */
  prepend(candles: readonly Candle[]): Change {
    const { first } = this;
    const older = increasing(candles).filter((candle) => first === null || candle.time < first);
    if (older.length === 0) {
      this.olderExists = false;
      return NONE;
    }
    const room = Math.max(0, this.capacity - this.#closed.length);
    this.#closed = [...older.slice(Math.max(0, older.length - room)), ...this.#closed];
    this.#findHoles();
    return RESET;
  }

  /** Closed candles, in time order. `revised`: they may correct or fill in what is held. */
  close(candles: readonly Candle[], revised = false): Change {
    let change: Change = NONE;
    for (const candle of candles) {
      change = mergeChanges(change, this.#closeOne(candle, revised));
      if (change.kind === "unjoined") return change;
    }
    if (this.#closed.length > this.capacity) {
      this.#closed = this.#closed.slice(this.#closed.length - Math.floor(this.capacity * 0.9));
      this.#findHoles();
      return RESET;
    }
    return change;
  }

  /** A candle in progress. It never replaces a closed one. */
  form(candle: Candle): Change {
    const { lastClosed, lastForming } = this;
    if (lastClosed !== null && candle.time <= lastClosed) return NONE;
    if (lastForming !== null && candle.time < lastForming) return NONE;
    if (lastForming === candle.time) this.#forming.pop();
    // A close that is late by one candle is awaited beside the next one; by more, its place is given up.
    const abandoned = this.#forming.length > 1;
    if (abandoned) this.#forming.shift();
    this.#forming.push(candle);
    return abandoned ? RESET : { kind: "tail", from: candle.time };
  }

  /** What the service says about holes; whether the state of one that is held changes by it. */
  declareGaps(gaps: readonly DeclaredGap[]): boolean {
    const before = this.gaps;
    this.#declared = gaps.reduce((known, gap) => known.with(gap), this.#declared).bounded(this.#holes);
    this.#gaps = null;
    return this.gaps.some((gap, index) => gap.state !== before[index]?.state);
  }

  #closeOne(candle: Candle, revised: boolean): Change {
    const last = this.#closed.at(-1);
    if (last === undefined || candle.time > last.time) {
      this.#closed.push(candle);
      if (last !== undefined) this.#noteHole(last.time, candle.time);
      // One that was not shown forming may come to stand before one that is.
      const wasShown = this.#forming.some((shown) => shown.time === candle.time);
      // A bar that was shown forming and never closed is taken away by this one.
      const taken = this.#dropForming();
      return taken || (!wasShown && this.#forming.length > 0) ? RESET : { kind: "tail", from: candle.time };
    }
    const index = this.#indexFrom(candle.time);
    const held = this.#closed[index];
    if (held !== undefined && held.time === candle.time) {
      if (sameCandle(held, candle)) return NONE;
      if (!revised) return UNJOINED;
      this.#closed[index] = candle;
      return { kind: "tail", from: candle.time };
    }
    if (!revised) return UNJOINED;
    if (index === 0) {
      // Older than what is held: it comes, with its neighbours, when the reader scrolls back.
      this.olderExists = true;
      return NONE;
    }
    this.#closed.splice(index, 0, candle);
    this.#findHoles();
    return RESET;
  }

  /** Forget forming candles up to the last closed one; true when one of them was never closed. */
  #dropForming(): boolean {
    const { lastClosed } = this;
    if (lastClosed === null || this.#forming.length === 0) return false;
    const dropped = this.#forming.filter((candle) => candle.time <= lastClosed);
    this.#forming = this.#forming.filter((candle) => candle.time > lastClosed);
    return dropped.some((candle) => this.#closed[this.#indexFrom(candle.time)]?.time !== candle.time);
  }

  #noteHole(earlier: number, later: number): void {
    const missing = missingBetween(this.timeframe, earlier, later);
    if (missing === 0) return;
    this.#holes.push({ from: nextOpen(this.timeframe, earlier), to: later, missing });
    this.#gaps = null;
  }

  #findHoles(): void {
    this.#holes = [];
    this.#gaps = null;
    let previous: Candle | undefined;
    for (const candle of this.#closed) {
      if (previous !== undefined) this.#noteHole(previous.time, candle.time);
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

/** Two changes as one. */
export function mergeChanges(first: Change, second: Change): Change {
  if (first.kind === "unjoined" || second.kind === "unjoined") return UNJOINED;
  if (first.kind === "reset" || second.kind === "reset") return RESET;
  if (first.kind === "none") return second;
  if (second.kind === "none") return first;
  return { kind: "tail", from: Math.min(first.from, second.from) };
}

/** The candles that are newer than all before them. */
function increasing(candles: readonly Candle[]): Candle[] {
  let newest = Number.NEGATIVE_INFINITY;
  return candles.filter((candle) => {
    if (candle.time <= newest) return false;
    newest = candle.time;
    return true;
  });
}

function sameCandle(one: Candle, other: Candle): boolean {
  return (
    one.open === other.open &&
    one.high === other.high &&
    one.low === other.low &&
    one.close === other.close &&
    one.volume === other.volume
  );
}
