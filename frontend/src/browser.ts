// The browser behind the feed's ports.

import type { Ports, Socket, SocketEvents } from "./feed.ts";

const ANSWER_TIMEOUT_MS = 30_000;

export const browserPorts: Ports = {
  openSocket,
  async get(path, timeoutMs = ANSWER_TIMEOUT_MS) {
    const response = await fetch(path, {
      headers: { accept: "application/json" },
      signal: AbortSignal.timeout(timeoutMs),
    });
    const text = await response.text();
    // An error page of something between here and the service is no JSON, and no reason to fail either.
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
