// Empty: what the page says instead of candles when it has none to show.

import { element } from "./dom.ts";
import type { HistoryState } from "./history.ts";
import type { Series } from "./series.ts";

export interface Emptiness {
  readonly title: string;
  readonly text: string;
  /** Whether choosing another series helps. */
  readonly choose: boolean;
}

/** Facts about the page: `unresolved` is the text of an address that names no series; `listed`, whether the whitelist is loaded. */
export interface EmptyFacts {
  readonly series: Series | null;
  readonly history: HistoryState;
  readonly candles: boolean;
  readonly unresolved: string | null;
  readonly listed: boolean;
}

/** What to say instead of candles; null when there are candles, or when they may come in a moment. */
export function emptinessOf({ series, history, candles, unresolved, listed }: EmptyFacts): Emptiness | null {
  if (candles) return null;
  if (series === null) return listed ? withoutSeries(unresolved) : null;
  switch (history.kind) {
    case "refused":
      return { title: `No candles of ${series.id}`, text: `The service refuses it: ${withStop(history.reason)}`, choose: true };
    case "unreachable":
      return {
        title: "The history cannot be loaded",
        text: `${withStop(history.reason)} The page retries automatically.`,
        choose: false,
      };
    case "ready":
      return {
        title: "No candles yet",
        text: `The service has stored no candles of ${series.id} yet. New candles appear here as they arrive.`,
        choose: true,
      };
    default:
      return null;
  }
}

function withoutSeries(unresolved: string | null): Emptiness {
  if (unresolved === null) {
    return {
      title: "No series yet",
      text: "The whitelist of this service is empty. Choose a series to see its stored candles.",
      choose: true,
    };
  }
  return {
    title: `No series “${unresolved}”`,
    text: "The address names no series of this service. A series id reads exchange:market:BASE/QUOTE:timeframe, for example binance:spot:BTC/USDT:1m.",
    choose: true,
  };
}

function withStop(sentence: string): string {
  return /[.!?]$/u.test(sentence) ? sentence : `${sentence}.`;
}

export class Empty {
  readonly #root = element("empty", HTMLElement);
  readonly #title = element("empty-title", HTMLHeadingElement);
  readonly #text = element("empty-text", HTMLParagraphElement);
  readonly #choose = element("empty-choose", HTMLButtonElement);

  show(emptiness: Emptiness | null): void {
    this.#root.hidden = emptiness === null;
    if (emptiness === null) return;
    this.#title.textContent = emptiness.title;
    this.#text.textContent = emptiness.text;
    this.#choose.hidden = !emptiness.choose;
  }
}
