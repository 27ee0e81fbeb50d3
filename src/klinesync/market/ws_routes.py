"""`/ws/market`, and the answer to handshakes elsewhere."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, WebSocket
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from klinesync.core.printable import printable
from klinesync.market.ws_transport import serve_socket
from klinesync.market_data.orchestrator import MarketDataOrchestrator

SOCKET_PATH = "/ws/market"

router = APIRouter()


@router.websocket(SOCKET_PATH)
async def market_socket(websocket: WebSocket) -> None:
    """Subscriptions of one client. See the protocol's reference for the messages."""
    market_data = websocket.app.state.runtime.market_data
    assert isinstance(market_data, MarketDataOrchestrator)
    await serve_socket(websocket, market_data)


class SocketPaths:
    """ASGI: handshakes elsewhere than at `SOCKET_PATH` are answered with 404 in our shape of errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or scope["path"] == SOCKET_PATH:
            await self._app(scope, receive, send)
            return
        detail = printable(f"there is no WebSocket at {scope['path']}; it is {SOCKET_PATH}")
        answer = JSONResponse({"detail": detail, "code": "not_found"}, HTTPStatus.NOT_FOUND)
        await WebSocket(scope, receive, send).send_denial_response(answer)
