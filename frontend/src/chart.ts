// CandleChart: draws a SeriesStore. Changes are collected until the next frame: a few bars are drawn as updates, many as one
// setData.

import {
  type CandlestickData,
  CandlestickSeries,
  ColorType,
  createChart,
  CrosshairMode,
  type HistogramData,
  HistogramSeries,
  type IChartApi,
  type IPriceLine,
  type ISeriesApi,
  LineStyle,
  type Time,
  type UTCTimestamp,
} from "lightweight-charts";
import { DrawingLayer, type Reading } from "./drawing-layer.ts";
import type { DrawingStore } from "./drawing-store.ts";
import { GapMarks } from "./gap-marks.ts";
import { formatPrice, formatTime, priceDecimals } from "./format.ts";
import type { Layers } from "./layers.ts";
import { type Bar, type Change, mergeChanges, SeriesStore } from "./store.ts";
import { type Palette, remPx } from "./theme.ts";

/** Most changed bars that are drawn as updates; more are drawn with one setData. */
const MAX_UPDATES = 100;
/** Number of newest candles whose prices decide the number of decimals. */
const PRECISION_SAMPLE = 500;
/** Candles are requested when fewer than this many lie between the view and the end of the store. */
const LOAD_AHEAD = 200;
/** Space before the first candle at the start, in candles. */
const MARGIN_BARS = 5;
const NO_CHANGE: Change = { kind: "none" };

export interface ChartEvents {
  /** The bar under the crosshair; null when it is off the candles. */
  pointed(time: number | null): void;
  /** The view is near the oldest candle. */
  nearStart(): void;
  /** The view is near the newest candle of a store that ends before the live candles. */
  nearEnd(): void;
  /** The view moved. `from`, `to`: open times of its first and last candle. */
  viewed(from: number, to: number): void;
  /** Whether the newest candle is in view. */
  atEnd(atEnd: boolean): void;
  /** A frame was drawn from the store. */
  drawn(): void;
}

export class CandleChart {
  readonly #chart: IChartApi;
  readonly #candles: ISeriesApi<"Candlestick">;
  readonly #volume: ISeriesApi<"Histogram">;
  readonly #gapMarks = new GapMarks();
  readonly #lastPrice: IPriceLine;
  readonly #drawings: DrawingLayer;

  #store = new SeriesStore("1m");
  #pending: Change = NO_CHANGE;
  #frame = 0;
  #fresh = true;
  #lastDrawn = Number.NEGATIVE_INFINITY;
  #drawnGaps = "";
  #decimals = 2;
  #stale = false;
  #atEnd = true;
  // Whether the store ends before the live candles.
  #past = false;
  // While stores are exchanged, the position of the view is not the choice of the reader.
  #exchanging = false;
  #headroom = { px: 0, max: 0 };
  #appliedHeadroom = -1;
  #events: ChartEvents | null = null;

  constructor(
    private readonly element: HTMLElement,
    private palette: Palette,
  ) {
    this.#chart = createChart(element, {
      autoSize: true,
      crosshair: { mode: CrosshairMode.Normal },
      rightPriceScale: { borderVisible: false, minimumWidth: 64, tickMarkDensity: 4 },
      timeScale: {
        borderVisible: false,
        timeVisible: true,
        secondsVisible: false,
        rightOffset: 6,
        barSpacing: Math.round((remPx() * 7) / 16),
        minBarSpacing: 0.4,
      },
      localization: {
        locale: "en-GB",
        priceFormatter: (price: number) => formatPrice(price, this.#decimals),
        timeFormatter: (time: Time) => formatTime(Number(time), this.#store.timeframe),
      },
    });
    this.#volume = this.#chart.addSeries(HistogramSeries, {
      priceScaleId: "volume",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.#chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.84, bottom: 0 } });
    this.#candles = this.#chart.addSeries(CandlestickSeries, { priceLineVisible: false, lastValueVisible: false });
    this.#lastPrice = this.#candles.createPriceLine({
      price: 0,
      lineVisible: false,
      axisLabelVisible: false,
      lineWidth: 1,
      lineStyle: LineStyle.Dotted,
      title: "",
    });
    this.#drawings = new DrawingLayer(this.#chart, this.#candles);
    this.#candles.attachPrimitive(this.#gapMarks);
    this.setPalette(palette);

    this.#chart.subscribeCrosshairMove(({ time }) => this.#events?.pointed(time === undefined ? null : Number(time)));
    this.#chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (range === null) return;
      this.#requestMore();
      const times = this.#chart.timeScale().getVisibleRange();
      if (times !== null) this.#events?.viewed(Number(times.from), Number(times.to));
      const atEnd = range.to >= this.#bars() - 1;
      if (atEnd !== this.#atEnd) {
        this.#atEnd = atEnd;
        this.#events?.atEnd(atEnd);
      }
    });
  }

  /** Notifies `events` from now on. */
  bind(events: ChartEvents): void {
    this.#events = events;
  }

  /** Decimals that prices of this series are shown with. */
  get decimals(): number {
    return this.#decimals;
  }

  /** Draws this store from now on, at its newest candle. */
  show(store: SeriesStore): void {
    this.#store = store;
    this.#past = false;
    this.#fresh = true;
    this.#decimals = 2;
    this.changed({ kind: "reset" });
  }

  /** Draws a store of the same series that ends before the live candles, at its first candle. */
  showPast(store: SeriesStore): void {
    this.#exchange(store);
    this.#exchanging = true;
    this.goToStart();
    this.#exchanging = false;
    this.#past = true;
    this.changed(NO_CHANGE);
  }

  /** Draws the live store of the same series, at the candles in view. */
  showLive(store: SeriesStore): void {
    this.#atEnd = false;
    const restoreView = this.#view();
    this.#exchange(store);
    restoreView?.();
    this.changed(NO_CHANGE);
  }

  #exchange(store: SeriesStore): void {
    this.#store = store;
    this.#past = false;
    this.#pending = NO_CHANGE;
    this.#exchanging = true;
    this.#drawAll(store.barsFrom(0));
    // At once: the times of lines count as bars, and removing those of the other store later would move the view.
    this.#drawings.draw(store, this.palette, true);
    this.#exchanging = false;
  }

  /** Whether the newest candle of the store is in view. */
  get atEnd(): boolean {
    return this.#atEnd;
  }

  /** Draws the change with the next frame. */
  changed(change: Change): void {
    this.#pending = mergeChanges(this.#pending, change);
    if (this.#frame === 0) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** Draws these indicators and drawings over the candles, as far as `layers` has them visible. */
  showDrawings(drawings: DrawingStore, layers: Layers): void {
    this.#drawings.show(drawings, layers);
    this.changed(NO_CHANGE);
  }

  /** Values at `time` of the indicators on the price. */
  readingsAt(time: number): Reading[] {
    return this.#drawings.readingsAt(time);
  }

  /** Number of indicator lines. */
  get lines(): number {
    return this.#drawings.lines;
  }

  /** Draws forming candles in grey: their values are not up to date. */
  setStale(stale: boolean): void {
    if (stale === this.#stale) return;
    this.#stale = stale;
    const { last } = this.#store;
    if (last !== null) this.changed({ kind: "tail", from: last.candle.time });
  }

  setPalette(palette: Palette): void {
    this.palette = palette;
    const fontSize = Math.round(remPx() * 0.72);
    const { fontFamily } = getComputedStyle(document.body);
    const line = { color: palette.crosshair, labelBackgroundColor: palette.crosshairLabel, style: LineStyle.Dashed };
    this.#chart.applyOptions({
      layout: {
        background: { type: ColorType.Solid, color: palette.background },
        textColor: palette.text,
        fontFamily,
        fontSize,
        panes: { separatorColor: palette.grid, separatorHoverColor: palette.grid },
      },
      grid: { vertLines: { color: palette.grid }, horzLines: { color: palette.grid } },
      crosshair: { vertLine: { ...line, width: 1 }, horzLine: { ...line, width: 1 } },
    });
    this.#candles.applyOptions({
      upColor: palette.up,
      downColor: palette.down,
      borderUpColor: palette.up,
      borderDownColor: palette.down,
      wickUpColor: palette.up,
      wickDownColor: palette.down,
    });
    this.#gapMarks.setStyle(palette.gap, palette.text, palette.lost, palette.background, `${fontSize}px ${fontFamily}`);
    this.changed({ kind: "reset" });
  }

  /** Keeps `px` pixels at the top free of candles, for the legend, up to the part `max` of the price pane. */
  setHeadroom(px: number, max: number): void {
    this.#headroom = { px, max };
    this.#applyHeadroom();
  }

  #applyHeadroom(): void {
    const height = this.element.clientHeight * this.#drawings.priceShare;
    const top = height > 0 ? Math.min(this.#headroom.max, this.#headroom.px / height) : 0;
    if (top === this.#appliedHeadroom) return;
    this.#appliedHeadroom = top;
    this.#chart.priceScale("right").applyOptions({ scaleMargins: { top, bottom: 0.22 } });
  }

  goToEnd(): void {
    // Without animation: a new candle during one would leave the view a candle short.
    const timeScale = this.#chart.timeScale();
    timeScale.scrollToPosition(timeScale.options().rightOffset, false);
  }

  goToStart(): void {
    const range = this.#chart.timeScale().getVisibleLogicalRange();
    if (range === null) return;
    const from = -MARGIN_BARS;
    this.#chart.timeScale().setVisibleLogicalRange({ from, to: from + range.to - range.from });
  }

  /** Scrolls the candle at `time` into the middle of the view. */
  goToTime(time: number): void {
    this.#goToBar(this.#indexFrom(time));
  }

  /** Scrolls by a part of the visible width; negative: back in time. */
  scroll(part: number): void {
    const range = this.#chart.timeScale().getVisibleLogicalRange();
    if (range === null) return;
    const by = Math.sign(part) * Math.max(1, Math.abs(part) * (range.to - range.from));
    this.#chart.timeScale().setVisibleLogicalRange({ from: range.from + by, to: range.to + by });
  }

  /** Multiplies the visible width by `factor`; the right edge stays. */
  zoom(factor: number): void {
    const range = this.#chart.timeScale().getVisibleLogicalRange();
    if (range === null) return;
    const width = Math.max(10, (range.to - range.from) * factor);
    this.#chart.timeScale().setVisibleLogicalRange({ from: range.to - width, to: range.to });
  }

  #goToBar(index: number): void {
    const range = this.#chart.timeScale().getVisibleLogicalRange();
    if (range === null) return;
    const half = (range.to - range.from) / 2;
    this.#chart.timeScale().setVisibleLogicalRange({ from: index - half, to: index + half });
  }

  /** Position of the first bar at or after `time`. */
  #indexFrom(time: number): number {
    return this.#bars() - this.#store.barsFrom(time).length;
  }

  #bars(): number {
    const { lastForming, lastClosed } = this.#store;
    return this.#store.count + (lastForming === null ? 0 : this.#store.barsFrom((lastClosed ?? -1) + 1).length);
  }

  #draw(): void {
    this.#frame = 0;
    const change = this.#pending;
    this.#pending = NO_CHANGE;
    const store = this.#store;
    if (change.kind === "reset") this.#drawAll(store.barsFrom(0));
    else if (change.kind === "tail") this.#drawTail(change.from);
    this.#drawings.draw(store, this.palette, change.kind === "reset");
    this.#applyHeadroom();
    this.#drawLastPrice();
    this.#drawGaps();
    // Older candles may exist by now while the view is at the first candle.
    this.#requestMore();
    this.#events?.drawn();
  }

  #requestMore(): void {
    const range = this.#chart.timeScale().getVisibleLogicalRange();
    if (range === null || this.#fresh || this.#exchanging) return;
    if (range.from < LOAD_AHEAD) this.#events?.nearStart();
    if (this.#past && range.to > this.#bars() - LOAD_AHEAD) this.#events?.nearEnd();
  }

  #drawAll(bars: Bar[]): void {
    const following = this.#atEnd && !this.#past;
    const restoreView = this.#fresh || following ? null : this.#view();
    this.#showPrecision(bars.slice(-PRECISION_SAMPLE));
    this.#candles.setData(bars.map((bar) => this.#candleOf(bar)));
    this.#volume.setData(bars.map((bar) => this.#volumeOf(bar)));
    this.#lastDrawn = bars.at(-1)?.candle.time ?? Number.NEGATIVE_INFINITY;
    if (this.#fresh && bars.length > 0) {
      this.#chart.timeScale().resetTimeScale();
      this.#chart.priceScale("right").applyOptions({ autoScale: true });
      this.#fresh = false;
    }
    restoreView?.();
  }

  /** Returns a function that restores the present view, whatever candles were added before and after it. */
  #view(): (() => void) | null {
    const timeScale = this.#chart.timeScale();
    const range = timeScale.getVisibleLogicalRange();
    if (range === null) return null;
    const leftmost = Math.max(0, Math.round(range.from));
    const first = this.#candles.dataByIndex(leftmost);
    if (first === null) return null;
    return () => {
      const by = this.#indexFrom(Number(first.time)) - leftmost;
      timeScale.setVisibleLogicalRange({ from: range.from + by, to: range.to + by });
    };
  }

  #drawTail(from: number): void {
    const bars = this.#store.barsFrom(from);
    if (bars.length > MAX_UPDATES || this.#fresh) {
      this.#drawAll(this.#store.barsFrom(0));
      return;
    }
    if (bars.some((bar) => !bar.forming)) this.#showPrecision(bars);
    for (const bar of bars) {
      const historical = bar.candle.time < this.#lastDrawn;
      this.#candles.update(this.#candleOf(bar), historical);
      this.#volume.update(this.#volumeOf(bar), historical);
      if (!historical) this.#lastDrawn = bar.candle.time;
    }
  }

  /** Shows more decimals when these prices need them; never fewer, so that the scale does not flicker. */
  #showPrecision(bars: Bar[]): void {
    const closed = bars.filter((bar) => !bar.forming);
    const decimals = priceDecimals((closed.length > 0 ? closed : bars).map((bar) => bar.candle));
    if (decimals <= this.#decimals && !this.#fresh) return;
    this.#decimals = decimals;
    this.#candles.applyOptions({ priceFormat: { type: "price", precision: decimals, minMove: 10 ** -decimals } });
  }

  #candleOf({ candle, forming }: Bar): CandlestickData<UTCTimestamp> {
    const { open, high, low, close } = candle;
    const point = { time: candle.time as UTCTimestamp, open, high, low, close };
    if (!forming) return point;
    const { palette } = this;
    if (this.#stale) {
      return { ...point, color: palette.staleBody, borderColor: palette.stale, wickColor: palette.stale };
    }
    return { ...point, color: close >= open ? palette.upForming : palette.downForming };
  }

  #volumeOf({ candle, forming }: Bar): HistogramData<UTCTimestamp> {
    const { palette } = this;
    const colour = candle.close >= candle.open ? palette.upVolume : palette.downVolume;
    return {
      time: candle.time as UTCTimestamp,
      value: candle.volume,
      color: forming && this.#stale ? palette.staleBody : colour,
    };
  }

  #drawLastPrice(): void {
    const { last } = this.#store;
    // The newest candle of the past does not have the last price.
    if (last === null || this.#past) {
      this.#lastPrice.applyOptions({ lineVisible: false, axisLabelVisible: false });
      return;
    }
    const { close, open } = last.candle;
    const moving = close >= open ? this.palette.up : this.palette.down;
    const color = this.#stale ? this.palette.stale : moving;
    this.#lastPrice.applyOptions({ price: close, color, axisLabelColor: color, lineVisible: true, axisLabelVisible: true });
  }

  #drawGaps(): void {
    const { gaps } = this.#store;
    const summary = gaps.map((gap) => `${gap.to}:${gap.missing}:${gap.state}`).join();
    if (summary === this.#drawnGaps) return;
    this.#drawnGaps = summary;
    this.#gapMarks.show(gaps);
  }
}
