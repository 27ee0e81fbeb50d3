// PastFeed: the oldest candles of a series, shown instead of the newest. A series may be far longer than the page can
// hold, so the candles between are not loaded. As the reader scrolls on, newer candles are loaded until they meet the live
// store, which takes them in. Live candles go to the live store meanwhile.

import type { Answer, Ports } from "./ports.ts";
import type { Candle, Series } from "./series.ts";
import { type Change, SeriesStore } from "./store.ts";
import { historyPath, type HistoryPage, parseHistory } from "./wire.ts";

/** Delay before newer candles are requested again after a failure, and at the end of the stored ones, in milliseconds. */
const RETRY_MS = 3_000;

export interface PastEvents {
  /** The oldest candles are loaded, and `store` holds them. */
  opened(): void;
  changed(change: Change): void;
  /** The live store took the candles in. `opening`: they were not shown before. */
  joined(opening: boolean): void;
}

/** The oldest candles of a series, and the live store that they will join. */
interface Opened {
  readonly series: Series;
  readonly live: SeriesStore;
  readonly store: SeriesStore;
}

export class PastFeed {
  #opened: Opened | null = null;
  #inFlight = false;
  #notBefore = Number.NEGATIVE_INFINITY;
  // Counts openings and ends: an answer to an earlier one is discarded.
  #load = 0;

  constructor(
    private readonly ports: Pick<Ports, "get" | "now">,
    private readonly events: PastEvents,
  ) {}

  /** The candles that are shown instead of the live ones; null while the live ones are shown. */
  get store(): SeriesStore | null {
    return this.#opened?.store ?? null;
  }

  /** Shows the first stored candles of `series`. `live`: the store of its newest candles. */
  async open(series: Series, live: SeriesStore): Promise<void> {
    if (this.#inFlight) return;
    const page = await this.#request(series, 0);
    if (page === null || page.candles.length === 0) return;
    const store = new SeriesStore(series.timeframe);
    store.replace(page.candles);
    store.olderExists = false;
    store.declareGaps(page.gaps);
    this.#opened = { series, live, store };
    if (!this.#join(this.#opened, true)) this.events.opened();
  }

  /** Requests candles newer than the newest of the store. */
  async loadNewer(): Promise<void> {
    const opened = this.#opened;
    const since = opened?.store.lastClosed ?? null;
    if (opened === null || since === null || this.#inFlight || this.ports.now() < this.#notBefore) return;
    const page = await this.#request(opened.series, since);
    if (page === null || opened !== this.#opened) return;
    if (page.candles.length === 0) this.#notBefore = this.ports.now() + RETRY_MS;
    const change = opened.store.close(page.candles, true);
    opened.store.declareGaps(page.gaps);
    if (!this.#join(opened, false)) this.events.changed(change);
  }

  /** Takes candles that correct stored ones, or fill gaps. */
  revised(candles: readonly Candle[]): void {
    const { store } = this;
    if (store === null) return;
    const { first, lastClosed } = store;
    if (first === null || lastClosed === null) return;
    this.events.changed(store.close(candles.filter(({ time }) => time >= first && time <= lastClosed), true));
  }

  /** The live candles are shown again. */
  end(): void {
    this.#load += 1;
    this.#opened = null;
    this.#inFlight = false;
    this.#notBefore = Number.NEGATIVE_INFINITY;
  }

  /** Hands the candles to the live store if both meet; whether they do. */
  #join({ live, store }: Opened, opening: boolean): boolean {
    const { first, lastClosed } = store;
    if (lastClosed === null || live.first === null || lastClosed < live.first) return false;
    live.prepend(store.barsFrom(0).map(({ candle }) => candle));
    live.declareGaps(store.gaps);
    // No candle is older, unless the live store had no room for the oldest.
    live.olderExists = live.first !== first;
    this.end();
    this.events.joined(opening);
    return true;
  }

  async #request(series: Series, since: number): Promise<HistoryPage | null> {
    const load = this.#load;
    this.#inFlight = true;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(historyPath(series, { since }));
    } catch {
      // Unreachable: the lamp shows it, and the reader retries by scrolling.
    }
    if (load !== this.#load) return null;
    this.#inFlight = false;
    if (answer?.status === 200) {
      this.#notBefore = Number.NEGATIVE_INFINITY;
      return parseHistory(answer.body);
    }
    this.#notBefore = this.ports.now() + RETRY_MS;
    return null;
  }
}
