// Polylines: lines and zones over the candles. The library's own line series has one value a candle and no vertical line, so
// it cannot draw a zone; and a corner outside the candles would stretch the time axis.

import type {
  IPrimitivePaneRenderer,
  IPrimitivePaneView,
  ISeriesPrimitive,
  Logical,
  SeriesAttachedParameter,
  Time,
} from "lightweight-charts";
import type { Polyline } from "./drawing.ts";
import type { SeriesStore } from "./store.ts";

/** The canvas of a renderer; the library does not export this type. */
type Target = Parameters<IPrimitivePaneRenderer["draw"]>[0];

const DASHES: Readonly<Record<Polyline["lineStyle"], number[]>> = { solid: [], dashed: [6, 5], dotted: [2, 4] };
/** Opacity of the inside of a closed line, and of the area between the two edges of a zone. */
const FILL_ALPHA = 0.1;

interface Zone {
  readonly top: Polyline;
  readonly bottom: Polyline;
}

interface Corner {
  readonly x: number;
  readonly y: number;
}

export class Polylines implements ISeriesPrimitive<Time>, IPrimitivePaneView, IPrimitivePaneRenderer {
  #attached: SeriesAttachedParameter<Time> | null = null;
  #lines: readonly Polyline[] = [];
  #zones: readonly Zone[] = [];
  #candles: SeriesStore | null = null;

  attached(parameter: SeriesAttachedParameter<Time>): void {
    this.#attached = parameter;
  }

  detached(): void {
    this.#attached = null;
  }

  /** Draws these lines over these candles from now on. */
  show(lines: readonly Polyline[], candles: SeriesStore): void {
    this.#lines = lines;
    this.#zones = zonesOf(lines);
    this.#candles = candles;
    this.#attached?.requestUpdate();
  }

  paneViews(): readonly IPrimitivePaneView[] {
    return [this];
  }

  renderer(): IPrimitivePaneRenderer {
    return this;
  }

  draw(target: Target): void {
    if (this.#lines.length === 0) return;
    target.useMediaCoordinateSpace(({ context, mediaSize }) => {
      context.lineJoin = "round";
      for (const zone of this.#zones) this.#fill(context, zone, mediaSize.width);
      for (const line of this.#lines) {
        const corners = this.#corners(line);
        const outside = corners.every(({ x }) => x < 0) || corners.every(({ x }) => x > mediaSize.width);
        if (corners.length < 2 || outside) continue;
        this.#trace(context, line, corners);
      }
      context.setLineDash([]);
      context.globalAlpha = 1;
    });
  }

  #fill(context: CanvasRenderingContext2D, { top, bottom }: Zone, width: number): void {
    const corners = [...this.#corners(top), ...this.#corners(bottom).toReversed()];
    if (corners.length < 4 || corners.every(({ x }) => x < 0) || corners.every(({ x }) => x > width)) return;
    context.beginPath();
    for (const { x, y } of corners) context.lineTo(x, y);
    context.closePath();
    context.fillStyle = top.color;
    context.globalAlpha = FILL_ALPHA;
    context.fill();
    context.globalAlpha = 1;
  }

  #trace(context: CanvasRenderingContext2D, line: Polyline, corners: readonly Corner[]): void {
    context.strokeStyle = line.color;
    context.lineWidth = line.lineWidth;
    context.setLineDash(DASHES[line.lineStyle]);
    context.beginPath();
    for (const { x, y } of corners) context.lineTo(x, y);
    const [first] = line.points;
    const last = line.points.at(-1);
    if (first?.time === last?.time && first?.value === last?.value) {
      context.closePath();
      context.fillStyle = line.color;
      context.globalAlpha = FILL_ALPHA;
      context.fill();
      context.globalAlpha = 1;
    }
    context.stroke();
  }

  #corners(line: Polyline): Corner[] {
    const candles = this.#candles;
    if (this.#attached === null || candles === null) return [];
    const { chart, series } = this.#attached;
    const timeScale = chart.timeScale();
    const corners: Corner[] = [];
    for (const { time, value } of line.points) {
      const x = timeScale.logicalToCoordinate(candles.positionOf(time) as Logical);
      const y = series.priceToCoordinate(value);
      if (x !== null && y !== null) corners.push({ x, y });
    }
    return corners;
  }
}

/** The zones that have both edges. */
export function zonesOf(lines: readonly Polyline[]): Zone[] {
  const tops = new Map<string, Polyline>();
  for (const line of lines) if (line.edge?.side === "top") tops.set(line.edge.zone, line);
  return lines.flatMap((bottom) => {
    const top = bottom.edge?.side === "bottom" ? tops.get(bottom.edge.zone) : undefined;
    return top === undefined ? [] : [{ top, bottom }];
  });
}
