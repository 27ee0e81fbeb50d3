// Feed: the one owner of what is true of the shown series: its candles, closed and forming, its gaps, the state of its
// history, and the lamp. It joins history to live through the store. Other parts ask the feed, or are notified through
// `FeedEvents`; none keeps a copy. Everything outside reaches the feed through `Ports`.

import type { Connection } from "./connection.ts";
import { GapFeed } from "./gap-feed.ts";
import { type HistoryState, SeriesHistory } from "./history.ts";
import { type Lamp, lampOf, type StreamReport } from "./lamp.ts";
import { Link } from "./link.ts";
import { NoticeBoard } from "./notice-board.ts";
import { PastFeed } from "./past.ts";
import type { Ports } from "./ports.ts";
import { nextOpen, type Series } from "./series.ts";
import { StatusFeed } from "./status-feed.ts";
import type { Change, SeriesStore } from "./store.ts";
import { type Message, parseMessage, subscribeMessage, unsubscribeMessage } from "./wire.ts";

/** The part of a store that comes into view: its first candles, the candles in view before, or its newest. */
export type Place = "start" | "same" | "end";

export interface FeedEvents {
  /** The connection is in another phase. */
  connection(): void;
  /** Another series is shown, under the name that the service gives it, or none. Nothing is known of it yet. */
  series(): void;
  /** The history is in another state. */
  history(): void;
  /** Bars or gaps of the shown store changed. */
  bars(change: Change): void;
  /** Closed candles of the live store changed; `revised`: also ones before the newest, or older ones are stored now. */
  closed(revised: boolean): void;
  /** Another store of the same series is shown. */
  exchanged(place: Place): void;
  /** The lamp was judged again; `before` is the lamp before that. */
  lamp(before: Lamp): void;
  /** `work` or `trouble` changed. */
  notices(): void;
}

/** Delay before a refused subscription is retried, in milliseconds. */
const SUBSCRIBE_RETRY_MS = 15_000;
/** Interval at which the lamp is judged again, because its evidence becomes stale without an event, in milliseconds. */
const LAMP_INTERVAL_MS = 1_000;
/** System events that report no work in progress. */
const SILENT_EVENTS: ReadonlySet<string> = new Set(["history.extended", "slow"]);
const TRANSIENT_ERRORS: ReadonlySet<string> = new Set(["capacity", "rate_limited", "too_many_subscriptions"]);

export class Feed {
  readonly #link: Link;
  readonly #history: SeriesHistory;
  readonly #status: StatusFeed;
  readonly #gaps: GapFeed;
  readonly #past: PastFeed;
  readonly #notices: NoticeBoard;
  #events: FeedEvents | null = null;

  #stream: StreamReport | null = null;
  #receivedAt: number | null = null;
  #trouble: string | null = null;
  #lamp: Lamp;
  #lampSince: number;
  #cancelSubscribe: () => void = () => undefined;
  // After a `truncated` gap the next candles begin a new history.
  #replaceNext = false;

  constructor(private readonly ports: Ports) {
    this.#link = new Link(ports, {
      phase: (before) => this.#phaseChanged(before),
      opened: () => this.#opened(),
      message: (text) => this.#take(parseMessage(text)),
    });
    this.#history = new SeriesHistory(ports, {
      series: () => this.#seriesChanged(),
      state: () => this.#historyChanged(),
      changed: (change) => this.#changed(change),
      loaded: () => this.#subscribe(),
    });
    this.#notices = new NoticeBoard(ports, () => this.#events?.notices());
    this.#gaps = new GapFeed(ports, (store) => {
      if (store === this.shown) this.#events?.bars({ kind: "none" });
    });
    this.#status = new StatusFeed(ports, () => this.#statusChanged());
    this.#past = new PastFeed(ports, {
      opened: () => this.#events?.exchanged("start"),
      changed: (change) => this.#events?.bars(change),
      joined: (opening) => this.#events?.exchanged(opening ? "start" : "same"),
    });
    this.#lamp = this.#judged();
    this.#lampSince = ports.now();
  }

  /** Notifies `events` from now on, before anything else happens. */
  bind(events: FeedEvents): void {
    this.#events = events;
  }

  start(): void {
    this.#link.start();
    this.#status.start();
    this.#judgeRepeatedly();
  }

  // ---- facts -----------------------------------------------------------------------------------------------------

  get connection(): Connection {
    return this.#link.connection;
  }

  /** The shown series; null when there is none. */
  get series(): Series | null {
    return this.#history.series;
  }

  get history(): HistoryState {
    return this.#history.state;
  }

  /** The newest candles. */
  get live(): SeriesStore {
    return this.#history.live;
  }

  /** The candles that the chart shows: the live ones, or the oldest ones. */
  get shown(): SeriesStore {
    return this.#past.store ?? this.live;
  }

  /** Whether the oldest candles are shown instead of the live ones. */
  get showsPast(): boolean {
    return this.#past.store !== null;
  }

  get lamp(): Lamp {
    return this.#lamp;
  }

  /** When the lamp took its present tone and label, in milliseconds of the page's clock. */
  get lampSince(): number {
    return this.#lampSince;
  }

  /** Work of the service in progress, as a sentence; null for none. */
  get work(): string | null {
    return this.#notices.text;
  }

  /** Why the service does not serve the subscription, as a sentence; null when it does. */
  get trouble(): string | null {
    return this.#trouble;
  }

  // ---- requests of the reader ------------------------------------------------------------------------------------

  /** Shows this series from now on; null: none. */
  choose(series: Series | null): void {
    if (this.series !== null) this.#link.send(unsubscribeMessage(this.series.id));
    this.#setTrouble(null);
    this.#cancelSubscribe();
    this.#history.choose(series);
  }

  /** The network is back, or the reader asks: retry now. */
  retry(): void {
    this.#link.retry();
    this.#history.retry();
  }

  /** The page is visible again after it was hidden. */
  visible(): void {
    this.#link.visible();
    this.#status.refresh();
    this.#judge();
  }

  /** Requests candles older than the first live one. */
  loadOlder(): void {
    if (!this.showsPast) void this.#history.loadOlder();
  }

  /** Requests candles newer than the shown past. */
  loadNewer(): void {
    void this.#past.loadNewer();
  }

  /** Shows the first stored candles, which may be far before the first live one; false when they are shown already. */
  showOldest(): boolean {
    if (this.series === null || (!this.showsPast && !this.live.olderExists)) return false;
    void this.#past.open(this.series, this.live);
    return true;
  }

  /** Shows the live candles; false when they are shown already. */
  showNewest(): boolean {
    if (!this.showsPast) return false;
    this.#past.end();
    this.#events?.exchanged("end");
    return true;
  }

  // ---- history and live ----------------------------------------------------------------------------------------------

  #seriesChanged(): void {
    this.#replaceNext = false;
    this.#stream = null;
    this.#receivedAt = null;
    this.#past.end();
    this.#notices.clear();
    this.#gaps.clear();
    this.#status.follow(null);
    this.#judge();
    this.#events?.series();
  }

  #historyChanged(): void {
    const { kind } = this.history;
    if (kind === "ready") {
      this.#replaceNext = false;
      this.showNewest();
      this.#status.follow(this.series);
    } else {
      this.#cancelSubscribe();
      if (kind === "refused") this.#status.follow(null);
    }
    this.#events?.history();
  }

  /** Notifies of a change of the live store. */
  #changed(change: Change): void {
    if (change.kind === "unjoined") {
      this.#history.reload();
      return;
    }
    this.#events?.bars(this.showsPast ? { kind: "none" } : change);
    const { lastClosed } = this.live;
    this.#events?.closed(change.kind === "tail" && lastClosed !== null && change.from < lastClosed);
  }

  // ---- the connection and its messages ---------------------------------------------------------------------------

  #opened(): void {
    if (!this.#history.retry()) this.#subscribe();
  }

  #phaseChanged(before: Connection): void {
    if (before.phase === "live") {
      // Reports of a lost connection are stale, and the end of a notice would be missed.
      this.#stream = null;
      this.#notices.clear();
    }
    this.#status.refresh();
    this.#judge();
    this.#events?.connection();
  }

  #subscribe(): void {
    this.#cancelSubscribe();
    if (this.series === null || this.history.kind !== "ready") return;
    // `since` 0 is before the first stored candle: a series that is empty yet misses nothing.
    this.#link.send(subscribeMessage(this.series.id, this.live.lastClosed ?? 0));
  }

  #take(message: Message): void {
    if (message.type === "pong" || message.type === "unknown") return;
    // Live candles need a history to join.
    if (message.series !== null && (message.series !== this.series?.id || this.history.kind !== "ready")) return;
    const store = this.live;
    switch (message.type) {
      case "candles":
        this.#received();
        if (message.revised) this.#past.revised(message.candles);
        if (this.#replaceNext && message.candles.length > 0) {
          this.#replaceNext = false;
          this.#changed(store.replace(message.candles));
        } else {
          this.#changed(store.close(message.candles, message.revised));
        }
        break;
      case "forming":
        this.#received();
        this.#changed(store.form(message.candle));
        break;
      case "gap":
        if (message.reason === "truncated") this.#replaceNext = true;
        else if (message.from !== null) {
          const { from, state } = message;
          store.declareGaps([{ from, to: message.to ?? nextOpen(store.timeframe, from), state }]);
        }
        this.#changed({ kind: "none" });
        break;
      case "subscribed":
        this.#setTrouble(null);
        if (message.stream !== null) this.#setStream(message.stream, null);
        // A head before the newest stored candle: the history came from another store.
        if (message.head !== null && store.lastClosed !== null && message.head < store.lastClosed) this.#history.reload();
        break;
      case "system":
        this.#takeEvent(message);
        break;
      case "error":
        this.#setTrouble(`The service says: ${message.message} (${message.code})`);
        if (TRANSIENT_ERRORS.has(message.code)) {
          this.#cancelSubscribe();
          this.#cancelSubscribe = this.ports.after(SUBSCRIBE_RETRY_MS, () => this.#subscribe());
        }
        break;
      default:
        message satisfies never;
    }
  }

  #takeEvent({ event, message, state, detail }: Extract<Message, { type: "system" }>): void {
    if (event === "resync") {
      this.#history.reload();
      return;
    }
    if (event.startsWith("stream.")) {
      this.#setStream(event.slice("stream.".length), message || detail);
      return;
    }
    if (event === "backfill.progress" || event === "history.extended") {
      // Older candles may exist now, even if the last request brought none.
      this.live.olderExists = true;
      this.#changed({ kind: "none" });
      // The drawings begin earlier too, which the next closed candle would show late: a day later on a chart of days.
      if (event === "history.extended") this.#events?.closed(true);
    }
    if (!SILENT_EVENTS.has(event)) this.#notices.work({ event, text: message, state });
  }

  #setTrouble(trouble: string | null): void {
    if (trouble === this.#trouble) return;
    this.#trouble = trouble;
    this.#events?.notices();
  }

  // ---- the lamp --------------------------------------------------------------------------------------------------

  #statusChanged(): void {
    const { health } = this.#status;
    const { series } = this;
    if (series !== null && health.kind === "answered" && health.value.series === series.id) {
      this.#notices.backfill(health.value.backfill);
      void this.#gaps.counted(series, this.shown, health.value.gaps);
    }
    this.#judge();
  }

  #setStream(state: string, detail: string | null): void {
    this.#stream = { state, detail, at: this.ports.now() };
    this.#status.refresh();
    this.#judge();
  }

  #received(): void {
    this.#setTrouble(null);
    this.#receivedAt = this.ports.now();
    this.#judge();
  }

  #judgeRepeatedly(): void {
    this.#judge();
    this.ports.after(LAMP_INTERVAL_MS, () => this.#judgeRepeatedly());
  }

  #judge(): void {
    const before = this.#lamp;
    this.#lamp = this.#judged();
    if (this.#lamp.label !== before.label || this.#lamp.tone !== before.tone) this.#lampSince = this.ports.now();
    this.#events?.lamp(before);
  }

  #judged(): Lamp {
    const { status, health } = this.#status;
    const evidence = {
      connection: this.connection,
      status,
      health,
      series: this.history.kind === "refused" ? null : this.series,
      stream: this.#stream,
      receivedAt: this.#receivedAt,
    };
    return lampOf(evidence, this.ports.now());
  }
}
