// Notices of work in progress: a backfill, a rebuild of factors. Pure: events in, sentences out. A notice ends when its
// work is done, when the health of the series reports no work, when the connection is lost that would report the end, and
// when it becomes stale.

/** A piece of work that the service reports. */
export interface Notice {
  /** Name of the event: there is one notice for each. */
  readonly event: string;
  readonly text: string;
  readonly failed: boolean;
  /** Time of the last report, in milliseconds. */
  readonly at: number;
}

/** The shown notices, oldest first. */
export type Notices = readonly Notice[];

/** Silence after which a notice is stale, in milliseconds. Work in progress is reported every second or so. */
export const STALE_AFTER_MS = 30_000;
/** How long an event without a state is shown, in milliseconds. */
export const STATELESS_MS = 8_000;

const FAILED: ReadonlySet<string> = new Set(["failed"]);
const RUNNING: ReadonlySet<string> = new Set(["running"]);

/** The notices after a `system` event. `state`: its `data.state`; null for an event that has none. */
export function withEvent(notices: Notices, event: string, text: string, state: string | null, now: number): Notices {
  const others = notices.filter((notice) => notice.event !== event);
  if (text === "") return others;
  if (state === null) return [...others, { event, text, failed: false, at: now - STALE_AFTER_MS + STATELESS_MS }];
  const failed = FAILED.has(state);
  return failed || RUNNING.has(state) ? [...others, { event, text, failed, at: now }] : others;
}

/** The notices that agree with the state of the backfill in the health of the series. */
export function withBackfill(notices: Notices, state: string | null): Notices {
  if (state === null || state === "running") return notices;
  const kept = notices.filter((notice) => notice.event !== "backfill.progress" || (notice.failed && state === "failed"));
  return kept.length === notices.length ? notices : kept;
}

/** The notices that are not stale at `now`. */
export function freshAt(notices: Notices, now: number): Notices {
  const kept = notices.filter((notice) => now - notice.at < STALE_AFTER_MS);
  return kept.length === notices.length ? notices : kept;
}

/** Time at which the next notice becomes stale; null without notices. */
export function staleAt(notices: Notices): number | null {
  return notices.length === 0 ? null : Math.min(...notices.map((notice) => notice.at + STALE_AFTER_MS));
}

/** One text for all notices; null for none. */
export function textOfNotices(notices: Notices): string | null {
  return notices.length === 0 ? null : notices.map((notice) => notice.text).join(" · ");
}
