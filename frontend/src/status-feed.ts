// StatusFeed: keeps what the service says about itself and about the shown series. It polls instead of holding an event
// stream: a browser opens six connections to one host, so that the seventh tab would hang, and an event stream that is
// silent because nothing changes looks like one that is dead. Each answer to a poll proves that the service answers.

import type { Answer, Ports } from "./feed.ts";
import type { Series } from "./series.ts";
import { type Level, parseHealth, parseStatus, type SeriesHealth, type ServiceStatus } from "./status.ts";

/** Between two questions about the service, and about the series. */
export const STATUS_EVERY_MS = 2_000;
export const HEALTH_EVERY_MS = 4_000;
/** The longest wait for an answer; a poll that takes longer counts as failed. */
export const STATUS_TIMEOUT_MS = 4_000;
/** An answer older than this says nothing about now: one poll was lost, and the next is late. */
export const STATUS_OLD_MS = 7_000;
/** An older service has no such endpoint. It is asked again this seldom, because it may be replaced. */
export const ABSENT_AGAIN_MS = 30_000;

/**
 * An answer. `at`: when it came, in milliseconds of the page's clock; `since`: when the first of the answers in a row came
 * that have its level and reason.
 */
export interface TellingOf<T> {
  readonly kind: "told";
  readonly at: number;
  readonly since: number;
  readonly what: T;
}

/** What one endpoint has answered last. */
export type Told<T> =
  | { readonly kind: "none" }
  /** 404: the service does not have this, or has it switched off. */
  | { readonly kind: "absent" }
  | TellingOf<T>;

export interface StatusEvents {
  /** Something was learnt. */
  status(status: Told<ServiceStatus>, health: Told<SeriesHealth>): void;
}

const NONE = { kind: "none" } as const;

interface Poll {
  asking: number;
  cancel: () => void;
}

export class StatusFeed {
  #series: Series | null = null;
  #status: Told<ServiceStatus> = NONE;
  #health: Told<SeriesHealth> = NONE;
  readonly #polls: Readonly<Record<"status" | "health", Poll>> = {
    status: { asking: 0, cancel: () => undefined },
    health: { asking: 0, cancel: () => undefined },
  };

  constructor(
    private readonly ports: Pick<Ports, "get" | "after" | "now">,
    private readonly events: StatusEvents,
  ) {}

  start(): void {
    this.#askStatus();
  }

  /** Watch this series from now on, of which nothing is known yet; null: none, the service refuses what is shown. */
  follow(series: Series | null): void {
    if (this.#series?.id === series?.id) return;
    this.#series = series;
    this.#health = NONE;
    this.#polls.health.cancel();
    this.#tell();
    this.#askHealth();
  }

  /** Something has changed, or the page is seen again: do not wait for the next poll. */
  soon(): void {
    this.#askStatus();
    if (this.#series !== null) this.#askHealth();
  }

  #askStatus(): void {
    void this.#ask("status", "/api/market/status", STATUS_EVERY_MS, () => this.#askStatus(), (answer) => {
      const what = answer.status === 200 ? parseStatus(answer.body) : null;
      if (what !== null) this.#status = after(this.#status, what, this.ports.now());
      else if (answer.status === 404) this.#status = { kind: "absent" };
    });
  }

  #askHealth(): void {
    const series = this.#series;
    if (series === null) return;
    const path = `/api/market/health?series_id=${encodeURIComponent(series.id)}`;
    void this.#ask("health", path, HEALTH_EVERY_MS, () => this.#askHealth(), (answer) => {
      if (series !== this.#series) return;
      const what = answer.status === 200 ? parseHealth(answer.body) : null;
      if (what !== null) this.#health = after(this.#health, what, this.ports.now());
      else if (answer.status === 404) this.#health = { kind: "absent" };
    });
  }

  /** Ask once, take the answer, and ask again later. A newer question replaces one that is in flight. */
  async #ask(
    name: "status" | "health",
    path: string,
    everyMs: number,
    again: () => void,
    take: (answer: Answer) => void,
  ): Promise<void> {
    const poll = this.#polls[name];
    poll.cancel();
    poll.asking += 1;
    const asked = poll.asking;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(path, STATUS_TIMEOUT_MS);
    } catch {
      // No answer: what was told before grows old, which the lamp shows.
    }
    if (asked !== poll.asking) return;
    if (answer !== null) take(answer);
    poll.cancel = this.ports.after(answer?.status === 404 ? ABSENT_AGAIN_MS : everyMs, again);
    this.#tell();
  }

  #tell(): void {
    this.events.status(this.#status, this.#health);
  }
}

/** `what`, told at `now` after `before`. */
function after<T extends { readonly level: Level | null; readonly reason: string | null }>(
  before: Told<T>,
  what: T,
  now: number,
): TellingOf<T> {
  const same = before.kind === "told" && before.what.level === what.level && before.what.reason === what.reason;
  return { kind: "told", at: now, since: same ? before.since : now, what };
}
