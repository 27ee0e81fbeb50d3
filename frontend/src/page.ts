// Page: composes the parts, each made before those that need it, and passes on what one part reports to those that show
// it. The page holds no fact itself: it asks the feed, the drawings, the directory and the navigation.

import { Banners } from "./banners.ts";
import { CandleChart } from "./chart.ts";
import { Directory } from "./directory.ts";
import { element } from "./dom.ts";
import { parseCatalogue } from "./drawing.ts";
import { DrawingFeed } from "./drawing-feed.ts";
import { Empty, emptinessOf } from "./empty.ts";
import { Feed, type Place } from "./feed.ts";
import { Foot } from "./foot.ts";
import { formatPrice } from "./format.ts";
import { Header } from "./header.ts";
import { onKeys, onSearchKeys } from "./keys.ts";
import type { Lamp } from "./lamp.ts";
import { LayersMenu } from "./layers-menu.ts";
import { Legend } from "./legend.ts";
import { forgetSeries, rememberSeries } from "./memory.ts";
import { type AddressBar, Navigation } from "./navigation.ts";
import { Picker } from "./picker.ts";
import type { Ports } from "./ports.ts";
import { Resource } from "./resource.ts";
import { timeframesOf } from "./search.ts";
import { StatusPanel } from "./status-panel.ts";
import { onSystemTheme, readPalette, remPx, switchTheme } from "./theme.ts";

/** Least width of a chart with room for panes that the reader did not ask for, in rem. */
const ROOMY_REM = 40;

export class Page {
  readonly #root = document.documentElement;
  readonly #chartElement = element("chart", HTMLDivElement);
  readonly #latest = element("latest", HTMLButtonElement);
  readonly #statusPanel = new StatusPanel();
  readonly #legend = new Legend();
  readonly #empty = new Empty();
  readonly #foot = new Foot();
  readonly #layersMenu = new LayersMenu();

  readonly #feed: Feed;
  readonly #drawings: DrawingFeed;
  readonly #directory: Directory;
  readonly #navigation: Navigation;
  readonly #catalogue: Resource;
  readonly #banners: Banners;
  readonly #header: Header;
  readonly #picker: Picker;
  readonly #chart: CandleChart;
  // Open time of the bar under the crosshair.
  #pointed: number | null = null;

  constructor(ports: Ports, addressBar: AddressBar) {
    const feed = new Feed(ports);
    const directory = new Directory(ports);
    const navigation = new Navigation(addressBar, feed, directory);
    this.#feed = feed;
    this.#directory = directory;
    this.#navigation = navigation;
    this.#drawings = new DrawingFeed(ports);
    this.#catalogue = new Resource(ports, "/api/factor/catalog", (body) => this.#catalogueLoaded(body));
    this.#banners = new Banners(ports, feed);
    this.#header = new Header((series) => navigation.choose(series));
    this.#picker = new Picker((series) => navigation.choose(series));
    this.#chart = new CandleChart(this.#chartElement, readPalette());
    this.#bindParts();
    this.#bindReader();
  }

  start(): void {
    this.#publishState();
    this.#showLamp(this.#feed.lamp);
    this.#feed.start();
    this.#navigation.followAddress();
    this.#directory.load();
  }

  // ---- reports of the parts --------------------------------------------------------------------------------------

  #bindParts(): void {
    this.#feed.bind({
      connection: () => this.#connectionChanged(),
      series: () => this.#seriesChanged(),
      history: () => this.#historyChanged(),
      bars: (change) => this.#chart.changed(change),
      closed: (revised) => this.#drawings.candles(this.#feed.live.lastClosed, revised),
      exchanged: (place) => this.#storeExchanged(place),
      lamp: (before) => this.#showLamp(before),
      notices: () => this.#banners.showNotices(),
    });
    this.#drawings.bind({
      drawn: () => {
        this.#layersMenu.include([...new Set(this.#drawings.store.drawings.map(({ feature }) => feature))]);
        this.#showDrawings();
      },
      state: () => {
        const { state } = this.#drawings;
        this.#banners.showDrawings(state);
        this.#root.dataset["drawing"] = state.kind;
      },
    });
    this.#directory.bind(() => {
      this.#picker.setWhitelist(this.#directory.whitelist ?? []);
      this.#navigation.whitelistLoaded();
      this.#showHeader();
      this.#showEmpty();
    });
    this.#layersMenu.bind(() => this.#showDrawings());
    this.#chart.bind({
      pointed: (time) => {
        this.#pointed = time;
        this.#showLegend();
      },
      nearStart: () => this.#feed.loadOlder(),
      nearEnd: () => this.#feed.loadNewer(),
      viewed: (from, to) => {
        const { first } = this.#feed.shown;
        if (first !== null) this.#drawings.view({ from, to, first });
        this.#root.dataset["viewFrom"] = String(from); // for tests, as in `#publish`
        this.#root.dataset["viewTo"] = String(to);
      },
      atEnd: () => this.#showLatest(),
      drawn: () => this.#showStore(),
    });
  }

  #connectionChanged(): void {
    if (this.#feed.connection.phase === "live") {
      this.#directory.load();
      this.#catalogue.load();
    }
    this.#banners.showConnection();
    this.#publishState();
    this.#showEmpty();
  }

  #seriesChanged(): void {
    const { series, live } = this.#feed;
    this.#pointed = null;
    if (series !== null) this.#navigation.shown(series);
    this.#chart.show(live);
    this.#drawings.follow(series);
    this.#showHeader();
  }

  #historyChanged(): void {
    const { series, history } = this.#feed;
    if (history.kind === "ready") this.#drawings.reload();
    if (series !== null && history.kind === "ready") rememberSeries(series);
    if (series !== null && history.kind === "refused") forgetSeries(series);
    this.#showEmpty();
  }

  #storeExchanged(place: Place): void {
    if (this.#feed.showsPast) this.#chart.showPast(this.#feed.shown);
    else {
      this.#chart.showLive(this.#feed.live);
      if (place === "start") this.#chart.goToStart();
      if (place === "end") this.#chart.goToEnd();
    }
    this.#showStore();
  }

  #catalogueLoaded(body: unknown): void {
    const groups = parseCatalogue(body);
    if (groups.length === 0) return;
    this.#layersMenu.offer(groups, this.#roomy);
    this.#showDrawings();
    this.#drawings.enable();
  }

  // ---- the reader ------------------------------------------------------------------------------------------------

  #bindReader(): void {
    const openPicker = (): void => {
      this.#picker.open(this.#feed.series);
      this.#directory.load();
    };
    const showOldest = (): void => {
      if (!this.#feed.showOldest()) this.#chart.goToStart();
    };
    const showNewest = (): void => {
      if (!this.#feed.showNewest()) this.#chart.goToEnd();
    };
    const chart = this.#chart;
    onSearchKeys(openPicker, () => this.#picker.isOpen);
    onKeys(this.#chartElement, {
      ArrowLeft: () => chart.scroll(-0.05),
      ArrowRight: () => chart.scroll(0.05),
      PageUp: () => chart.scroll(-0.8),
      PageDown: () => chart.scroll(0.8),
      ArrowUp: () => chart.zoom(0.8),
      ArrowDown: () => chart.zoom(1.25),
      "+": () => chart.zoom(0.8),
      "-": () => chart.zoom(1.25),
      Home: showOldest,
      End: showNewest,
    });
    element("choose", HTMLButtonElement).addEventListener("click", openPicker);
    element("empty-choose", HTMLButtonElement).addEventListener("click", openPicker);
    this.#latest.addEventListener("click", showNewest);
    element("gaps", HTMLButtonElement).addEventListener("click", () => {
      const newest = this.#feed.shown.gaps.at(-1);
      if (newest !== undefined) chart.goToTime(newest.to);
    });
    element("theme", HTMLButtonElement).addEventListener("click", () => {
      switchTheme();
      chart.setPalette(readPalette());
    });
    onSystemTheme(() => chart.setPalette(readPalette()));
    element("licences", HTMLButtonElement).addEventListener("click", async () => {
      const { showLicences } = await import("./licences.ts");
      showLicences();
    });
    window.addEventListener("popstate", () => this.#navigation.followAddress());
    window.addEventListener("online", () => {
      this.#feed.retry();
      this.#feed.visible();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#feed.visible();
    });
    // The legend covers a part of the chart: candles stay below it where there is room, and always on a narrow page.
    new ResizeObserver(() => {
      if (this.#chartElement.clientHeight > 0) chart.setHeadroom((this.#roomy ? 8 : 10.5) * remPx(), this.#roomy ? 0.3 : 0.4);
    }).observe(this.#chartElement);
    // The chart measures its texts when it draws them: again, once the typeface is loaded.
    void document.fonts.ready.then(() => chart.setPalette(readPalette()));
  }

  get #roomy(): boolean {
    return this.#chartElement.clientWidth >= ROOMY_REM * remPx();
  }

  // ---- showing ---------------------------------------------------------------------------------------------------

  #showHeader(): void {
    const { series } = this.#feed;
    const { whitelist, derived } = this.#directory;
    this.#header.show(series, series === null ? [] : timeframesOf(series, whitelist ?? [], derived));
  }

  #showLamp(before: Lamp): void {
    const { lamp } = this.#feed;
    this.#statusPanel.show(lamp);
    this.#banners.showLamp();
    this.#chart.setStale(lamp.stale);
    this.#chartElement.classList.toggle("chart-stale", lamp.stale && (lamp.tone === "bad" || lamp.tone === "warn"));
    if (lamp.stale !== before.stale) this.#showLegend();
    this.#showTitle();
    this.#root.dataset["lamp"] = lamp.tone;
    this.#root.dataset["lampLabel"] = lamp.label;
    this.#root.dataset["age"] = String(lamp.age ?? "");
  }

  #showLegend(): void {
    const { shown, live, lamp } = this.#feed;
    this.#legend.show(shown, live, this.#pointed, this.#chart.decimals, lamp.stale, (time) => this.#chart.readingsAt(time));
  }

  #showTitle(): void {
    const { series, live, lamp } = this.#feed;
    const { last } = live;
    const name = series === null ? "" : `${series.symbol} ${series.timeframe} · `;
    const price = last === null || lamp.stale ? "" : `${formatPrice(last.candle.close, this.#chart.decimals)} `;
    const state = lamp.stale && series !== null ? `${lamp.label} · ` : "";
    const title = `${state}${price}${name}klinesync`;
    if (document.title !== title) document.title = title;
  }

  #showEmpty(): void {
    const { series, history, live } = this.#feed;
    const candles = live.count > 0 || live.lastForming !== null;
    const listed = this.#directory.whitelist !== null;
    this.#empty.show(emptinessOf({ series, history, candles, unresolved: this.#navigation.unresolved, listed }));
    this.#root.dataset["history"] = history.kind;
  }

  #showLatest(): void {
    this.#latest.hidden = !this.#feed.showsPast && this.#chart.atEnd;
  }

  #showDrawings(): void {
    this.#chart.showDrawings(this.#drawings.store, this.#layersMenu.layers);
  }

  #showStore(): void {
    this.#showLegend();
    this.#showEmpty();
    this.#showTitle();
    this.#showLatest();
    this.#foot.show(this.#feed.shown);
    this.#publish();
  }

  /** Data attributes of the root element, for tests and for the curious: nothing on the page reads them. */
  #publish(): void {
    const { series, live, shown } = this.#feed;
    const { store: drawings } = this.#drawings;
    const facts = {
      series: series?.id,
      candles: shown.count,
      first: shown.first,
      lastClosed: shown.lastClosed,
      lastForming: shown.lastForming,
      lastPrice: live.last?.candle.close,
      gaps: shown.gaps.length,
      gapStates: [...new Set(shown.gaps.map(({ state }) => state))].join(" "),
      olderExists: shown.olderExists,
      drawnPages: drawings.pages.size,
      drawnTo: drawings.to,
      drawings: drawings.drawings.filter(({ feature }) => this.#layersMenu.layers.visible(feature)).length,
      lines: this.#chart.lines,
    };
    for (const [name, value] of Object.entries(facts)) this.#root.dataset[name] = String(value ?? "");
  }

  #publishState(): void {
    const { phase, everLive, attempt } = this.#feed.connection;
    this.#root.dataset["state"] = phase === "live" ? "live" : everLive || attempt > 0 ? "reconnecting" : "connecting";
  }
}
