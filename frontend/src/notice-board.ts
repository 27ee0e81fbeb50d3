// NoticeBoard: keeps the notices of work in progress, and takes each away when its time is over.

import type { Ports, WorkWord } from "./feed.ts";
import { backfillIs, heardOf, type Notices, silentAt, textOfNotices, told } from "./notices.ts";

export class NoticeBoard {
  #notices: Notices = [];
  #cancel: () => void = () => undefined;

  /** `show` gets the text of all notices, null for none. */
  constructor(
    private readonly ports: Pick<Ports, "after" | "now">,
    private readonly show: (text: string | null) => void,
  ) {}

  work({ event, text, state }: WorkWord): void {
    this.#take(told(this.#notices, event, text, state, this.ports.now()));
  }

  /** What the health of the series says of its backfill. */
  backfill(state: string | null): void {
    this.#take(backfillIs(this.#notices, state));
  }

  /** Another series is shown, or the connection that would tell their end is lost. */
  clear(): void {
    this.#take([]);
  }

  #take(notices: Notices): void {
    if (notices === this.#notices) return;
    this.#notices = notices;
    this.#cancel();
    const due = silentAt(notices);
    if (due !== null) {
      this.#cancel = this.ports.after(Math.max(0, due - this.ports.now()), () =>
        this.#take(heardOf(this.#notices, this.ports.now())),
      );
    }
    this.show(textOfNotices(notices));
  }
}
