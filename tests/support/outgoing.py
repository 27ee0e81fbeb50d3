"""Network intermediaries for tests: a proxy of our own, TLS in front of a plain server, and a server that redirects."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass  # the peer is gone
    finally:
        writer.close()


async def _join(
    first: tuple[asyncio.StreamReader, asyncio.StreamWriter], other: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    await asyncio.gather(_pump(first[0], other[1]), _pump(other[0], first[1]))


class ForwardProxy:
    """An HTTP proxy. Names that end with `.test` resolve to this machine; every request goes to the port in `ports` for
    its scheme (`http`, `https`). `asked`: the request lines; `logins`: the `Proxy-Authorization` headers."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            writer.close()
            return
        line, *headers = head.removesuffix("\r\n\r\n").split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (header.partition(":") for header in headers)}
        self.asked.append(line)
        self.logins.append(named.get("proxy-authorization"))
        method, target, version = line.split(" ")
        tunnelled = method == "CONNECT"
        upstream = await asyncio.open_connection("127.0.0.1", self.ports["https" if tunnelled else "http"])
        if tunnelled:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            parts = urlsplit(target)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            upstream[1].write("\r\n".join([f"{method} {path} {version}", *headers, "", ""]).encode())
        await _join((reader, writer), upstream)


@asynccontextmanager
async def forward_proxy(**ports: int) -> AsyncIterator[ForwardProxy]:
    proxy = ForwardProxy(ports)
    async with _listening(proxy.serve) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy


@asynccontextmanager
async def _listening(serve: object, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await serve(reader, writer)  # type: ignore[operator]

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def tls_front(port: int, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """TLS in front of the plain server on `port`, for any name below `.test`: returns its port, and the certificate
    that clients must trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=exchange.test"),
            *("-addext", "subjectAltName=DNS:*.exchange.test", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join((reader, writer), await asyncio.open_connection("127.0.0.1", port))

    async with _listening(serve, context) as front:
        yield front, certificate


class Signpost:
    """Redirects every request to a path of its own, and counts the requests of that path."""

    def __init__(self, status: int = 302) -> None:
        self.status = status
        self.followed = 0
        self.asked = 0
        self.url = ""
        self.target: str | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.followed += request.path.startswith("/elsewhere")
        return web.Response(status=self.status, headers={"Location": self.target or f"{self.url}/elsewhere?delete=1"})


@asynccontextmanager
async def signpost(status: int = 302) -> AsyncIterator[Signpost]:
    post = Signpost(status)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", post.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    post.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield post
    finally:
        await runner.cleanup()
