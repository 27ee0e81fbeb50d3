// PastFeed: the oldest candles of a series, shown in place of the newest. A series may be far longer than the page can
// hold, so the way from the newest candle to the first is not loaded. It goes on to newer candles as the reader comes to
// them, and joins the live history where it meets it. Live candles are taken meanwhile, beside it.

import type { Answer, Ports } from "./feed.ts";
import { PAGE_CANDLES } from "./feed.ts";
import type { Candle, Series } from "./series.ts";
import { type Change, SeriesStore } from "./store.ts";
import { type History, parseHistory } from "./wire.ts";

/** After a failure, and at the end of what is stored, newer candles are asked for again after this long. */
const AGAIN_MS = 3_000;

export interface PastEvents {
  /** The oldest candles are there, in this store of their own. */
  opened(store: SeriesStore): void;
  changed(change: Change): void;
  /** These candles are part of the live history now: they have been put before it. `opening`: they were not shown yet. */
  joined(opening: boolean): void;
}

export class PastFeed {
  #series: Series | null = null;
  #live = new SeriesStore("1m");
  #store: SeriesStore | null = null;
  #asking = false;
  #notBefore = Number.NEGATIVE_INFINITY;
  // Counts openings and ends; an answer from before is out of date.
  #load = 0;

  constructor(
    private readonly ports: Pick<Ports, "get" | "now">,
    private readonly events: PastEvents,
  ) {}

  /** What is shown in place of the live history; null while that is shown. */
  get store(): SeriesStore | null {
    return this.#store;
  }

  /** Show the first candles that are stored of `series`. `live`: its newest candles, as the page holds them. */
  async open(series: Series, live: SeriesStore): Promise<void> {
    if (this.#asking) return;
    this.#series = series;
    this.#live = live;
    const history = await this.#ask(0);
    const last = history?.candles.at(-1);
    if (history === null || last === undefined) return;
    const store = new SeriesStore(series.timeframe);
    store.replace(history.candles);
    store.olderExists = false;
    store.declareGaps(history.gaps);
    this.#store = store;
    if (!this.#joins(true)) this.events.opened(store);
  }

  /** The reader nears the newest of these candles. */
  async loadNewer(): Promise<void> {
    const store = this.#store;
    const since = store?.lastClosed ?? null;
    if (store === null || since === null || this.#asking || this.ports.now() < this.#notBefore) return;
    const history = await this.#ask(since);
    if (history === null || store !== this.#store) return;
    if (history.candles.length === 0) this.#notBefore = this.ports.now() + AGAIN_MS;
    const change = store.close(history.candles, true);
    store.declareGaps(history.gaps);
    if (!this.#joins(false)) this.events.changed(change);
  }

  /** Candles that correct or fill in what is shown. */
  revised(candles: readonly Candle[]): void {
    const store = this.#store;
    if (store === null) return;
    const { first, lastClosed } = store;
    if (first === null || lastClosed === null) return;
    this.events.changed(store.close(candles.filter(({ time }) => time >= first && time <= lastClosed), true));
  }

  /** The live history is shown again. */
  end(): void {
    this.#load += 1;
    this.#store = null;
    this.#asking = false;
    this.#notBefore = Number.NEGATIVE_INFINITY;
  }

  /** Put before the live history once they meet. */
  #joins(opening: boolean): boolean {
    const store = this.#store;
    const last = store?.lastClosed ?? null;
    const { first } = this.#live;
    if (store === null || last === null || first === null || last < first) return false;
    const reachesBack = store.first;
    this.#live.prepend(store.barsFrom(0).map(({ candle }) => candle));
    this.#live.declareGaps(store.gaps);
    // Nothing is older, unless the oldest found no room.
    this.#live.olderExists = this.#live.first !== reachesBack;
    this.end();
    this.events.joined(opening);
    return true;
  }

  async #ask(since: number): Promise<History | null> {
    const load = this.#load;
    this.#asking = true;
    let answer: Answer | null = null;
    try {
      const id = encodeURIComponent(this.#series?.id ?? "");
      answer = await this.ports.get(`/api/market/candles?series_id=${id}&since=${since}&limit=${PAGE_CANDLES}`);
    } catch {
      // Not reachable: the connection says so, and the reader asks again by scrolling.
    }
    if (load !== this.#load) return null;
    this.#asking = false;
    const answered = answer?.status === 200;
    this.#notBefore = answered ? Number.NEGATIVE_INFINITY : this.ports.now() + AGAIN_MS;
    if (answered) return parseHistory(answer?.body);
    return null;
  }
}
