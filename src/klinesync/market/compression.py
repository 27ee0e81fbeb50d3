"""Compression of answers: JSON and the page's files, in a coding that the client accepts.

WebSocket frames are not compressed, because all clients share the same frame; event streams are not, because each event
is sent at once. Answers that are sent repeatedly (cached pages, files) are cached in compressed form.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.market.content_coding import Coding, compress, negotiate

# Shortest answer that is compressed, in bytes; a shorter one needs as many packets uncompressed.
MIN_BYTES = 1000
# Longest answer that is compressed, in bytes, because it is held in memory as a whole.
MAX_BYTES = 16 << 20
# Shortest answer, in bytes, that is compressed in a thread, because it takes a millisecond or more.
THREAD_FROM_BYTES = 32 << 10
MAX_THREADS = 2
# Most bytes of cached bodies and their compressed forms; the least recently used are dropped first.
MAX_KEPT_BYTES = 16 << 20
# Most remembered hashes of bodies that were sent once. A body is cached when it is sent again; most are not.
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
        self._cache: OrderedDict[tuple[Coding, bytes], bytes] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self.size = 0

    def get(self, coding: Coding, body: bytes) -> bytes | None:
        """The cached compressed form of this body; None without one."""
        compressed = self._cache.get((coding, body))
        if compressed is not None:
            self._cache.move_to_end((coding, body))
        return compressed

    def again(self, body: bytes) -> bool:
        """Whether this body was sent before, so that caching pays."""
        key = hash(body)
        again = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return again

    def put(self, coding: Coding, body: bytes, compressed: bytes) -> None:
        """Cache the compressed form of a body; other forms are dropped when the cache is full."""
        key = (coding, body)
        if key in self._cache:
            return
        self._cache[key] = compressed
        self.size += len(body) + len(compressed)
        while self.size > self._max_bytes:
            (_, oldest), form = self._cache.popitem(last=False)
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
        """The body in a coding, from the cache or compressed now. `file`: whether it is a file of the page, which is
        cached."""
        cached = self._bodies.get(coding, body)
        if cached is not None:
            return cached
        keep = self._bodies.again(body) or file
        if len(body) < THREAD_FROM_BYTES:
            result = compress(body, coding, kept=keep)
        else:
            async with self._threads:
                result = await asyncio.to_thread(compress, body, coding, kept=keep)
        if keep:
            self._bodies.put(coding, body, result)
        return result


class _Answer:
    """The messages of one answer; those of an answer to compress are held until the body is complete."""

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
                headers["etag"] = f"W/{etag}"  # weak: equal in meaning, not in bytes
            body = made
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _varies(start: Message) -> bool:
    """Whether an answer of this type may be compressed."""
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip()
    return kind in COMPRESSIBLE and "content-encoding" not in headers and "content-range" not in headers


def _worth_it(start: Message) -> bool:
    length = Headers(raw=start["headers"]).get("content-length", "")
    # An answer without a length is a stream, whose parts are sent at once.
    return start["status"] == 200 and length.isdecimal() and MIN_BYTES <= int(length) <= MAX_BYTES
