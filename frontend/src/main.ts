// The page: puts the feed, the chart and the controls together. It is long because it names every part once: what decides is in
// files of its own, and what is here hands over what one part tells to those that show it.

import "./page.css";
import { addressOf, resolve, textOfAddress } from "./address.ts";
import { browserPorts } from "./browser.ts";
import { CandleChart } from "./chart.ts";
import { type Connection, INITIAL } from "./connection.ts";
import { element } from "./dom.ts";
import { parseCatalogue } from "./drawing.ts";
import { DrawingFeed, type DrawingState } from "./drawing-feed.ts";
import { DrawingStore } from "./drawing-store.ts";
import { Feed, type HistoryState } from "./feed.ts";
import { exchangeName, formatClock, formatPrice, formatTime, marketName, plural } from "./format.ts";
import { GapFeed } from "./gap-feed.ts";
import { type Known, type Lamp, lampOf } from "./lamp.ts";
import { Layers } from "./layers.ts";
import { LayersMenu } from "./layers-menu.ts";
import { describeGap, GAP_STATES, Legend } from "./legend.ts";
import { forgetSeries, rememberChoices, rememberedChoices, rememberedSeries, rememberSeries } from "./memory.ts";
import { NoticeBoard } from "./notice-board.ts";
import { PastFeed } from "./past.ts";
import { Picker } from "./picker.ts";
import { readable, timeframesOf } from "./search.ts";
import type { Series } from "./series.ts";
import { StatusFeed } from "./status-feed.ts";
import { StatusPanel } from "./status-panel.ts";
import { SeriesStore } from "./store.ts";
import { applyStoredTheme, onSystemTheme, readPalette, remPx, switchTheme } from "./theme.ts";
import { type Derived, parseDerived, parseWhitelist } from "./wire.ts";

/** A page less wide than this has no room for panes that nobody asked for. */
const ROOMY_REM = 40;
/** A break shorter than this is shown in the badge alone. */
const BANNER_AFTER_MS = 800;
/** The lamp is looked at this often: what it says grows old without anything happening. */
const LAMP_EVERY_MS = 1000;

applyStoredTheme();

const root = document.documentElement;
const ui = {
  chart: element("chart", HTMLDivElement),
  choose: element("choose", HTMLButtonElement),
  symbol: element("choose-symbol", HTMLSpanElement),
  timeframe: element("choose-timeframe", HTMLSpanElement),
  tags: element("choose-tags", HTMLSpanElement),
  timeframes: element("timeframes", HTMLDivElement),
  theme: element("theme", HTMLButtonElement),
  offline: element("offline", HTMLDivElement),
  offlineText: element("offline-text", HTMLSpanElement),
  offlineRetry: element("offline-retry", HTMLButtonElement),
  lampNotice: element("notice-stream", HTMLParagraphElement),
  subscription: element("notice-subscription", HTMLParagraphElement),
  progress: element("notice-progress", HTMLParagraphElement),
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
/** The newest candles. What the chart shows is these, or the oldest ones of `past`. */
let live = new SeriesStore("1m");
/** What the lamp is made of, beside the connection and the series. */
let known: Pick<Known, "status" | "health" | "stream" | "heardAt"> = {
  status: { kind: "none" },
  health: { kind: "none" },
  stream: null,
  heardAt: null,
};
let lamp: Lamp = lampOf({ ...known, connection, series }, Date.now());
let lampSince = Date.now();
/** The text of an address that names no series; null when there is none. */
let unresolved: string | null = null;
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
  nearStart: () => {
    if (past.store === null) void feed.loadOlder();
  },
  nearEnd: () => void past.loadNewer(),
  viewed: (from, to) => {
    const { first } = shown();
    if (first !== null) drawingFeed.view({ from, to, first });
    root.dataset["viewFrom"] = String(from); // for tests, as the facts below
    root.dataset["viewTo"] = String(to);
  },
  atEnd: () => showLatest(),
  drawn: showStore,
});
const legend = new Legend();
const picker = new Picker(choose);
const layersMenu = new LayersMenu((keys, visible) => {
  showLayers(layers.choose(keys, visible));
  rememberChoices(layers.choices);
});
const statusPanel = new StatusPanel();
const notices = new NoticeBoard(browserPorts, (text) => showNotice(ui.progress, text));
const gapFeed = new GapFeed(browserPorts, (changed) => {
  if (changed === shown()) chart.changed({ kind: "none" });
});
const statusFeed = new StatusFeed(browserPorts, {
  status: (status, health) => {
    known = { ...known, status, health };
    if (health.kind === "told" && health.what.series === series?.id) {
      notices.backfill(health.what.backfill);
      void gapFeed.counted(series, shown(), health.what.gaps);
    }
    showLamp();
  },
});
const past = new PastFeed(browserPorts, {
  opened: (itsStore) => {
    chart.showPast(itsStore);
    showStore();
  },
  changed: (change) => chart.changed(change),
  joined: (opening) => {
    chart.showLive(live);
    if (opening) chart.goToStart();
    showStore();
  },
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
    statusFeed.soon();
    if (wasLive) notices.clear();
    if (now.phase === "live" && !wasLive) {
      void loadWhitelist();
      void loadCatalogue();
    }
    showConnection();
  },
  series: (named, itsStore) => {
    series = named;
    live = itsStore;
    unresolved = null;
    pointed = null;
    known = { ...known, stream: null, heardAt: null };
    past.end();
    notices.clear();
    gapFeed.clear();
    chart.show(live);
    drawingFeed.follow(named);
    statusFeed.follow(null);
    // A link, or another spelling of the same series: the address takes the service's name without a new entry.
    if (textOfAddress(location.search) !== named.id) window.history.replaceState(null, "", addressOf(location.pathname, named));
    showSeries();
  },
  history: (state) => {
    history = state;
    if (state.kind === "ready") {
      if (past.store !== null) showLive();
      drawingFeed.reload();
    }
    if (series !== null && state.kind === "ready") {
      rememberSeries(series);
      statusFeed.follow(series);
    } else if (series !== null && state.kind === "refused") {
      forgetSeries(series);
      statusFeed.follow(null);
    }
    showEmpty();
  },
  changed: (change) => {
    if (past.store === null) chart.changed(change);
    const { lastClosed } = live;
    const revised = change.kind === "tail" && lastClosed !== null && change.from < lastClosed;
    drawingFeed.candles(lastClosed, revised);
    if (past.store !== null) showStore();
  },
  heard: () => {
    known = { ...known, heardAt: Date.now() };
    showLamp();
  },
  revised: (candles) => past.revised(candles),
  stream: (word) => {
    known = { ...known, stream: word === null ? null : { ...word, at: Date.now() } };
    if (word !== null) statusFeed.soon();
    showLamp();
  },
  work: (word) => notices.work(word),
  subscription: (trouble) => showNotice(ui.subscription, trouble),
});

// ---- what is shown -----------------------------------------------------------------------------------------------

/** The candles that the chart shows. */
function shown(): SeriesStore {
  return past.store ?? live;
}

function showLive(): void {
  past.end();
  chart.showLive(live);
  chart.goToEnd();
  showStore();
}

function showLatest(): void {
  ui.latest.hidden = past.store === null && chart.atEnd;
}

function showNotice(place: HTMLElement, text: string | null): void {
  place.hidden = text === null;
  if (text !== null && place.textContent !== text) place.textContent = text;
}

function showLegend(): void {
  legend.show(shown(), live, pointed, chart.decimals, lamp.old, (time) => chart.readingsAt(time));
}

function showLamp(): void {
  const now = Date.now();
  const before = lamp;
  lamp = lampOf({ ...known, connection, series: history.kind === "refused" ? null : series }, now);
  if (lamp.label !== before.label || lamp.tone !== before.tone) lampSince = now;
  statusPanel.show(lamp);
  // The notice at the top says more of a connection that is lost; trouble that passes at once needs none.
  const troubled = lamp.old && lamp.tone !== "off" && lamp.tone !== "good";
  const notable = troubled && connection.phase === "live" && now - lampSince >= BANNER_AFTER_MS;
  showNotice(ui.lampNotice, notable ? lamp.reason : null);
  ui.lampNotice.dataset["tone"] = lamp.tone;
  chart.setStale(lamp.old);
  ui.chart.classList.toggle("chart-stale", lamp.old && (lamp.tone === "bad" || lamp.tone === "warn"));
  if (lamp.old !== before.old) showLegend();
  showTitle();
  root.dataset["lamp"] = lamp.tone;
  root.dataset["lampLabel"] = lamp.label;
  root.dataset["age"] = String(lamp.age ?? "");
}

function showTitle(): void {
  const { last } = live;
  const name = series === null ? "" : `${series.symbol} ${series.timeframe} · `;
  const price = last === null || lamp.old ? "" : `${formatPrice(last.candle.close, chart.decimals)} `;
  const state = lamp.old && series !== null ? `${lamp.label} · ` : "";
  const title = `${state}${price}${name}klinesync`;
  if (document.title !== title) document.title = title;
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
  showTitle();
  showLatest();
  const store = shown();
  const { first, timeframe } = store;
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
    ui.gaps.dataset["settled"] = String(gaps.every((gap) => gap.state === "confirmed_empty"));
  }

  // For tests and for the curious; nothing on the page reads these.
  const facts = {
    series: series?.id,
    candles: store.count,
    first: store.first,
    lastClosed: store.lastClosed,
    lastForming: store.lastForming,
    lastPrice: live.last?.candle.close,
    gaps: gaps.length,
    gapStates: [...new Set(gaps.map((gap) => gap.state))].join(" "),
    olderExists: store.olderExists,
    drawnPages: drawings.pages.size,
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
  showLamp();

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
  if (live.count > 0 || live.lastForming !== null) return null;
  if (series === null) {
    if (whitelist === null) return null;
    if (unresolved !== null) {
      return {
        title: `No series “${unresolved}”`,
        text: "The address names no series of this service. A series id reads exchange:market:BASE/QUOTE:timeframe, for example binance:spot:BTC/USDT:1m.",
        choose: true,
      };
    }
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

function choose(chosen: Series): void {
  if (chosen.id === series?.id) return;
  window.history.pushState(null, "", addressOf(location.pathname, chosen));
  feed.choose(chosen);
}

/** Show what the address names; a text that is no series id is looked up in the whitelist, once that is known. */
function followAddress(): void {
  const text = textOfAddress(location.search);
  const named = text === null ? rememberedSeries() : resolve(text, whitelist ?? [], derived);
  unresolved = named === null ? text : null;
  if (named !== null && named.id !== series?.id) feed.choose(named);
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
  if (series === null) followAddress();
  if (series !== null) showSeries();
  else if (first !== undefined && unresolved === null) feed.choose(first);
  else showEmpty();
}

function openPicker(): void {
  picker.open(series);
  void loadWhitelist();
}

// ---- the reader --------------------------------------------------------------------------------------------------

ui.choose.addEventListener("click", openPicker);
ui.emptyChoose.addEventListener("click", openPicker);
ui.latest.addEventListener("click", goToEnd);
ui.offlineRetry.addEventListener("click", () => feed.retry());
ui.gaps.addEventListener("click", () => {
  const newest = shown().gaps.at(-1);
  if (newest !== undefined) chart.goToTime(newest.to);
});
ui.theme.addEventListener("click", () => {
  switchTheme();
  chart.setPalette(readPalette());
});
onSystemTheme(() => chart.setPalette(readPalette()));

function goToStart(): void {
  // The first stored candle, which may lie far before the first one here.
  if (series === null || (past.store === null && !live.olderExists)) chart.goToStart();
  else void past.open(series, live);
}

function goToEnd(): void {
  if (past.store === null) chart.goToEnd();
  else showLive();
}

const CHART_KEYS: Readonly<Record<string, () => void>> = {
  ArrowLeft: () => chart.scroll(-0.05),
  ArrowRight: () => chart.scroll(0.05),
  PageUp: () => chart.scroll(-0.8),
  PageDown: () => chart.scroll(0.8),
  ArrowUp: () => chart.zoom(0.8),
  ArrowDown: () => chart.zoom(1.25),
  "+": () => chart.zoom(0.8),
  "-": () => chart.zoom(1.25),
  Home: goToStart,
  End: goToEnd,
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
  statusFeed.soon();
});
window.addEventListener("popstate", followAddress);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") return;
  feed.seen();
  statusFeed.soon();
  showLamp();
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
setInterval(showLamp, LAMP_EVERY_MS);
feed.start();
statusFeed.start();
followAddress();
void loadWhitelist();
