// Resource: an answer of the service that changes seldom. A load that fails is retried with backoff until it succeeds; an
// endpoint that the service does not have (404) is not retried.

import { backoff } from "./connection.ts";
import type { Answer, Ports } from "./ports.ts";

export class Resource {
  #inFlight = false;
  #failures = 0;
  #cancelRetry: () => void = () => undefined;

  /** `loaded` receives the body of each answer with status 200. */
  constructor(
    private readonly ports: Pick<Ports, "get" | "after" | "random">,
    private readonly path: string,
    private readonly loaded: (body: unknown) => void,
  ) {}

  /** Loads now, unless a request is in flight. */
  load(): void {
    this.#cancelRetry();
    if (!this.#inFlight) void this.#request();
  }

  async #request(): Promise<void> {
    this.#inFlight = true;
    let answer: Answer | null = null;
    try {
      answer = await this.ports.get(this.path);
    } catch {
      // Unreachable: retried below.
    } finally {
      this.#inFlight = false;
    }
    if (answer?.status === 200) {
      this.#failures = 0;
      this.loaded(answer.body);
    } else if (answer?.status !== 404) {
      this.#cancelRetry = this.ports.after(backoff(this.#failures, this.ports.random()), () => this.load());
      this.#failures += 1;
    }
  }
}
