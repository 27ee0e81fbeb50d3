import { beforeEach, describe, expect, test } from "vitest";
import { Directory } from "../src/directory.ts";
import { Feed } from "../src/feed.ts";
import { type AddressBar, Navigation } from "../src/navigation.ts";
import type { Series } from "../src/series.ts";
import { BTC, ETH, seriesOf, World } from "./support.ts";

/** The address bar of a browser, and its history. */
class Bar implements AddressBar {
  readonly entries: (string | null)[] = [null];
  #at = 0;

  text(): string | null {
    return this.entries[this.#at] ?? null;
  }

  push({ id }: Series): void {
    this.#at += 1;
    this.entries.splice(this.#at, Number.POSITIVE_INFINITY, id);
  }

  replace({ id }: Series): void {
    this.entries[this.#at] = id;
  }

  back(): void {
    this.#at -= 1;
  }
}

class NavigationWorld extends World {
  readonly bar = new Bar();
  readonly feed = new Feed(this.ports);
  readonly directory = new Directory(this.ports);
  readonly navigation = new Navigation(this.bar, this.feed, this.directory);

  constructor() {
    super();
    this.directory.bind(() => this.navigation.whitelistLoaded());
    this.feed.bind({
      connection: () => undefined,
      series: () => {
        if (this.feed.series !== null) this.navigation.shown(this.feed.series);
      },
      history: () => undefined,
      bars: () => undefined,
      closed: () => undefined,
      exchanged: () => undefined,
      lamp: () => undefined,
      notices: () => undefined,
    });
  }

  async loadWhitelist(...ids: string[]): Promise<void> {
    this.directory.load();
    await this.requestTo("/whitelist").answer(200, { series_ids: ids, derived_base_timeframe: "1m", derived_timeframes: ["5m"] });
  }
}

let world: NavigationWorld;
beforeEach(() => {
  world = new NavigationWorld();
});

describe("the shown series", () => {
  test("is the one that the address names, at once", () => {
    world.bar.replace(seriesOf(ETH));
    world.navigation.followAddress();
    expect(world.feed.series?.id).toBe(ETH);
  });

  test("is the first of the whitelist without a name in the address", async () => {
    world.navigation.followAddress();
    expect(world.feed.series).toBeNull();
    await world.loadWhitelist(BTC, ETH);
    expect([world.feed.series?.id, world.bar.entries]).toEqual([BTC, [BTC]]);
  });

  test("is the one of a symbol in the address once the whitelist is loaded", async () => {
    world.bar.entries[0] = "ethusdt 5m";
    world.navigation.followAddress();
    expect([world.feed.series, world.navigation.unresolved]).toEqual([null, "ethusdt 5m"]);
    await world.loadWhitelist(BTC, ETH);
    const id = "binance:spot:ETH/USDT:5m";
    expect([world.feed.series?.id, world.navigation.unresolved, world.bar.entries]).toEqual([id, null, [id]]);
  });

  test("is none when the address names none, also after the way back to such an address", async () => {
    world.bar.entries[0] = "NOSUCH";
    world.navigation.followAddress();
    await world.loadWhitelist(BTC, ETH);
    expect([world.feed.series, world.navigation.unresolved]).toEqual([null, "NOSUCH"]);
    world.navigation.choose(seriesOf(BTC));
    expect([world.feed.series?.id, world.navigation.unresolved]).toEqual([BTC, null]);
    world.bar.back();
    world.navigation.followAddress();
    expect([world.feed.series, world.navigation.unresolved]).toEqual([null, "NOSUCH"]);
  });

  test("is in the address, with one entry for each choice", () => {
    world.navigation.choose(seriesOf(BTC));
    world.navigation.choose(seriesOf(BTC));
    world.navigation.choose(seriesOf(ETH));
    expect(world.bar.entries).toEqual([null, BTC, ETH]);
    world.bar.back();
    world.navigation.followAddress();
    expect([world.feed.series?.id, world.bar.entries]).toEqual([BTC, [null, BTC, ETH]]);
  });
});

describe("the whitelist", () => {
  test("is loaded again with backoff until the service answers", async () => {
    world.directory.load();
    await world.requestTo("/whitelist").answer(503, { detail: "starting" });
    world.pass(400);
    await world.requestTo("/whitelist").fail();
    expect(world.requestsTo("/whitelist")).toHaveLength(2);
    world.pass(400);
    expect(world.requestsTo("/whitelist")).toHaveLength(2);
    world.pass(400);
    await world.requestTo("/whitelist").answer(200, { series_ids: [BTC] });
    expect(world.directory.whitelist?.map(({ id }) => id)).toEqual([BTC]);
    world.pass(60_000);
    expect(world.requestsTo("/whitelist")).toHaveLength(3);
  });

  test("is not asked for again where the service has none", async () => {
    world.directory.load();
    await world.requestTo("/whitelist").answer(404, { detail: "nothing here", code: "not_found" });
    world.pass(60_000);
    expect(world.requestsTo("/whitelist")).toHaveLength(1);
    world.directory.load();
    expect(world.requestsTo("/whitelist")).toHaveLength(2);
  });

  test("is loaded by one request at a time", () => {
    world.directory.load();
    world.directory.load();
    expect(world.requestsTo("/whitelist")).toHaveLength(1);
  });
});
