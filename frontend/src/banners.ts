// Banners: the notices over the chart: the lost connection, trouble of the stream and of the subscription, drawings that lag,
// and work in progress.

import { element, showText } from "./dom.ts";
import type { DrawingState } from "./drawing-feed.ts";
import type { Feed } from "./feed.ts";
import { formatClock } from "./format.ts";
import type { Ports } from "./ports.ts";

/** Trouble shorter than this, in milliseconds, shows in the lamp alone. */
const BANNER_AFTER_MS = 800;

export class Banners {
  readonly #offline = element("offline", HTMLDivElement);
  readonly #offlineText = element("offline-text", HTMLSpanElement);
  readonly #offlineRetry = element("offline-retry", HTMLButtonElement);
  readonly #stream = element("notice-stream", HTMLParagraphElement);
  readonly #subscription = element("notice-subscription", HTMLParagraphElement);
  readonly #work = element("notice-progress", HTMLParagraphElement);
  readonly #drawings = element("notice-drawings", HTMLParagraphElement);
  #cancel: () => void = () => undefined;

  constructor(
    private readonly ports: Pick<Ports, "now" | "after">,
    private readonly feed: Feed,
  ) {
    this.#offlineRetry.addEventListener("click", () => feed.retry());
  }

  showConnection(): void {
    const { phase, everLive, attempt, downSince } = this.feed.connection;
    const reconnecting = phase !== "live" && (everLive || attempt > 0);
    const downMs = downSince === null ? 0 : this.ports.now() - downSince;
    const due = downMs >= BANNER_AFTER_MS || !this.#offline.hidden;
    this.#cancel();
    this.#offline.hidden = !reconnecting || !due;
    if (!reconnecting || downSince === null) return;
    if (!due) {
      this.#cancel = this.ports.after(BANNER_AFTER_MS - downMs, () => this.showConnection());
      return;
    }
    const action = phase === "waiting" ? "Reconnecting automatically." : "Reconnecting now.";
    showText(this.#offlineText, `Not connected since ${formatClock(downSince)} UTC. ${action}`);
    this.#offlineRetry.hidden = phase !== "waiting";
  }

  showLamp(): void {
    const { lamp, lampSince, connection } = this.feed;
    const troubled = lamp.stale && lamp.tone !== "off" && lamp.tone !== "good";
    // The banner of a lost connection says more; trouble that passes at once needs none.
    const due = troubled && connection.phase === "live" && this.ports.now() - lampSince >= BANNER_AFTER_MS;
    showText(this.#stream, due ? lamp.reason : null);
    this.#stream.dataset["tone"] = lamp.tone;
  }

  showNotices(): void {
    showText(this.#subscription, this.feed.trouble);
    showText(this.#work, this.feed.work);
  }

  showDrawings(state: DrawingState): void {
    if (state.kind === "refused") showText(this.#drawings, `No drawings: ${state.reason}`);
    else if (state.kind === "behind") showText(this.#drawings, "Indicators and drawings are catching up with the candles.");
    else showText(this.#drawings, null);
  }
}
