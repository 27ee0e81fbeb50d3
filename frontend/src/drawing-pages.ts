// Drawings and indicator values of older parts of a chart: pages on a fixed grid of times, asked for by `at_time`, each
// as a reader at that time would have got it. Pure: which page is wanted, and what of an answer belongs to it.

import type { Definition, DrawDelta, Instruction, Point, Polyline } from "./drawing.ts";

/** Candles of a page. */
export const PAGE_CANDLES = 1000;
/**
 * Candles after a page that its question includes. A pivot is known some candles after its candle, a zone when it has
 * died; what is known later than this many candles after its place is not drawn on an older page.
 */
export const OVERLAP_CANDLES = 500;
/** Pages kept; those furthest from the view go first. More than a view of any width needs. */
export const MOST_PAGES = 24;
/** Pages are asked for when the view is this many candles away from them. */
const AHEAD_CANDLES = 100;
/** Made at read over the whole window: each page has a piece. What else is made at read belongs to the newest candle. */
const COMPOSED: ReadonlySet<string> = new Set(["pen.confirmed"]);

/** The part of the chart with open times from `start` up to, but not at, `end`, and the candle that it is asked at. */
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

/** Open times, both included. `first`: of the oldest candle that is shown. */
export interface View {
  readonly from: number;
  readonly to: number;
  readonly first: number;
}

/**
 * The page that is to be asked for next; null when all of the view is held. `step`: seconds of a candle. `liveFrom`: the
 * live drawings begin here. `last`: the newest closed candle.
 */
export function nextPage(
  view: View,
  held: ReadonlyMap<number, DrawingPage>,
  step: number,
  liveFrom: number,
  last: number,
): PageQuery | null {
  const length = PAGE_CANDLES * step;
  const from = Math.max(view.first, view.from - AHEAD_CANDLES * step);
  const to = Math.min(liveFrom - step, view.to + AHEAD_CANDLES * step);
  if (from > to) return null;
  const wanted: PageQuery[] = [];
  for (let start = Math.floor(from / length) * length; start <= to && wanted.length < MOST_PAGES; start += length) {
    const end = start + length;
    const whole = end + (OVERLAP_CANDLES - 1) * step;
    const at = Math.min(whole, last);
    const has = held.get(start);
    // One that was asked for before its overlap was there is asked for once more.
    if (has === undefined || (has.at < whole && at === whole)) wanted.push({ start, end, at });
  }
  const middle = (view.from + view.to) / 2;
  const distance = ({ start, end }: PageQuery): number => Math.abs((start + end) / 2 - middle);
  return wanted.toSorted((one, other) => distance(one) - distance(other))[0] ?? null;
}

/** What of a delta without cursor belongs to the page. */
export function pageOf(query: PageQuery, delta: DrawDelta): DrawingPage {
  const { start, end } = query;
  const active = new Set(delta.active);
  const points = new Map<string, readonly Point[]>();
  for (const [name, held] of delta.points) {
    points.set(name, held.filter(({ time }) => time >= start && time < end));
  }
  const drawings = delta.patch
    .filter(({ id, visibleTime, definition }) => {
      // What is said of the newest candle was true then, and the live drawings say what is true now.
      const ofHead = visibleTime === delta.to && !COMPOSED.has(definition.feature);
      return active.has(id) && !ofHead && touches(definition, start, end);
    })
    .map((one) => (COMPOSED.has(one.definition.feature) ? pieceOf(one, start, end) : one));
  return { ...query, epoch: delta.epoch, points, drawings };
}

/** These pages without the ones furthest from the view, when they are too many. */
export function keepPages(held: ReadonlyMap<number, DrawingPage>, view: View): Map<number, DrawingPage> {
  const middle = (view.from + view.to) / 2;
  const near = [...held.values()].toSorted(
    (one, other) => Math.abs((one.start + one.end) / 2 - middle) - Math.abs((other.start + other.end) / 2 - middle),
  );
  const kept = near.slice(0, MOST_PAGES).toSorted((one, other) => one.start - other.start);
  return new Map(kept.map((page) => [page.start, page]));
}

/** An indicator's points of pages, then of the live part, oldest first; the last point before a break says so. */
export function joinPoints(
  pages: Iterable<DrawingPage>,
  name: string,
  live: readonly Point[],
  liveFrom: number,
): Point[] {
  const begins = live[0]?.time ?? Number.POSITIVE_INFINITY;
  const joined: Point[] = [];
  let reaches: number | null = null;
  for (const { start, end, points } of pages) {
    if (reaches !== null && reaches < start) breakAtEnd(joined);
    reaches = end;
    for (const point of points.get(name) ?? []) if (point.time < begins) joined.push(point);
  }
  if (reaches !== null && reaches < Math.min(begins, liveFrom)) breakAtEnd(joined);
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

/** A composed line between the corners around the page. */
function pieceOf(one: Instruction, start: number, end: number): Instruction {
  const { definition } = one;
  if (definition.type !== "polyline") return one;
  const { points } = definition;
  const from = Math.max(0, points.findLastIndex(({ time }) => time <= start));
  const behind = points.findIndex(({ time }) => time >= end);
  const piece: Polyline = { ...definition, points: points.slice(from, behind < 0 ? points.length : behind + 1) };
  return { ...one, definition: piece };
}
