// Directory: the series that the service follows, and the timeframes that it derives.

import type { Ports } from "./ports.ts";
import { Resource } from "./resource.ts";
import { readable } from "./search.ts";
import type { Series } from "./series.ts";
import { type Derived, parseDerived, parseWhitelist } from "./wire.ts";

export class Directory {
  readonly #resource: Resource;
  #changed: (() => void) | null = null;
  #whitelist: readonly Series[] | null = null;
  #derived: Derived = { base: null, timeframes: [] };

  constructor(ports: Pick<Ports, "get" | "after" | "random">) {
    this.#resource = new Resource(ports, "/api/market/whitelist", (body) => {
      this.#whitelist = readable(parseWhitelist(body));
      this.#derived = parseDerived(body);
      this.#changed?.();
    });
  }

  /** Calls `changed` after each load from now on. */
  bind(changed: () => void): void {
    this.#changed = changed;
  }

  /** The series that are followed for as long as the service runs; null before the first load. */
  get whitelist(): readonly Series[] | null {
    return this.#whitelist;
  }

  get derived(): Derived {
    return this.#derived;
  }

  load(): void {
    this.#resource.load();
  }
}
