// NoticeBoard: the notices of work in progress, and the timer that ends stale ones.

import { freshAt, type Notices, staleAt, textOfNotices, withBackfill, withEvent } from "./notices.ts";
import type { Ports } from "./ports.ts";

/** Work that the service does for the series; `state` is null for an event that has none. */
export interface WorkReport {
  readonly event: string;
  readonly text: string;
  readonly state: string | null;
}

export class NoticeBoard {
  #notices: Notices = [];
  #cancel: () => void = () => undefined;

  /** `changed`: `text` may have changed. */
  constructor(
    private readonly ports: Pick<Ports, "after" | "now">,
    private readonly changed: () => void,
  ) {}

  /** The text of all notices; null for none. */
  get text(): string | null {
    return textOfNotices(this.#notices);
  }

  work({ event, text, state }: WorkReport): void {
    this.#set(withEvent(this.#notices, event, text, state, this.ports.now()));
  }

  /** Takes the state of the backfill in the health of the series. */
  backfill(state: string | null): void {
    this.#set(withBackfill(this.#notices, state));
  }

  /** Another series is shown, or the connection is lost that would report the end of the work. */
  clear(): void {
    this.#set([]);
  }

  #set(notices: Notices): void {
    if (notices === this.#notices) return;
    this.#notices = notices;
    this.#cancel();
    const due = staleAt(notices);
    if (due !== null) {
      this.#cancel = this.ports.after(Math.max(0, due - this.ports.now()), () =>
        this.#set(freshAt(this.#notices, this.ports.now())),
      );
    }
    this.changed();
  }
}
