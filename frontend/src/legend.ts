// Legend: the newest price, and the values of the candle under the crosshair (or of the newest one).

import { element, setText } from "./dom.ts";
import type { Reading } from "./drawing-layer.ts";
import { formatChange, formatCount, formatPrice, formatTime, formatTimeNear, formatVolume } from "./format.ts";
import { nextOpen } from "./series.ts";
import type { Gap, SeriesStore } from "./store.ts";

/** States of gaps in words. */
export const GAP_STATES: Readonly<Record<Gap["state"], string>> = {
  unknown: "not yet explained",
  healing: "being fetched",
  confirmed_empty: "the exchange has none",
  lost: "lost, no source has them any more",
};

/** `3 candles are missing from 2025-08-12 14:03 to 14:06: being fetched`. */
export function describeGap(gap: Gap, timeframe: string): string {
  const from = formatTime(gap.from, timeframe);
  const count = gap.missing === 1 ? "1 candle is" : `${formatCount(gap.missing)} candles are`;
  return `${count} missing from ${from} to ${formatTimeNear(gap.to, timeframe, gap.from)}: ${GAP_STATES[gap.state]}`;
}

export class Legend {
  readonly #root = element("legend", HTMLElement);
  readonly #price = element("price", HTMLDivElement);
  readonly #badge = element("badge", HTMLSpanElement);
  readonly #date = element("legend-date", HTMLSpanElement);
  readonly #time = element("legend-time", HTMLSpanElement);
  readonly #open = element("value-open", HTMLElement);
  readonly #high = element("value-high", HTMLElement);
  readonly #low = element("value-low", HTMLElement);
  readonly #close = element("value-close", HTMLElement);
  readonly #volume = element("value-volume", HTMLElement);
  readonly #change = element("value-change", HTMLElement);
  readonly #readings = element("readings", HTMLDivElement);
  #shownReadings = "";
  readonly #gap = element("legend-gap", HTMLParagraphElement);

  /**
   * Shows the newest price, and the values of one candle.
   *
   * store: the shown candles.
   * live: the live candles, which have the newest price.
   * pointed: open time under the crosshair; null for none.
   * decimals: of prices.
   * stale: whether forming values are not up to date.
   * readingsAt: values of the indicators at an open time.
   */
  show(
    store: SeriesStore,
    live: SeriesStore,
    pointed: number | null,
    decimals: number,
    stale: boolean,
    readingsAt: (time: number) => Reading[],
  ): void {
    const { last } = live;
    this.#root.hidden = last === null;
    if (last === null) return;
    const detail = (pointed === null ? null : store.barAt(pointed)) ?? live.barAt(last.candle.time);
    if (detail === null) return;

    this.#root.dataset["stale"] = String(stale);
    setText(this.#price, formatPrice(last.candle.close, decimals));
    this.#price.dataset["direction"] = direction(last.candle.open, last.candle.close);

    const { candle, forming } = detail.bar;
    const { timeframe } = store;
    const kind = forming ? (stale ? "stale" : "forming") : "closed";
    setText(this.#badge, kind);
    this.#badge.dataset["kind"] = kind;
    const closes = nextOpen(timeframe, candle.time);
    const closing = forming ? `, closes ${formatTimeNear(closes, timeframe, candle.time)}` : "";
    const time = formatTimeNear(candle.time, timeframe, candle.time);
    const date = formatTime(candle.time, timeframe).slice(0, -time.length);
    setText(this.#date, date);
    setText(this.#time, `${time}${closing}`);
    setText(this.#open, formatPrice(candle.open, decimals));
    setText(this.#high, formatPrice(candle.high, decimals));
    setText(this.#low, formatPrice(candle.low, decimals));
    setText(this.#close, formatPrice(candle.close, decimals));
    setText(this.#volume, formatVolume(candle.volume));
    setText(this.#change, formatChange(detail.previousClose, candle.close) ?? "");
    this.#change.dataset["direction"] = direction(detail.previousClose ?? candle.open, candle.close);
    this.#root.dataset["direction"] = direction(candle.open, candle.close);

    // Indicators are computed from closed candles alone.
    const closed = forming ? live.lastClosed : candle.time;
    this.#showReadings(closed === null ? [] : readingsAt(closed), decimals);

    const gap = forming ? null : store.gapBefore(candle.time);
    this.#gap.hidden = gap === null;
    if (gap !== null) setText(this.#gap, describeGap(gap, timeframe));
  }

  #showReadings(readings: readonly Reading[], decimals: number): void {
    const text = JSON.stringify([readings, decimals]);
    if (text === this.#shownReadings) return;
    this.#shownReadings = text;
    this.#readings.replaceChildren(
      ...readings.map(({ label, colour, value }) => {
        const reading = document.createElement("span");
        reading.style.color = colour;
        reading.textContent = `${label} ${formatPrice(value, decimals)}`;
        return reading;
      }),
    );
  }
}

function direction(from: number, to: number): "up" | "down" {
  return to >= from ? "up" : "down";
}
