// The browser behind the ports.

import { addressOf, textOfAddress } from "./address.ts";
import type { AddressBar } from "./navigation.ts";
import type { Ports, Socket, SocketEvents } from "./ports.ts";

/** Timeout of a request, in milliseconds. */
const ANSWER_TIMEOUT_MS = 30_000;

/** Network, clock and chance of the browser. */
export function browserPorts(): Ports {
  return {
    openSocket,
    async get(path, timeoutMs = ANSWER_TIMEOUT_MS) {
      const response = await fetch(path, {
        headers: { accept: "application/json" },
        signal: AbortSignal.timeout(timeoutMs),
      });
      const text = await response.text();
      // An error page of a proxy is not JSON; its status is enough.
      const body: unknown = response.ok || text.startsWith("{") ? JSON.parse(text) : null;
      return { status: response.status, body };
    },
    now: () => Date.now(),
    after(ms, call) {
      const timer = setTimeout(call, ms);
      return () => clearTimeout(timer);
    },
    random: () => Math.random(),
  };
}

export function browserAddressBar(): AddressBar {
  return {
    text: () => textOfAddress(location.search),
    push: (series) => history.pushState(null, "", addressOf(location.pathname, series)),
    replace: (series) => history.replaceState(null, "", addressOf(location.pathname, series)),
  };
}

function openSocket(events: SocketEvents): Socket {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/ws/market`);
  socket.addEventListener("open", () => events.opened());
  socket.addEventListener("message", ({ data }) => {
    if (typeof data === "string") events.message(data);
  });
  socket.addEventListener("close", () => events.closed());
  return {
    send: (text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
    },
    close: () => socket.close(),
  };
}
