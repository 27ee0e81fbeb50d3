// Ports: everything outside of the page that its parts use: network, clock and chance. `browser.ts` implements them; tests
// use a world without network and time.

export interface Socket {
  send(text: string): void;
  close(): void;
}

export interface SocketEvents {
  opened(): void;
  message(text: string): void;
  closed(): void;
}

export interface Answer {
  readonly status: number;
  readonly body: unknown;
}

export interface Ports {
  openSocket(events: SocketEvents): Socket;
  /** Rejects when the service is unreachable, its answer is unreadable, or no answer has come after `timeoutMs`. */
  get(path: string, timeoutMs?: number): Promise<Answer>;
  /** Milliseconds of the page's clock. */
  now(): number;
  /** Calls once after `ms`; the result cancels the call. */
  after(ms: number, call: () => void): () => void;
  /** In [0, 1). */
  random(): number;
}
