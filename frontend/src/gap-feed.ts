// GapFeed: asks for the states of shown gaps again. The service sends the state of a gap with the candle behind the gap;
// a later change of the state shows in the counts of the series' health.

import type { Answer, Ports } from "./ports.ts";
import type { Series } from "./series.ts";
import type { GapCounts } from "./status.ts";
import type { Gap, SeriesStore } from "./store.ts";
import { type DeclaredGap, historyPath, parseHistory } from "./wire.ts";

/** Most gaps asked for after one change of the counts, the newest first. */
export const MAX_REQUESTS = 10;

export class GapFeed {
  #counts: GapCounts | null = null;
  #inFlight = false;
  // Counts series: an answer about an earlier one is discarded.
  #load = 0;

  /** `changed`: a gap of that store has another state. */
  constructor(
    private readonly ports: Pick<Ports, "get">,
    private readonly changed: (store: SeriesStore) => void,
  ) {}

  /** Another series is shown. */
  clear(): void {
    this.#load += 1;
    this.#counts = null;
    this.#inFlight = false;
  }

  /** Takes the counts of missing candles in the health of `series`, and asks for open gaps of `store` if they changed. */
  async counted(series: Series, store: SeriesStore, counts: GapCounts): Promise<void> {
    const before = this.#counts;
    const same = before !== null && JSON.stringify(before) === JSON.stringify(counts);
    if (this.#inFlight || same) return;
    const open = store.gaps.filter((gap) => gap.state !== "confirmed_empty").slice(-MAX_REQUESTS);
    this.#counts = counts;
    if (open.length === 0) return;
    this.#inFlight = true;
    const load = this.#load;
    for (const gap of open.toReversed()) {
      const gaps = await this.#request(series, gap);
      if (load !== this.#load) return;
      if (gaps === null) this.#counts = null; // retried with the next health
      else if (store.declareGaps(gaps)) this.changed(store);
    }
    this.#inFlight = false;
  }

  /** The gaps between the candles on both sides of the gap; null without an answer. */
  async #request(series: Series, { to }: Gap): Promise<readonly DeclaredGap[] | null> {
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(historyPath(series, { before: to + 1, limit: 2 }));
    } catch {
      return null; // unreachable: the lamp shows it
    }
    return answer.status === 200 ? parseHistory(answer.body).gaps : null;
  }
}
