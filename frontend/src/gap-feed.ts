// GapFeed: asks again what is known of the holes that are shown. The service tells the state of a hole when it tells the
// candle behind it; what becomes of the hole later is learnt from the counts in the health of the series.

import type { Answer, Ports } from "./feed.ts";
import type { Series } from "./series.ts";
import type { GapCounts } from "./status.ts";
import type { Gap, SeriesStore } from "./store.ts";
import { parseHistory } from "./wire.ts";

/** Holes asked about at a time, the newest first. */
export const MOST_ASKED = 10;

export class GapFeed {
  #counts: GapCounts | null = null;
  #asking = false;
  // Counts series; an answer about an earlier one is out of date.
  #load = 0;

  /** `changed`: a hole of that store has another state now. */
  constructor(
    private readonly ports: Pick<Ports, "get">,
    private readonly changed: (store: SeriesStore) => void,
  ) {}

  /** Another series is shown. */
  clear(): void {
    this.#load += 1;
    this.#counts = null;
    this.#asking = false;
  }

  /** The health of `series` counts its missing candles like this. */
  async counted(series: Series, store: SeriesStore, counts: GapCounts): Promise<void> {
    const before = this.#counts;
    const same = before !== null && JSON.stringify(before) === JSON.stringify(counts);
    // Unless one was not explained when it was shown, what a hole is does not change while the counts stay.
    if (this.#asking || same) return;
    const open = store.gaps.filter((gap) => gap.state !== "confirmed_empty").slice(-MOST_ASKED);
    this.#counts = counts;
    if (open.length === 0) return;
    this.#asking = true;
    const load = this.#load;
    for (const gap of open.toReversed()) {
      const gaps = await this.#ask(series, gap);
      if (load !== this.#load) return;
      if (gaps === null) this.#counts = null; // asked again with the next health
      else if (store.declareGaps(gaps)) this.changed(store);
    }
    this.#asking = false;
  }

  /** The candles on both sides of the hole bring what is known of it; null without an answer. */
  async #ask(series: Series, { to }: Gap): Promise<ReturnType<typeof parseHistory>["gaps"] | null> {
    const path = `/api/market/candles?series_id=${encodeURIComponent(series.id)}&before=${to + 1}&limit=2`;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(path);
    } catch {
      return null; // not reachable: the lamp says so
    }
    return answer.status === 200 ? parseHistory(answer.body).gaps : null;
  }
}
