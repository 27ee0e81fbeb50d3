// Navigation: which series is shown, by the address bar, the picker, the last visit, or the whitelist, in this order.

import { resolve } from "./address.ts";
import type { Directory } from "./directory.ts";
import type { Feed } from "./feed.ts";
import { rememberedSeries } from "./memory.ts";
import type { Series } from "./series.ts";

/** The part of the address that names the series. */
export interface AddressBar {
  /** The text after `series=`; null when the address has none. */
  text(): string | null;
  /** Names the series in a new entry of the browser's history. */
  push(series: Series): void;
  /** Names the series in the present entry. */
  replace(series: Series): void;
}

export class Navigation {
  #unresolved: string | null = null;

  constructor(
    private readonly bar: AddressBar,
    private readonly feed: Feed,
    private readonly directory: Directory,
  ) {}

  /** The text of an address that names no series; null when there is none. */
  get unresolved(): string | null {
    return this.#unresolved;
  }

  /** The reader chose this series. */
  choose(series: Series): void {
    if (series.id === this.feed.series?.id) return;
    this.bar.push(series);
    this.feed.choose(series);
  }

  /** Shows the series that the address names; before the whitelist is loaded, only a whole series id can be resolved. */
  followAddress(): void {
    const text = this.bar.text();
    const named = text === null ? rememberedSeries() : resolve(text, this.directory.whitelist ?? [], this.directory.derived);
    this.#unresolved = named === null ? text : null;
    const { series } = this.feed;
    if (named !== null && named.id !== series?.id) this.feed.choose(named);
    // The candles of another series would contradict the address.
    else if (this.#unresolved !== null && series !== null) this.feed.choose(null);
  }

  /** The whitelist was loaded: a text may be resolved now; without one the first series is shown. */
  whitelistLoaded(): void {
    if (this.feed.series !== null) return;
    this.followAddress();
    const first = this.directory.whitelist?.[0];
    if (this.feed.series === null && this.#unresolved === null && first !== undefined) this.feed.choose(first);
  }

  /** This series is shown: the address takes the name that the service gives it. */
  shown(series: Series): void {
    this.#unresolved = null;
    if (this.bar.text() !== series.id) this.bar.replace(series);
  }
}
