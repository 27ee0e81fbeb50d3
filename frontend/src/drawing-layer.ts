// DrawingLayer: draws a DrawingStore on the chart: markers and lines over the candles, indicators on the price or in
// panes of their own. A point without a candle is not drawn: the library would add a bar for it.

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

/** Each colour has a contrast of at least 3 to the light and to the dark background. */
const LINE_COLOURS: readonly string[] = ["#c9701f", "#2b8fa8", "#c65596", "#7d8f2b", "#8d74e8", "#b5830f", "#3f83f0", "#7686a0"];
/** Height of the price pane, in heights of the other panes. */
const PRICE_STRETCH = 3.5;

type Drawn = ISeriesApi<"Line"> | ISeriesApi<"Histogram">;

interface Line {
  readonly name: string;
  readonly label: string;
  readonly colour: string;
  readonly onPrice: boolean;
  readonly series: Drawn;
  /** Time of the newest point that is drawn. */
  drawnTo: number;
}

/** The value of an indicator, for the legend. */
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
  #arrangement = "";
  // Number of panes beside the price pane.
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

  /** Shows these drawings from the next `draw` on. */
  show(store: DrawingStore, layers: Layers): void {
    this.#store = store;
    this.#layers = layers;
    this.#stale = true;
  }

  /** Draws the changes. `redraw`: the candles were redrawn, or the colours changed. */
  draw(candles: SeriesStore, palette: Palette, redraw: boolean): void {
    if (redraw || this.#stale) {
      this.#drawShapes(candles);
      this.#arrange(palette);
    }
    const whole = redraw || this.#generation !== this.#store.generation;
    for (const line of this.#lines) this.#drawLine(line, candles, palette, whole);
    this.#generation = this.#store.generation;
    this.#stale = false;
  }

  /** Values at `time` of the indicators on the price. */
  readingsAt(time: number): Reading[] {
    const readings: Reading[] = [];
    for (const { name, label, colour, onPrice } of this.#lines) {
      const value = onPrice ? valueAt(this.#store.pointsOf(name), time) : null;
      if (value !== null) readings.push({ label, colour, value });
    }
    return readings;
  }

  /** Height of the price pane as a part of the chart's. */
  get priceShare(): number {
    return PRICE_STRETCH / (PRICE_STRETCH + this.#panes);
  }

  /** Number of indicator lines. */
  get lines(): number {
    return this.#lines.length;
  }

  #drawShapes(candles: SeriesStore): void {
    const drawings = this.#store.drawings.filter(({ feature }) => this.#layers.visible(feature));
    const markers = drawings.filter((drawing): drawing is Marker => drawing.type === "marker" && candles.holds(drawing.time));
    markers.sort((first, second) => first.time - second.time);
    this.#markers.setMarkers(markers.map(asMarker));
    this.#polylines.show(
      drawings.filter((drawing): drawing is Polyline => drawing.type === "polyline"),
      candles,
    );
  }

  /** Makes the line series again when other indicators are visible. */
  #arrange(palette: Palette): void {
    const names = this.#store.names.filter((name) => this.#layers.visible(name));
    const arrangement = JSON.stringify([palette.text, ...names.map((name) => [name, this.#layers.find(name)?.group.pane])]);
    if (arrangement === this.#arrangement) return;
    this.#arrangement = arrangement;
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
    const match = this.#layers.find(name);
    const group = match?.group.key ?? name;
    const onPrice = match?.group.pane === "price";
    // On the price, an indicator has one colour; in a pane of its own, each output has one.
    const coloured = onPrice ? "price" : group;
    const known = onPrice ? colours.get(`price ${group}`) : undefined;
    const index = known ?? colours.get(coloured) ?? 0;
    if (known === undefined) colours.set(coloured, index + 1);
    if (onPrice) colours.set(`price ${group}`, index);
    const colour = LINE_COLOURS[index % LINE_COLOURS.length] ?? palette.text;
    const label = onPrice || match === null ? labelOf(match?.group.label ?? name, match?.layer.label ?? name) : match.layer.label;
    let pane = onPrice ? 0 : panes.get(group);
    const isNew = pane === undefined;
    if (pane === undefined) {
      pane = panes.size + 1;
      panes.set(group, pane);
    }
    const options = { priceLineVisible: false, lastValueVisible: !onPrice, color: colour };
    const look = match?.layer.look;
    const series =
      look === "histogram"
        ? this.chart.addSeries(HistogramSeries, options, pane)
        : this.chart.addSeries(
            LineSeries,
            {
              ...options,
              lineWidth: onPrice ? 1 : 2,
              lineStyle: look === "dashed" ? LineStyle.Dashed : LineStyle.Solid,
              crosshairMarkerVisible: false,
            },
            pane,
          );
    if (isNew) this.#entitle(pane, match?.group.label ?? name, palette);
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
  // The library draws the line to the next point in the colour of this point.
  if (breaks === true && line.series.seriesType() === "Line") return { ...bar, color: "transparent" };
  return line.series.seriesType() === "Histogram" ? { ...bar, color: value < 0 ? palette.down : palette.up } : bar;
}

function asMarker({ time, position, color, shape, text, size }: Marker): SeriesMarker<Time> {
  const marker = { time: time as UTCTimestamp, position, color, shape, size };
  return text === "" ? marker : { ...marker, text };
}

/** `BBANDS(20) upperband`; the label alone when both are the same. */
function labelOf(group: string, layer: string): string {
  return group === layer ? group : `${group} ${layer}`;
}

/** The newest value up to `time`, because the value of a candle that has just closed is in flight; null before the first. */
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
