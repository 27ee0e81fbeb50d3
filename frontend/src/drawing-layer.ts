// DrawingLayer: draws a DrawingStore on the chart: markers and lines over the candles, indicators on the price or in
// panes of their own. Points are drawn only where there is a candle, for the library would make room for others.

import {
  createSeriesMarkers,
  createTextWatermark,
  HistogramSeries,
  type IChartApi,
  type ISeriesApi,
  type ISeriesMarkersPluginApi,
  LineSeries,
  LineStyle,
  type SeriesMarker,
  type Time,
  type UTCTimestamp,
} from "lightweight-charts";
import type { Marker, Point, Polyline } from "./drawing.ts";
import { DrawingStore } from "./drawing-store.ts";
import { Layers } from "./layers.ts";
import { Polylines } from "./polylines.ts";
import type { SeriesStore } from "./store.ts";
import type { Palette } from "./theme.ts";

/** Each has a contrast of 3 or more to the light ground and to the dark one. */
const LINE_COLOURS: readonly string[] = ["#c9701f", "#2b8fa8", "#c65596", "#7d8f2b", "#8d74e8", "#b5830f", "#3f83f0", "#7686a0"];
/** The price pane is this many times as high as one of the others. */
const PRICE_STRETCH = 3.5;

type Drawn = ISeriesApi<"Line"> | ISeriesApi<"Histogram">;

interface Line {
  readonly name: string;
  readonly label: string;
  readonly colour: string;
  readonly onPrice: boolean;
  readonly series: Drawn;
  /** What is drawn of its points: everything up to this time. */
  drawnTo: number;
}

/** An indicator's value, for the legend. */
export interface Reading {
  readonly label: string;
  readonly colour: string;
  readonly value: number;
}

export class DrawingLayer {
  readonly #markers: ISeriesMarkersPluginApi<Time>;
  readonly #polylines = new Polylines();
  #store = new DrawingStore();
  #layers = new Layers();
  #lines: Line[] = [];
  #plan = "";
  // Those beside the price's.
  #panes = 0;
  #generation = -1;
  #stale = true;

  constructor(
    private readonly chart: IChartApi,
    candles: ISeriesApi<"Candlestick">,
  ) {
    this.#markers = createSeriesMarkers(candles, []);
    candles.attachPrimitive(this.#polylines);
  }

  /** Draw this from now on, with the next `draw`. */
  show(store: DrawingStore, layers: Layers): void {
    this.#store = store;
    this.#layers = layers;
    this.#stale = true;
  }

  /** Draw what has changed. `anew`: the candles were drawn anew, or the colours changed. */
  draw(candles: SeriesStore, palette: Palette, anew: boolean): void {
    if (anew || this.#stale) {
      this.#drawShapes(candles);
      this.#arrange(palette);
    }
    const whole = anew || this.#generation !== this.#store.generation;
    for (const line of this.#lines) this.#drawLine(line, candles, palette, whole);
    this.#generation = this.#store.generation;
    this.#stale = false;
  }

  /** The values at `time` of the indicators that lie on the price. */
  readingsAt(time: number): Reading[] {
    const readings: Reading[] = [];
    for (const { name, label, colour, onPrice } of this.#lines) {
      const value = onPrice ? valueAt(this.#store.pointsOf(name), time) : null;
      if (value !== null) readings.push({ label, colour, value });
    }
    return readings;
  }

  /** The price pane's part of the chart's height. */
  get priceShare(): number {
    return PRICE_STRETCH / (PRICE_STRETCH + this.#panes);
  }

  /** How many indicators are drawn. */
  get lines(): number {
    return this.#lines.length;
  }

  #drawShapes(candles: SeriesStore): void {
    const drawings = this.#store.drawings.filter((one) => this.#layers.visible(one.feature));
    const markers = drawings.filter((one): one is Marker => one.type === "marker" && candles.holds(one.time));
    markers.sort((one, other) => one.time - other.time);
    this.#markers.setMarkers(markers.map(asMarker));
    this.#polylines.show(
      drawings.filter((one): one is Polyline => one.type === "polyline"),
      candles,
    );
  }

  /** Make the line series again when they are not the ones that are wanted. */
  #arrange(palette: Palette): void {
    const names = this.#store.names.filter((name) => this.#layers.visible(name));
    const plan = JSON.stringify([palette.text, ...names.map((name) => [name, this.#layers.find(name)?.group.pane])]);
    if (plan === this.#plan) return;
    this.#plan = plan;
    for (const { series } of this.#lines) this.chart.removeSeries(series);
    this.#lines = [];
    const panes = new Map<string, number>();
    const colours = new Map<string, number>();
    for (const name of names) this.#lines.push(this.#lineOf(name, panes, colours, palette));
    this.#panes = panes.size;
    const [price, ...others] = this.chart.panes();
    price?.setStretchFactor(PRICE_STRETCH);
    for (const pane of others) pane.setStretchFactor(1);
  }

  #lineOf(name: string, panes: Map<string, number>, colours: Map<string, number>, palette: Palette): Line {
    const found = this.#layers.find(name);
    const group = found?.group.key ?? name;
    const onPrice = found?.group.pane === "price";
    // On the price an indicator has one colour, in a pane of its own each output has.
    const coloured = onPrice ? "price" : group;
    const known = onPrice ? colours.get(`price ${group}`) : undefined;
    const index = known ?? colours.get(coloured) ?? 0;
    if (known === undefined) colours.set(coloured, index + 1);
    if (onPrice) colours.set(`price ${group}`, index);
    const colour = LINE_COLOURS[index % LINE_COLOURS.length] ?? palette.text;
    const label = onPrice || found === null ? labelOf(found?.group.label ?? name, found?.layer.label ?? name) : found.layer.label;
    let pane = onPrice ? 0 : panes.get(group);
    const begins = pane === undefined;
    if (pane === undefined) {
      pane = panes.size + 1;
      panes.set(group, pane);
    }
    const quiet = { priceLineVisible: false, lastValueVisible: !onPrice, color: colour };
    const look = found?.layer.look;
    const series =
      look === "histogram"
        ? this.chart.addSeries(HistogramSeries, quiet, pane)
        : this.chart.addSeries(
            LineSeries,
            {
              ...quiet,
              lineWidth: onPrice ? 1 : 2,
              lineStyle: look === "dashed" ? LineStyle.Dashed : LineStyle.Solid,
              crosshairMarkerVisible: false,
            },
            pane,
          );
    if (begins) this.#entitle(pane, found?.group.label ?? name, palette);
    return { name, label, colour, onPrice, series, drawnTo: Number.NEGATIVE_INFINITY };
  }

  #entitle(index: number, text: string, palette: Palette): void {
    const pane = this.chart.panes()[index];
    if (pane === undefined) return;
    const { fontFamily, fontSize } = this.chart.options().layout;
    const line = { text, color: palette.text, fontSize, fontFamily };
    createTextWatermark(pane, { horzAlign: "left", vertAlign: "top", lines: [line] });
  }

  #drawLine(line: Line, candles: SeriesStore, palette: Palette, whole: boolean): void {
    const points = this.#store.pointsOf(line.name);
    const all = whole || line.drawnTo === Number.NEGATIVE_INFINITY;
    if (!all && (points.at(-1)?.time ?? Number.NEGATIVE_INFINITY) <= line.drawnTo) return;
    const fresh = all ? points : points.slice(indexAfter(points, line.drawnTo));
    const drawable = fresh.filter((point) => candles.holds(point.time)).map((point) => barOf(line, point, palette));
    if (all) line.series.setData(drawable);
    else for (const bar of drawable) line.series.update(bar);
    line.drawnTo = drawable.at(-1)?.time ?? line.drawnTo;
  }
}

function barOf(line: Line, { time, value, breaks }: Point, palette: Palette): { time: UTCTimestamp; value: number; color?: string } {
  const bar = { time: time as UTCTimestamp, value };
  // The library draws the way to the next point in this one's colour.
  if (breaks === true && line.series.seriesType() === "Line") return { ...bar, color: "transparent" };
  return line.series.seriesType() === "Histogram" ? { ...bar, color: value < 0 ? palette.down : palette.up } : bar;
}

function asMarker({ time, position, color, shape, text, size }: Marker): SeriesMarker<Time> {
  const marker = { time: time as UTCTimestamp, position, color, shape, size };
  return text === "" ? marker : { ...marker, text };
}

/** `BBANDS(20) upperband`; once when both are the same. */
function labelOf(group: string, layer: string): string {
  return group === layer ? group : `${group} ${layer}`;
}

/** The newest value up to `time`: that of a candle which has just closed is on its way. Null before the first. */
function valueAt(points: readonly Point[], time: number): number | null {
  return points[indexAfter(points, time) - 1]?.value ?? null;
}

/** Index of the first point later than `time`. */
function indexAfter(points: readonly Point[], time: number): number {
  let low = 0;
  let high = points.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const point = points[middle];
    if (point !== undefined && point.time <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}
