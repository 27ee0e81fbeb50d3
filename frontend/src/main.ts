// The page: puts the feed, the chart and the controls together.

import "./page.css";
import { browserPorts } from "./browser.ts";
import { CandleChart } from "./chart.ts";
import { type Connection, INITIAL } from "./connection.ts";
import { element } from "./dom.ts";
import { parseCatalogue } from "./drawing.ts";
import { DrawingFeed, type DrawingState } from "./drawing-feed.ts";
import { DrawingStore } from "./drawing-store.ts";
import { Feed, type HistoryState, type Notice } from "./feed.ts";
import { formatClock, formatPrice, formatTime, plural } from "./format.ts";
import { type Choices, decodeChoices, encodeChoices, Layers } from "./layers.ts";
import { LayersMenu } from "./layers-menu.ts";
import { describeGap, GAP_STATES, Legend } from "./legend.ts";
import { exchangeName, marketName, Picker } from "./picker.ts";
import { readable, timeframesOf } from "./search.ts";
import { parseSeries, type Series } from "./series.ts";
import { SeriesStore } from "./store.ts";
import { applyStoredTheme, onSystemTheme, readPalette, remPx, switchTheme } from "./theme.ts";
import { type Derived, parseDerived, parseWhitelist } from "./wire.ts";

const LAST_SERIES_KEY = "klinesync.series";
const LAYERS_KEY = "klinesync.layers";
/** A page less wide than this has no room for panes that nobody asked for. */
const ROOMY_REM = 40;
/** A break shorter than this is shown in the badge alone. */
const BANNER_AFTER_MS = 800;

applyStoredTheme();

const root = document.documentElement;
const ui = {
  chart: element("chart", HTMLDivElement),
  choose: element("choose", HTMLButtonElement),
  symbol: element("choose-symbol", HTMLSpanElement),
  timeframe: element("choose-timeframe", HTMLSpanElement),
  tags: element("choose-tags", HTMLSpanElement),
  timeframes: element("timeframes", HTMLDivElement),
  status: element("status", HTMLDivElement),
  statusText: element("status-text", HTMLSpanElement),
  theme: element("theme", HTMLButtonElement),
  offline: element("offline", HTMLDivElement),
  offlineText: element("offline-text", HTMLSpanElement),
  offlineRetry: element("offline-retry", HTMLButtonElement),
  notices: {
    stream: element("notice-stream", HTMLParagraphElement),
    subscription: element("notice-subscription", HTMLParagraphElement),
    progress: element("notice-progress", HTMLParagraphElement),
  },
  drawings: element("notice-drawings", HTMLParagraphElement),
  empty: element("empty", HTMLElement),
  emptyTitle: element("empty-title", HTMLHeadingElement),
  emptyText: element("empty-text", HTMLParagraphElement),
  emptyChoose: element("empty-choose", HTMLButtonElement),
  latest: element("latest", HTMLButtonElement),
  extent: element("extent", HTMLSpanElement),
  extentSince: element("extent-since", HTMLSpanElement),
  gaps: element("gaps", HTMLButtonElement),
  licences: element("licences", HTMLButtonElement),
};

let connection: Connection = INITIAL;
let history: HistoryState = { kind: "none" };
let series: Series | null = null;
let store = new SeriesStore("1m");
/** null until the service has told it. */
let whitelist: Series[] | null = null;
let derived: Derived = { base: null, timeframes: [] };
let pointed: number | null = null;
let drawings = new DrawingStore();
let drawingState: DrawingState = { kind: "none" };
let layers = new Layers();

const chart = new CandleChart(ui.chart, readPalette(), {
  pointed: (time) => {
    pointed = time;
    showLegend();
  },
  nearStart: () => void feed.loadOlder(),
  viewed: (from) => {
    root.dataset["viewFrom"] = String(from); // for tests, as the facts below
  },
  atEnd: (atEnd) => {
    ui.latest.hidden = atEnd;
  },
  drawn: showStore,
});
const legend = new Legend();
const picker = new Picker(choose);
const layersMenu = new LayersMenu((keys, visible) => {
  showLayers(layers.choose(keys, visible));
  rememberChoices(layers.choices);
});
const drawingFeed = new DrawingFeed(browserPorts, {
  drawn: (itsStore) => {
    drawings = itsStore;
    showLayers(layers.knowing([...new Set(drawings.drawings.map((one) => one.feature))]));
  },
  state: (state) => {
    drawingState = state;
    showDrawingState();
  },
});
const feed = new Feed(browserPorts, {
  connection: (now) => {
    const wasLive = connection.phase === "live";
    connection = now;
    if (now.phase === "live" && !wasLive) {
      void loadWhitelist();
      void loadCatalogue();
    }
    showConnection();
  },
  series: (named, itsStore) => {
    series = named;
    store = itsStore;
    pointed = null;
    chart.show(store);
    drawingFeed.follow(named);
    // A link, or another spelling of the same series: the address takes the service's name without a new entry.
    if (seriesOfAddress()?.id !== named.id) window.history.replaceState(null, "", addressOf(named));
    remember(named);
    showSeries();
  },
  history: (state) => {
    history = state;
    if (state.kind === "ready") drawingFeed.reload();
    showEmpty();
  },
  changed: (change) => {
    chart.changed(change);
    const { lastClosed } = store;
    const revised = change.kind === "tail" && lastClosed !== null && change.from < lastClosed;
    drawingFeed.candles(store.count, lastClosed, revised);
  },
  notice: ({ key, text }: Notice) => {
    ui.notices[key].hidden = text === null;
    ui.notices[key].textContent = text;
  },
});

// ---- what is shown -----------------------------------------------------------------------------------------------

function isStale(): boolean {
  return connection.phase !== "live";
}

function showLegend(): void {
  legend.show(store, pointed, chart.decimals, isStale(), (time) => chart.readingsAt(time));
}

function showLayers(chosen: Layers): void {
  layers = chosen;
  layersMenu.show(layers);
  chart.showDrawings(drawings, layers);
}

function showDrawingState(): void {
  ui.drawings.hidden = drawingState.kind !== "behind" && drawingState.kind !== "refused";
  ui.drawings.textContent =
    drawingState.kind === "refused"
      ? `No drawings: ${drawingState.why}`
      : "Indicators and drawings are catching up with the candles.";
  root.dataset["drawing"] = drawingState.kind;
}

function showStore(): void {
  showLegend();
  showEmpty();
  const { first, last } = store;
  const { timeframe } = store;
  ui.extent.textContent = first === null ? "" : plural(store.count, "candle");
  ui.extentSince.textContent = first === null ? "" : ` since ${formatTime(first, timeframe)}`;
  const { gaps } = store;
  const newest = gaps.at(-1);
  ui.gaps.hidden = newest === undefined;
  if (newest !== undefined) {
    const missing = gaps.reduce((sum, gap) => sum + gap.missing, 0);
    const state = gaps.every((gap) => gap.state === newest.state) ? `: ${GAP_STATES[newest.state]}` : "";
    ui.gaps.textContent = `${plural(gaps.length, "gap")}, ${plural(missing, "candle")} missing${state}`;
    ui.gaps.title = `${describeGap(newest, timeframe)}. Go there.`;
  }
  document.title =
    series === null || last === null
      ? "klinesync"
      : `${formatPrice(last.candle.close, chart.decimals)} ${series.symbol} ${series.timeframe} · klinesync`;

  // For tests and for the curious; nothing on the page reads these.
  const facts = {
    series: series?.id,
    candles: store.count,
    first: store.first,
    lastClosed: store.lastClosed,
    lastForming: store.lastForming,
    lastPrice: last?.candle.close,
    gaps: gaps.length,
    olderExists: store.olderExists,
    drawnTo: drawings.to,
    drawings: drawings.drawings.filter((one) => layers.visible(one.feature)).length,
    lines: chart.lines,
  };
  for (const [name, value] of Object.entries(facts)) root.dataset[name] = String(value ?? "");
}

function showConnection(): void {
  const { phase, everLive, downSince } = connection;
  const state = phase === "live" ? "live" : everLive || connection.attempt > 0 ? "reconnecting" : "connecting";
  root.dataset["state"] = state;
  ui.status.dataset["phase"] = state;
  ui.statusText.textContent = { live: "Live", reconnecting: "Not connected", connecting: "Connecting" }[state];
  ui.chart.classList.toggle("chart-stale", state === "reconnecting");
  chart.setStale(isStale());
  showLegend();

  const down = downSince === null ? 0 : Date.now() - downSince;
  const banner = state === "reconnecting" && (down >= BANNER_AFTER_MS || !ui.offline.hidden);
  ui.offline.hidden = !banner;
  if (banner && downSince !== null) {
    const trying = phase === "waiting" ? "Trying again by itself." : "Trying now.";
    ui.offlineText.textContent = `Not connected since ${formatClock(downSince)} UTC. ${trying}`;
    ui.offlineRetry.hidden = phase !== "waiting";
  }
  if (state === "reconnecting" && !banner) setTimeout(showConnection, BANNER_AFTER_MS);
  showEmpty();
}

function showSeries(): void {
  if (series === null) return;
  ui.symbol.textContent = series.symbol;
  ui.tags.textContent = `${marketName(series.market)} · ${exchangeName(series.exchange)}`;
  ui.choose.setAttribute("aria-label", `${series.id}. Choose another series`);
  const current = series;
  const timeframes = timeframesOf(current, whitelist ?? [], derived);
  ui.timeframes.hidden = timeframes.length < 2;
  ui.timeframe.hidden = timeframes.length > 1;
  ui.timeframe.textContent = current.timeframe;
  ui.timeframes.replaceChildren(
    ...timeframes.map((other) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = other.timeframe;
      button.setAttribute("aria-pressed", String(other.id === current.id));
      button.addEventListener("click", () => choose(other));
      return button;
    }),
  );
  ui.timeframes.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** What to say instead of candles; null when there are some. */
function emptiness(): { readonly title: string; readonly text: string; readonly choose: boolean } | null {
  if (store.count > 0 || store.lastForming !== null) return null;
  if (series === null) {
    if (whitelist === null) return null;
    return {
      title: "No series yet",
      text: "The whitelist of this service is empty. Choose a series, and the page shows what is stored of it.",
      choose: true,
    };
  }
  switch (history.kind) {
    case "refused":
      return { title: `No candles of ${series.id}`, text: `The service refuses it: ${history.why}.`, choose: true };
    case "unreachable":
      return { title: "The history cannot be loaded", text: `${history.why} It is asked for again by itself.`, choose: false };
    case "ready":
      return {
        title: "No candles yet",
        text: `The service has stored nothing of ${series.id} so far. Candles appear here as soon as they come.`,
        choose: true,
      };
    default:
      return null;
  }
}

function showEmpty(): void {
  const state = emptiness();
  root.dataset["history"] = history.kind;
  ui.empty.hidden = state === null;
  if (state === null) return;
  ui.emptyTitle.textContent = state.title;
  ui.emptyText.textContent = state.text.replace(/([.!?])\.$/, "$1");
  ui.emptyChoose.hidden = !state.choose;
}

// ---- what is chosen ----------------------------------------------------------------------------------------------

function seriesOfAddress(): Series | null {
  return parseSeries(new URLSearchParams(location.search).get("series") ?? "");
}

/** `/?series=binance:spot:BTC/USDT:1m`; both punctuation marks may stand in a query as they are. */
function addressOf(chosen: Series): string {
  const value = encodeURIComponent(chosen.id).replaceAll("%3A", ":").replaceAll("%2F", "/");
  return `${location.pathname}?series=${value}`;
}

function choose(chosen: Series): void {
  if (chosen.id === series?.id) return;
  window.history.pushState(null, "", addressOf(chosen));
  feed.choose(chosen);
}

function remember(chosen: Series): void {
  try {
    localStorage.setItem(LAST_SERIES_KEY, chosen.id);
  } catch {
    // Storage is off: the address still holds the choice.
  }
}

function remembered(): Series | null {
  try {
    return parseSeries(localStorage.getItem(LAST_SERIES_KEY) ?? "");
  } catch {
    return null;
  }
}

function rememberChoices(choices: Choices): void {
  try {
    localStorage.setItem(LAYERS_KEY, encodeChoices(choices));
  } catch {
    // Storage is off: the choice holds until the page is left.
  }
}

function rememberedChoices(): Choices {
  try {
    return decodeChoices(localStorage.getItem(LAYERS_KEY));
  } catch {
    return new Map();
  }
}

async function loadCatalogue(): Promise<void> {
  try {
    const { status, body } = await browserPorts.get("/api/factor/catalog");
    if (status !== 200) return;
    const groups = parseCatalogue(body);
    if (groups.length === 0) return;
    const roomy = ui.chart.clientWidth >= ROOMY_REM * remPx();
    showLayers(new Layers(groups, layers.choices.size > 0 ? layers.choices : rememberedChoices(), roomy));
  } catch {
    // Not reachable: asked again when the connection is live.
    return;
  }
  drawingFeed.enable();
}

async function loadWhitelist(): Promise<void> {
  try {
    const { status, body } = await browserPorts.get("/api/market/whitelist");
    if (status !== 200) return;
    whitelist = readable(parseWhitelist(body));
    derived = parseDerived(body);
  } catch {
    // Not reachable: asked again when the connection is live.
    return;
  }
  picker.setWhitelist(whitelist);
  const first = whitelist[0];
  if (series !== null) showSeries();
  else if (first !== undefined) feed.choose(first);
  else showEmpty();
}

function openPicker(): void {
  picker.open(series);
  void loadWhitelist();
}

// ---- the reader --------------------------------------------------------------------------------------------------

ui.choose.addEventListener("click", openPicker);
ui.emptyChoose.addEventListener("click", openPicker);
ui.latest.addEventListener("click", () => chart.goToEnd());
ui.offlineRetry.addEventListener("click", () => feed.retry());
ui.gaps.addEventListener("click", () => {
  const newest = store.gaps.at(-1);
  if (newest !== undefined) chart.goToTime(newest.to);
});
ui.theme.addEventListener("click", () => {
  switchTheme();
  chart.setPalette(readPalette());
});
onSystemTheme(() => chart.setPalette(readPalette()));

const CHART_KEYS: Readonly<Record<string, () => void>> = {
  ArrowLeft: () => chart.scroll(-0.05),
  ArrowRight: () => chart.scroll(0.05),
  PageUp: () => chart.scroll(-0.8),
  PageDown: () => chart.scroll(0.8),
  ArrowUp: () => chart.zoom(0.8),
  ArrowDown: () => chart.zoom(1.25),
  "+": () => chart.zoom(0.8),
  "-": () => chart.zoom(1.25),
  Home: () => chart.goToStart(),
  End: () => chart.goToEnd(),
};

ui.chart.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = CHART_KEYS[event.key];
  if (action === undefined) return;
  event.preventDefault();
  action();
});

document.addEventListener("keydown", (event) => {
  if (picker.isOpen) return;
  const search = event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey;
  const command = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey);
  if (!search && !command) return;
  event.preventDefault();
  openPicker();
});

window.addEventListener("online", () => {
  feed.retry();
  feed.seen();
});
window.addEventListener("popstate", () => {
  const chosen = seriesOfAddress();
  if (chosen !== null && chosen.id !== series?.id) feed.choose(chosen);
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") feed.seen();
});

ui.licences.addEventListener("click", async () => {
  const { showLicences } = await import("./licences.ts");
  showLicences();
});

// The legend lies over the chart: candles stay below it where there is room, and always on a narrow page.
new ResizeObserver(() => {
  if (ui.chart.clientHeight === 0) return;
  const narrow = ui.chart.clientWidth < ROOMY_REM * remPx();
  chart.setHeadroom((narrow ? 10.5 : 8) * remPx(), narrow ? 0.4 : 0.3);
}).observe(ui.chart);

// The chart measures its texts when it draws them: again, once the typeface is there.
void document.fonts.ready.then(() => chart.setPalette(readPalette()));

showConnection();
feed.start();
const initial = seriesOfAddress() ?? remembered();
if (initial !== null) feed.choose(initial);
void loadWhitelist();
