// Builders and the fake outside world that the tests share.

import type { Answer, Ports, Socket, SocketEvents } from "../src/ports.ts";
import { type Candle, parseSeries, type Series } from "../src/series.ts";

export const BTC = "binance:spot:BTC/USDT:1m";
export const ETH = "binance:spot:ETH/USDT:1m";

export function seriesOf(id: string): Series {
  const series = parseSeries(id);
  if (series === null) throw new Error(`${id} is not a series id`);
  return series;
}

/** The candle of minute `minute`. */
export function candle(minute: number, close = 1): Candle {
  return { time: minute * 60, open: 1, high: 2, low: 0.5, close, volume: 3 };
}

/** The candles of the minutes from `from` (inclusive) to `to` (exclusive). */
export function candles(from: number, to: number): Candle[] {
  return Array.from({ length: to - from }, (_, index) => candle(from + index));
}

/** A candle as the service writes it. */
export function wireCandle(minute: number, close = 1): Record<string, number> {
  return wireCandles([candle(minute, close)])[0] ?? {};
}

export function wireCandles(values: readonly Candle[]): Record<string, number>[] {
  return values.map(({ time, ...prices }) => ({ candle_time: time, ...prices }));
}

export function wireMinutes(from: number, to: number): Record<string, number>[] {
  return wireCandles(candles(from, to));
}

/** A request that waits for its answer. */
export interface Request {
  readonly path: string;
  answer(status: number, body: unknown): Promise<void>;
  fail(): Promise<void>;
}

/** Network, clock and chance as a test controls them: time moves by `pass` alone. */
export class World {
  now = 1_000_000;
  readonly sockets: FakeSocket[] = [];
  readonly requests: Request[] = [];
  /** Answers at once in place of the test; null: the service is unreachable. Requests it does not know (undefined) wait. */
  respond: (path: string) => Answer | null | undefined = () => undefined;
  #timers: { at: number; call: () => void }[] = [];

  readonly ports: Ports = {
    openSocket: (events) => {
      const socket = new FakeSocket(events);
      this.sockets.push(socket);
      return socket;
    },
    get: (path) =>
      new Promise((resolve, reject) => {
        const unreachable = new TypeError("network");
        this.requests.push({
          path,
          answer: (status, body) => {
            resolve({ status, body });
            return settled();
          },
          fail: () => {
            reject(unreachable);
            return settled();
          },
        });
        const answer = this.respond(path);
        if (answer === null) reject(unreachable);
        else if (answer !== undefined) resolve(answer);
      }),
    now: () => this.now,
    after: (ms, call) => {
      const timer = { at: this.now + ms, call };
      this.#timers.push(timer);
      return () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      };
    },
    random: () => 0.5,
  };

  get socket(): FakeSocket {
    return newest(this.sockets);
  }

  /** The newest request. */
  get request(): Request {
    return newest(this.requests);
  }

  /** Requests to a path that contains `part`. */
  requestsTo(part: string): Request[] {
    return this.requests.filter(({ path }) => path.includes(part));
  }

  /** The newest request to a path that contains `part`. */
  requestTo(part: string): Request {
    return newest(this.requestsTo(part));
  }

  /** Lets `ms` milliseconds pass; timers fire on time, answers do not arrive meanwhile. */
  pass(ms: number): void {
    const until = this.now + ms;
    while (this.#fireNext(until));
    this.now = until;
  }

  /** Lets `ms` milliseconds pass; timers fire on time, and answers of `respond` arrive. */
  async passWithAnswers(ms: number): Promise<void> {
    const until = this.now + ms;
    do await settled();
    while (this.#fireNext(until));
    this.now = until;
  }

  #fireNext(until: number): boolean {
    const timer = this.#timers.toSorted((first, second) => first.at - second.at)[0];
    if (timer === undefined || timer.at > until) return false;
    this.#timers = this.#timers.filter((other) => other !== timer);
    this.now = Math.max(this.now, timer.at);
    timer.call();
    return true;
  }
}

export class FakeSocket implements Socket {
  readonly sent: Record<string, unknown>[] = [];
  closed = false;

  constructor(readonly events: SocketEvents) {}

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>);
  }

  close(): void {
    this.closed = true;
  }

  /** The service accepts the socket, and answers the ping. */
  open(): void {
    this.events.opened();
    this.say({ type: "pong" });
  }

  /** The service sends this message. */
  say(message: Record<string, unknown>): void {
    this.events.message(JSON.stringify(message));
  }

  /** Series and `since` of each subscription that was sent. */
  get subscriptions(): unknown[] {
    return this.sent.filter(({ type }) => type === "subscribe").map(({ series_id, since }) => [series_id, since]);
  }
}

/** Until every promise that can go on has done so. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 10; turn += 1) await Promise.resolve();
}

function newest<Item>(items: readonly Item[]): Item {
  const item = items.at(-1);
  if (item === undefined) throw new Error("there is none yet");
  return item;
}
