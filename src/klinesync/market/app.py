"""The web application: routes, errors, the page; and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path
from socket import AF_INET, AF_INET6, socket
from socket import create_server as create_server_socket

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.staticfiles import PathLike
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from klinesync import __version__
from klinesync.core.errors import CannotListen, KlinesyncError, StoreError
from klinesync.core.printable import printable
from klinesync.market import (
    backfill_routes,
    debug_routes,
    explain_routes,
    factor_routes,
    health_routes,
    http_routes,
    meta_routes,
    metrics_routes,
    status_routes,
    top_markets_routes,
    ws_routes,
)
from klinesync.market.bodies import BodyLimit
from klinesync.market.compression import Compression
from klinesync.market.error_codes import FrontDoorCode, http_status
from klinesync.market.http_limits import BoundedHttp
from klinesync.market.runtime import MarketRuntime
from klinesync.market.schemas import REFUSED, REFUSED_WITHOUT_TOKEN
from klinesync.market.security import TOKEN, GuardedApp
from klinesync.market.server_config import ServerConfig
from klinesync.market.stopping import CLIENTS_END_S, REFUSALS_SENT_S, RequestGate
from klinesync.market.ws_transport import MAX_MESSAGE_BYTES, MarketSocket
from klinesync.market_data.event_streams import RateLimited
from klinesync.runtime.bulkheads import Bulkheads, Part

# Connections that the kernel queues for the server.
BACKLOG = 2048
# Interval at which the common headers of answers are computed, in seconds; the Date header has seconds.
HEADERS_AGE_S = 1.0
# The server's own wait for connections that were cut off, in seconds.
CUT_OFF_TIMEOUT_S = 1

PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def create_app(runtime: MarketRuntime) -> FastAPI:
    """The application around a running `runtime`."""
    front = runtime.front
    guard = front.guard
    app = FastAPIOffline(
        title="klinesync",
        version=__version__,
        description="Candles that charts, strategies and bots can trust. WebSocket: `/ws/market`.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=list(_routes(debug=front.debug is not None, token=guard.token is not None)),
        redoc_url=None,
        redirect_slashes=False,  # a path with a trailing slash is unknown: 404
    )
    app.state.runtime = runtime
    app.state.front = front
    app.add_exception_handler(KlinesyncError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(WholeAnswers)
    app.add_middleware(ws_routes.SocketPaths)
    app.add_middleware(Compression)
    app.add_middleware(BodyLimit, budget=front.bodies)
    app.add_middleware(GuardedApp, guard=guard)
    if guard.origins:
        # Outside of the guard, so that a foreign page can read the refusal.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[str(origin) for origin in guard.origins],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    # Catches exceptions that the exception handlers do not.
    app.add_middleware(DefectBulkhead, bulkheads=runtime.bulkheads)
    # Outermost, because requests that end at a stop are no defects.
    app.add_middleware(RequestGate, requests=front.requests)
    _add_page(app, Path(str(resources.files("klinesync"))) / "web")
    return app


@cache
def _routes(*, debug: bool, token: bool) -> Sequence[BaseRoute]:
    """All routes of the service, created once per process, because FastAPI analyses their parameters at the first
    request, which takes about 50 ms.

    debug: whether the debug API is on.
    token: whether writes, debug and metrics require the token.
    """
    every = APIRouter(responses=REFUSED)
    for router in (
        http_routes.router,
        meta_routes.router,
        health_routes.router,
        explain_routes.router,
        status_routes.router,
        factor_routes.router,
        top_markets_routes.router,
    ):
        every.include_router(router)
    guarded = [http_routes.ingest_router, backfill_routes.router, metrics_routes.router]
    if debug:
        guarded.append(debug_routes.router)
    for router in guarded:
        if token:
            every.include_router(router, dependencies=TOKEN, responses=REFUSED_WITHOUT_TOKEN)
        else:
            every.include_router(router)
    every.include_router(ws_routes.router)
    return every.routes


class WholeAnswers:
    """ASGI: removes `Range`, so that every answer is whole. The page's files are short, and an
    unsatisfiable range would be answered with plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [header for header in scope["headers"] if header[0] not in (b"range", b"if-range")]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


class DefectBulkhead:
    """ASGI: counts and logs a defect in the handling of a request; the defect ends that request only."""

    def __init__(self, app: ASGIApp, bulkheads: Bulkheads) -> None:
        self._app = app
        self._bulkheads = bulkheads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except ClientDisconnected:
            raise
        except Exception as error:
            self._bulkheads.defect(Part.REQUEST, f"{scope['type']} {scope.get('path', '')[:200]!r}", error)
            if scope["type"] != "http":
                raise  # the socket's protocol answers
            if begun:
                return  # a begun answer cannot be replaced: the server ends the connection
            answer = _refused(500, "internal", "the service has a defect; its log has the trace")
            await answer(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn with a bounded time to stop, whatever clients do."""

    def __init__(self, config: uvicorn.Config, runtime: MarketRuntime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until `stop`. uvicorn checks ten times a second whether to stop; here `stop` ends the wait."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEADERS_AGE_S):
                    await self._stopped.wait()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept no more connections; end event streams, arriving bodies, and sockets with 1001; wait for requests in
        flight, and refuse those that take too long; then cut off the remaining connections."""
        for server in self.servers:
            server.close()
        front = self._runtime.front
        front.requests.stop()
        front.bodies.close()
        market_data = self._runtime.market_data
        market_data.end_streams()
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedHttp):
                connection.shutdown()  # at once, or after its answer
        await market_data.end_sockets()
        await self._gone(CLIENTS_END_S)
        front.requests.end()
        await self._gone(REFUSALS_SENT_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for listener in sockets or ():
            listener.close()
        for server in self.servers:
            await server.wait_closed()

    async def _gone(self, timeout_s: float) -> None:
        """Wait until all connections and requests have ended, for at most `timeout_s`; after a second `stop` not at
        all."""
        now = self._runtime.clock.monotonic_s
        until_s = now() + timeout_s
        state = self.server_state
        while (state.connections or state.tasks) and not self.force_exit and now() < until_s:  # noqa: ASYNC110  # uvicorn has sets, no event
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Shut down; at the second call without waiting for clients."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopped.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the command; uvicorn would raise them again before the runtime has stopped."""
        yield


def bind(host: str, port: int) -> socket:
    """A listening socket. Raises `CannotListen`."""
    try:
        return create_server_socket((host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(host, port, error) from None


def create_server(app: ASGIApp, runtime: MarketRuntime) -> Server:
    """A server for `app`; run it with `serve(sockets=[bind(…)])`."""
    config = ServerConfig(
        app,
        runtime.front.connections,
        http=BoundedHttp,
        ws=MarketSocket,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_graceful_shutdown=CUT_OFF_TIMEOUT_S,
    )
    return Server(config, runtime)


class Assets(StaticFiles):
    """The page's files. Their names have a hash of their contents, so browsers may cache them."""

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def _add_page(app: FastAPI, folder: Path) -> None:
    index = folder / "index.html"
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        if not index.is_file():
            return PlainTextResponse("klinesync runs. Its page is not built: `make setup` builds it.\n", 503)
        return FileResponse(index, headers=headers)

    if (folder / "assets").is_dir():
        app.mount("/assets", Assets(directory=folder / "assets"), name="assets")


def _error(status: int, code: str, detail: str) -> JSONResponse:
    return JSONResponse({"detail": printable(detail), "code": code}, status)


def _refused(status: int, code: FrontDoorCode, detail: str) -> JSONResponse:
    return _error(status, code, detail)


# Codes of errors of FastAPI and Starlette by HTTP status; `bad_request` for any other status.
_FRAMEWORK_CODES: dict[int, FrontDoorCode] = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KlinesyncError)
    status = http_status(type(error))
    if status is None:
        raise error
    if isinstance(error, StoreError):
        if request.method == "POST":
            return _refused(500, "ingest_failed:candles", "nothing was stored; the store cannot be written at present")
        return _error(status, error.code, "the store cannot be read at present")
    response = _error(status, error.code, str(error))
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(ceil(error.retry_after_s))
    return response


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return _refused(422, "bad_request", f"{where}: {first['msg']}")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI answers 400 for a body that is not UTF-8, and 422 for one that is not JSON.
    status = 422 if error.status_code == 400 else error.status_code
    detail = f"there is nothing at {request.url.path}" if status == 404 else str(error.detail)
    response = _refused(status, _FRAMEWORK_CODES.get(status, "bad_request"), detail)
    response.headers.update(error.headers or {})
    return response
