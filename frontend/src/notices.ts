// Notices of work in progress: history that is read, factors that are rebuilt. Pure: events in, sentences out. A notice
// ends with its cause: when its work is done, when the health of the series says that nothing runs, when the connection
// that would tell its end is lost, and when nothing was heard of it for a while.

export interface Work {
  /** The event's name: one notice for each. */
  readonly event: string;
  readonly text: string;
  readonly failed: boolean;
  /** When the service last spoke of it. */
  readonly at: number;
}

/** What is shown at present, oldest first. */
export type Notices = readonly Work[];

/** A running piece of work tells its progress every second or so; without a word for this long its state is unknown. */
export const SILENT_AFTER_MS = 30_000;
/** An event that says nothing about an end of its own is shown for this long. */
export const PASSING_MS = 8_000;

const FAILED: ReadonlySet<string> = new Set(["failed"]);
const RUNNING: ReadonlySet<string> = new Set(["running"]);

/** Take a `system` event with `data.state` (null where the event has none). */
export function told(notices: Notices, event: string, text: string, state: string | null, now: number): Notices {
  const others = notices.filter((one) => one.event !== event);
  if (text === "") return others;
  if (state === null) return [...others, { event, text, failed: false, at: now - SILENT_AFTER_MS + PASSING_MS }];
  const failed = FAILED.has(state);
  return failed || RUNNING.has(state) ? [...others, { event, text, failed, at: now }] : others;
}

/** The health of the series says what its backfill does: a notice that claims something else ends. */
export function backfillIs(notices: Notices, state: string | null): Notices {
  if (state === null || state === "running") return notices;
  const kept = notices.filter((one) => one.event !== "backfill.progress" || (one.failed && state === "failed"));
  return kept.length === notices.length ? notices : kept;
}

/** Without those that nothing was heard of for a while. */
export function heardOf(notices: Notices, now: number): Notices {
  const kept = notices.filter((one) => now - one.at < SILENT_AFTER_MS);
  return kept.length === notices.length ? notices : kept;
}

/** When the next of them falls silent; null when there are none. */
export function silentAt(notices: Notices): number | null {
  return notices.length === 0 ? null : Math.min(...notices.map((one) => one.at + SILENT_AFTER_MS));
}

/** One text for all of them; null for none. */
export function textOfNotices(notices: Notices): string | null {
  return notices.length === 0 ? null : notices.map((one) => one.text).join(" · ");
}
