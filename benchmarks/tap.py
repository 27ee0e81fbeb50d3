"""WebSocket clients that note when each message arrived, and do nothing else until all have."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Sequence

PATIENCE_S = 60
FIN_TEXT, FIN_PING, FIN_PONG = 0x81, 0x89, 0x8A


class Tap:
    """One connection. `messages`: of each, the monotonic time of its arrival and its text."""

    def __init__(self, port: int, path: str) -> None:
        self.messages: list[tuple[float, bytes]] = []
        self._data = bytearray()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(4096)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self._take(rest)

    def send(self, message: object) -> None:
        """Send a message as JSON."""
        self._send(FIN_TEXT, json.dumps(message).encode())

    def read(self) -> None:
        """Take what has arrived; the other side must not have closed."""
        data = self.socket.recv(1 << 18)
        assert data, "the server closed the connection"
        self._take(data)

    def _send(self, first: int, body: bytes) -> None:
        """One frame; its mask is zero."""
        size = len(body)
        head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
        self.socket.sendall(head + b"\0\0\0\0" + body)

    def _take(self, data: bytes) -> None:
        """Split the stream into frames, which are whole messages; pings are answered."""
        at_s, held, start = time.monotonic(), self._data, 0
        held += data
        while len(held) >= start + 2:
            size, body = held[start + 1], start + 2
            if size == 126:
                size, body = int.from_bytes(held[start + 2 : start + 4], "big"), start + 4
            elif size == 127:
                size, body = int.from_bytes(held[start + 2 : start + 10], "big"), start + 10
            if len(held) < body + size:
                break
            if held[start] == FIN_TEXT:
                self.messages.append((at_s, bytes(held[body : body + size])))
            elif held[start] == FIN_PING:
                self._send(FIN_PONG, bytes(held[body : body + size]))
            start = body + size
        del held[:start]


class Listening:
    """Reads all taps in a thread of its own, until the end of the block."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = {tap.socket.fileno(): tap for tap in taps}
        self._stop, self._stopper = os.pipe()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="taps")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        os.write(self._stopper, b".")
        self._thread.join()
        os.close(self._stop)
        os.close(self._stopper)
        for tap in self._taps.values():
            tap.socket.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        poll = select.epoll()
        for number in (*self._taps, self._stop):
            poll.register(number, select.EPOLLIN)
        try:
            while True:
                for number, _ in poll.poll():
                    if number == self._stop:
                        return
                    self._taps[number].read()
        except (AssertionError, OSError) as error:
            self._failure = error
        finally:
            poll.close()
