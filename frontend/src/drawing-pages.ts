// Drawings and indicator values of older parts of a chart: pages on a fixed grid of times, requested by `at_time`, each as
// it was at that time. Pure: which page is needed next, and which part of an answer belongs to a page.

import type { Definition, DrawDelta, Instruction, Point, Polyline } from "./drawing.ts";

/** Candles of a page. */
export const PAGE_CANDLES = 1000;
/**
 * Candles after a page that its request includes. A pivot is known some candles after its candle, a zone when it has died.
 * A drawing that became known later than this many candles after its place is missing on an older page.
 */
export const OVERLAP_CANDLES = 500;
/** Most pages in memory; the furthest from the view are dropped first. More than a view of any width needs. */
export const MAX_PAGES = 24;
/** Distance from the view at which pages are requested, in candles. */
const AHEAD_CANDLES = 100;
/** Features composed over the whole window: each page has a piece. Other features made at read belong to the newest candle. */
const COMPOSED: ReadonlySet<string> = new Set(["pen.confirmed"]);

/** Open times from `start` (inclusive) to `end` (exclusive), requested as they were at `at`. */
export interface PageQuery {
  readonly start: number;
  readonly end: number;
  readonly at: number;
}

export interface DrawingPage extends PageQuery {
  readonly epoch: number | null;
  readonly points: ReadonlyMap<string, readonly Point[]>;
  readonly drawings: readonly Instruction[];
}

/** Open times of the first and last candle in view, and of the oldest candle of the store. */
export interface View {
  readonly from: number;
  readonly to: number;
  readonly first: number;
}

/**
 * The page to request next; null when the view is covered.
 *
 * view: the candles in view.
 * pages: those in memory, by their start.
 * step: seconds of a candle.
 * liveFrom: open time at which the live drawings begin.
 * last: open time of the newest closed candle.
 */
export function nextPage(
  view: View,
  pages: ReadonlyMap<number, DrawingPage>,
  step: number,
  liveFrom: number,
  last: number,
): PageQuery | null {
  const length = PAGE_CANDLES * step;
  const from = Math.max(view.first, view.from - AHEAD_CANDLES * step);
  const to = Math.min(liveFrom - step, view.to + AHEAD_CANDLES * step);
  if (from > to) return null;
  const missing: PageQuery[] = [];
  for (let start = Math.floor(from / length) * length; start <= to && missing.length < MAX_PAGES; start += length) {
    const end = start + length;
    const whole = end + (OVERLAP_CANDLES - 1) * step;
    const at = Math.min(whole, last);
    const page = pages.get(start);
    // A page that was requested before its overlap was complete is requested once more.
    if (page === undefined || (page.at < whole && at === whole)) missing.push({ start, end, at });
  }
  const middle = (view.from + view.to) / 2;
  const distance = ({ start, end }: PageQuery): number => Math.abs((start + end) / 2 - middle);
  return missing.toSorted((first, second) => distance(first) - distance(second))[0] ?? null;
}

/** The part of a delta without cursor that belongs to the page. */
export function pageOf(query: PageQuery, delta: DrawDelta): DrawingPage {
  const { start, end } = query;
  const active = new Set(delta.active);
  const points = new Map<string, readonly Point[]>();
  for (const [name, values] of delta.points) {
    points.set(name, values.filter(({ time }) => time >= start && time < end));
  }
  const drawings = delta.patch
    .filter(({ id, visibleTime, definition }) => {
      // A drawing of the head was true at that time; the live drawings show the present head.
      const ofHead = visibleTime === delta.to && !COMPOSED.has(definition.feature);
      return active.has(id) && !ofHead && touches(definition, start, end);
    })
    .map((drawing) => (COMPOSED.has(drawing.definition.feature) ? pieceOf(drawing, start, end) : drawing));
  return { ...query, epoch: delta.epoch, points, drawings };
}

/** The pages nearest to the view, at most `MAX_PAGES`. */
export function keepPages(pages: ReadonlyMap<number, DrawingPage>, view: View): Map<number, DrawingPage> {
  const middle = (view.from + view.to) / 2;
  const near = [...pages.values()].toSorted(
    (first, second) => Math.abs((first.start + first.end) / 2 - middle) - Math.abs((second.start + second.end) / 2 - middle),
  );
  const kept = near.slice(0, MAX_PAGES).toSorted((first, second) => first.start - second.start);
  return new Map(kept.map((page) => [page.start, page]));
}

/** The points of an indicator on pages, then of the live part, oldest first; `breaks` marks the last point before a break. */
export function joinPoints(
  pages: Iterable<DrawingPage>,
  name: string,
  live: readonly Point[],
  liveFrom: number,
): Point[] {
  const liveStart = live[0]?.time ?? Number.POSITIVE_INFINITY;
  const joined: Point[] = [];
  let joinedTo: number | null = null;
  for (const { start, end, points } of pages) {
    if (joinedTo !== null && joinedTo < start) breakAtEnd(joined);
    joinedTo = end;
    for (const point of points.get(name) ?? []) if (point.time < liveStart) joined.push(point);
  }
  if (joinedTo !== null && joinedTo < Math.min(liveStart, liveFrom)) breakAtEnd(joined);
  for (const point of live) joined.push(point);
  return joined;
}

function breakAtEnd(points: Point[]): void {
  const last = points.pop();
  if (last !== undefined) points.push({ ...last, breaks: true });
}

function touches(definition: Definition, start: number, end: number): boolean {
  if (definition.type === "marker") return definition.time >= start && definition.time < end;
  const [first] = definition.points;
  const last = definition.points.at(-1);
  return first !== undefined && last !== undefined && first.time < end && last.time >= start;
}

/** The piece of a composed line between the corners around the page. */
function pieceOf(drawing: Instruction, start: number, end: number): Instruction {
  const { definition } = drawing;
  if (definition.type !== "polyline") return drawing;
  const { points } = definition;
  const from = Math.max(0, points.findLastIndex(({ time }) => time <= start));
  const after = points.findIndex(({ time }) => time >= end);
  const piece: Polyline = { ...definition, points: points.slice(from, after < 0 ? points.length : after + 1) };
  return { ...drawing, definition: piece };
}
