// Foot: the extent of the shown candles and their gaps, at the foot of the page.

import { element, showText } from "./dom.ts";
import { formatTime, plural } from "./format.ts";
import { describeGap, GAP_STATES } from "./legend.ts";
import type { SeriesStore } from "./store.ts";

export class Foot {
  readonly #extent = element("extent", HTMLSpanElement);
  readonly #since = element("extent-since", HTMLSpanElement);
  readonly #gaps = element("gaps", HTMLButtonElement);

  show({ count, first, gaps, timeframe }: SeriesStore): void {
    showText(this.#extent, first === null ? "" : plural(count, "candle"));
    showText(this.#since, first === null ? "" : ` since ${formatTime(first, timeframe)}`);
    const newest = gaps.at(-1);
    this.#gaps.hidden = newest === undefined;
    if (newest === undefined) return;
    const missing = gaps.reduce((sum, gap) => sum + gap.missing, 0);
    const state = gaps.every((gap) => gap.state === newest.state) ? `: ${GAP_STATES[newest.state]}` : "";
    this.#gaps.textContent = `${plural(gaps.length, "gap")}, ${plural(missing, "candle")} missing${state}`;
    this.#gaps.title = `${describeGap(newest, timeframe)}. Go there.`;
    this.#gaps.dataset["settled"] = String(gaps.every((gap) => gap.state === "confirmed_empty"));
  }
}
