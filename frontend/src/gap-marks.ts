// GapMarks: a dashed line at each gap, with the number of missing candles and the state of the gap at the foot of the chart.

import type {
  IChartApi,
  IPrimitivePaneRenderer,
  IPrimitivePaneView,
  ISeriesPrimitive,
  SeriesAttachedParameter,
  Time,
  UTCTimestamp,
} from "lightweight-charts";
import { formatCount } from "./format.ts";
import type { Gap } from "./store.ts";

/** The canvas of a renderer; the library does not export this type. */
type Target = Parameters<IPrimitivePaneRenderer["draw"]>[0];

const LABEL_SPACE_PX = 6;
const STATE_WORDS: Readonly<Record<Gap["state"], string>> = {
  unknown: "missing",
  healing: "being fetched",
  confirmed_empty: "not at the exchange",
  lost: "lost",
};

export class GapMarks implements ISeriesPrimitive<Time>, IPrimitivePaneView, IPrimitivePaneRenderer {
  #chart: IChartApi | null = null;
  #requestUpdate: () => void = () => undefined;
  #gaps: readonly Gap[] = [];
  #colours: Readonly<Record<Gap["state"], string>> = { unknown: "", healing: "", confirmed_empty: "", lost: "" };
  #background = "";
  #font = "";

  attached({ chart, requestUpdate }: SeriesAttachedParameter<Time>): void {
    this.#chart = chart as IChartApi;
    this.#requestUpdate = requestUpdate;
  }

  detached(): void {
    this.#chart = null;
  }

  show(gaps: readonly Gap[]): void {
    this.#gaps = gaps;
    this.#requestUpdate();
  }

  /** Colours of gaps that may be healed (`colour`), that are confirmed empty (`settled`), and that are lost (`lost`). */
  setStyle(colour: string, settled: string, lost: string, background: string, font: string): void {
    this.#colours = { unknown: colour, healing: colour, confirmed_empty: settled, lost };
    this.#background = background;
    this.#font = font;
    this.#requestUpdate();
  }

  paneViews(): readonly IPrimitivePaneView[] {
    return [this];
  }

  renderer(): IPrimitivePaneRenderer {
    return this;
  }

  draw(target: Target): void {
    const chart = this.#chart;
    if (chart === null || this.#gaps.length === 0) return;
    const timeScale = chart.timeScale();
    const half = timeScale.options().barSpacing / 2;
    target.useMediaCoordinateSpace(({ context, mediaSize }) => {
      context.font = this.#font;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.lineWidth = 1;
      let free = Number.NEGATIVE_INFINITY;
      for (const gap of this.#gaps) {
        const at = timeScale.timeToCoordinate(gap.to as UTCTimestamp);
        if (at === null || at < -50 || at > mediaSize.width + 50) continue;
        const x = Math.round(at - half) + 0.5;
        const text = `${formatCount(gap.missing)} ${STATE_WORDS[gap.state]}`;
        const colour = this.#colours[gap.state];
        context.strokeStyle = colour;
        const width = context.measureText(text).width + 2 * LABEL_SPACE_PX;
        const y = mediaSize.height - 14;
        const labelled = x - width / 2 > free;
        context.globalAlpha = 0.55;
        context.setLineDash([3, 4]);
        context.beginPath();
        context.moveTo(x, 0);
        context.lineTo(x, labelled ? y - 10 : mediaSize.height);
        context.stroke();
        context.setLineDash([]);
        context.globalAlpha = 1;
        if (!labelled) continue;
        free = x + width / 2;
        context.fillStyle = this.#background;
        context.beginPath();
        context.roundRect(x - width / 2, y - 9.5, width, 19, 5);
        context.fill();
        context.stroke();
        context.fillStyle = colour;
        context.fillText(text, x, y);
      }
    });
  }
}
