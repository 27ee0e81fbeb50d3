// StatusFeed: the newest status of the service and health of the shown series. It polls instead of holding an event
// stream: a browser opens six connections to one host, so the seventh tab would hang, and an event stream that is silent
// because nothing changes looks like a dead one. Each answer to a poll proves that the service answers.

import type { Answer, Ports } from "./ports.ts";
import type { Series } from "./series.ts";
import { type Level, parseHealth, parseStatus, type SeriesHealth, type ServiceStatus } from "./status.ts";

/** Intervals of the polls, in milliseconds. */
export const STATUS_INTERVAL_MS = 2_000;
export const HEALTH_INTERVAL_MS = 4_000;
/** Timeout of a poll, in milliseconds; a slower poll counts as failed. */
export const POLL_TIMEOUT_MS = 4_000;
/** Age at which an answer is stale, in milliseconds: one poll was lost, and the next is late. */
export const STATUS_STALE_MS = 7_000;
/** Interval of polls that were answered with 404, in milliseconds: an older service may be replaced by a newer one. */
export const ABSENT_INTERVAL_MS = 30_000;

/** An answer with its times, in milliseconds of the page's clock. */
export interface Answered<T> {
  readonly kind: "answered";
  /** When it came. */
  readonly at: number;
  /** When the first answer came in the unbroken row of answers with this level and reason. */
  readonly since: number;
  readonly value: T;
}

/** The newest answer of one endpoint. */
export type Polled<T> =
  | { readonly kind: "none" }
  /** 404: the service does not have this endpoint, or has switched it off. */
  | { readonly kind: "absent" }
  | Answered<T>;

const NONE = { kind: "none" } as const;

/** `request` counts requests: an answer to an earlier one is discarded. */
interface Poll {
  request: number;
  cancel: () => void;
}

export class StatusFeed {
  #series: Series | null = null;
  #status: Polled<ServiceStatus> = NONE;
  #health: Polled<SeriesHealth> = NONE;
  readonly #polls: Readonly<Record<"status" | "health", Poll>> = {
    status: { request: 0, cancel: () => undefined },
    health: { request: 0, cancel: () => undefined },
  };

  /** `changed`: a poll has ended, or another series is polled. */
  constructor(
    private readonly ports: Pick<Ports, "get" | "after" | "now">,
    private readonly changed: () => void,
  ) {}

  get status(): Polled<ServiceStatus> {
    return this.#status;
  }

  /** Health of the polled series. */
  get health(): Polled<SeriesHealth> {
    return this.#health;
  }

  start(): void {
    this.#pollStatus();
  }

  /** Polls the health of this series from now on; null: of none. */
  follow(series: Series | null): void {
    if (this.#series?.id === series?.id) return;
    this.#series = series;
    this.#health = NONE;
    this.#polls.health.cancel();
    this.changed();
    this.#pollHealth();
  }

  /** Polls now instead of at the next interval. */
  refresh(): void {
    this.#pollStatus();
    if (this.#series !== null) this.#pollHealth();
  }

  #pollStatus(): void {
    void this.#poll("status", "/api/market/status", STATUS_INTERVAL_MS, () => this.#pollStatus(), (answer) => {
      const value = answer.status === 200 ? parseStatus(answer.body) : null;
      if (value !== null) this.#status = answered(this.#status, value, this.ports.now());
      else if (answer.status === 404) this.#status = { kind: "absent" };
    });
  }

  #pollHealth(): void {
    const series = this.#series;
    if (series === null) return;
    const path = `/api/market/health?series_id=${encodeURIComponent(series.id)}`;
    void this.#poll("health", path, HEALTH_INTERVAL_MS, () => this.#pollHealth(), (answer) => {
      if (series !== this.#series) return;
      const value = answer.status === 200 ? parseHealth(answer.body) : null;
      if (value !== null) this.#health = answered(this.#health, value, this.ports.now());
      else if (answer.status === 404) this.#health = { kind: "absent" };
    });
  }

  /** Requests once, hands the answer to `take`, and schedules `repeat`. A newer request replaces one in flight. */
  async #poll(
    name: "status" | "health",
    path: string,
    intervalMs: number,
    repeat: () => void,
    take: (answer: Answer) => void,
  ): Promise<void> {
    const poll = this.#polls[name];
    poll.cancel();
    poll.request += 1;
    const { request } = poll;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(path, POLL_TIMEOUT_MS);
    } catch {
      // No answer: the newest one becomes stale, which the lamp shows.
    }
    if (request !== poll.request) return;
    if (answer !== null) take(answer);
    poll.cancel = this.ports.after(answer?.status === 404 ? ABSENT_INTERVAL_MS : intervalMs, repeat);
    this.changed();
  }
}

/** `value`, received at `now` after `before`. */
function answered<T extends { readonly level: Level | null; readonly reason: string | null }>(
  before: Polled<T>,
  value: T,
  now: number,
): Answered<T> {
  const same = before.kind === "answered" && before.value.level === value.level && before.value.reason === value.reason;
  return { kind: "answered", at: now, since: same ? before.since : now, value };
}
