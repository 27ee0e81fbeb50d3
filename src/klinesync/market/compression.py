"""Compression of answers: JSON and the page's files, in a coding that the client accepts.

WebSocket frames are not compressed, because a frame is made once for all clients; event streams are not, because each
event is sent at once. Answers that are sent repeatedly (cached pages, files) are kept compressed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.market.content_coding import Coding, compress, negotiate

# Shortest answer that is compressed, in bytes; a shorter one takes as many packets uncompressed.
MIN_BYTES = 1000
# Longest answer that is compressed, in bytes, because it is held in memory as a whole.
MAX_BYTES = 16 << 20
# Answers of so many bytes or more, which take a millisecond or more, are compressed in a thread.
THREAD_FROM_BYTES = 32 << 10
MAX_THREADS = 2
# Most bytes of kept bodies and their compressed forms; the least recently sent ones are dropped first.
MAX_KEPT_BYTES = 16 << 20
# Most hashes of bodies that were sent once. A body is kept when it is sent again; most are sent once, to one client.
MAX_SEEN = 1024

COMPRESSIBLE = frozenset(
    {
        "application/json",
        "application/javascript",
        "text/javascript",
        "text/css",
        "text/html",
        "text/plain",
        "text/csv",
        "image/svg+xml",
    }
)


class CompressedBodies:
    """Compressed forms of bodies that are sent more than once."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Coding, bytes], bytes] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self.size = 0

    def get(self, coding: Coding, body: bytes) -> bytes | None:
        """The kept compressed form of this body; None without one."""
        found = self._kept.get((coding, body))
        if found is not None:
            self._kept.move_to_end((coding, body))
        return found

    def again(self, body: bytes) -> bool:
        """Whether this body was sent before, and is worth keeping."""
        key = hash(body)
        again = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return again

    def put(self, coding: Coding, body: bytes, compressed: bytes) -> None:
        """Keep the compressed form of a body, unless it exceeds the limit by itself."""
        key = (coding, body)
        if key in self._kept:
            return
        self._kept[key] = compressed
        self.size += len(body) + len(compressed)
        while self.size > self._max_bytes:
            (_, oldest), form = self._kept.popitem(last=False)
            self.size -= len(oldest) + len(form)


class Compression:
    """ASGI middleware: compresses answers of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bodies = CompressedBodies()
        self._threads = asyncio.Semaphore(MAX_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "HEAD":
            await self._app(scope, receive, send)
            return
        coding = negotiate(Headers(scope=scope).get("accept-encoding", ""))
        await self._app(scope, receive, _Answer(self, coding, send))

    async def compressed(self, body: bytes, coding: Coding, *, file: bool) -> bytes:
        """The body in a coding, kept or compressed now. `file`: a file of the page, which will be sent again."""
        kept = self._bodies.get(coding, body)
        if kept is not None:
            return kept
        keep = self._bodies.again(body) or file
        if len(body) < THREAD_FROM_BYTES:
            made = compress(body, coding, kept=keep)
        else:
            async with self._threads:
                made = await asyncio.to_thread(compress, body, coding, kept=keep)
        if keep:
            self._bodies.put(coding, body, made)
        return made


class _Answer:
    """The messages of one answer; those of an answer to compress are held until its body is whole."""

    def __init__(self, compression: Compression, coding: Coding | None, send: Send) -> None:
        self._compression = compression
        self._coding = coding
        self._send = send
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if _varies(message):
                MutableHeaders(raw=message["headers"]).add_vary_header("Accept-Encoding")
                if self._coding is not None and _worth_it(message):
                    self._start = message
                    return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            await self._finish(self._start)
            return
        await self._send(message)

    async def _finish(self, start: Message) -> None:
        assert self._coding is not None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        headers = MutableHeaders(raw=start["headers"])
        file = "immutable" in headers.get("cache-control", "")
        made = await self._compression.compressed(body, self._coding, file=file)
        if len(made) < len(body):
            headers["content-encoding"] = self._coding
            headers["content-length"] = str(len(made))
            etag = headers.get("etag")
            if etag is not None and not etag.startswith("W/"):
                headers["etag"] = f"W/{etag}"  # equal in meaning, not in bytes
            body = made
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _varies(start: Message) -> bool:
    """Whether an answer like this one is compressed for those who want it."""
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip()
    return kind in COMPRESSIBLE and "content-encoding" not in headers and "content-range" not in headers


def _worth_it(start: Message) -> bool:
    length = Headers(raw=start["headers"]).get("content-length", "")
    # Without a length it is a stream, of which each part is to be sent at once.
    return start["status"] == 200 and length.isdecimal() and MIN_BYTES <= int(length) <= MAX_BYTES
