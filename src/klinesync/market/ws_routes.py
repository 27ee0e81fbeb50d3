"""`/ws/market`, and the answer to handshakes at other paths."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket
from starlette.types import ASGIApp, Receive, Scope, Send

from klinesync.market.error_codes import Refusal
from klinesync.market.http_routes import market_data_of
from klinesync.market.refusals import send_refusal
from klinesync.market.ws_transport import serve_socket

SOCKET_PATH = "/ws/market"

router = APIRouter()


@router.websocket(SOCKET_PATH)
async def market_socket(websocket: WebSocket) -> None:
    """Subscriptions of one client. See the protocol's reference for the messages."""
    await serve_socket(websocket, market_data_of(websocket))


class SocketPaths:
    """ASGI: answers handshakes at other paths than `SOCKET_PATH` with 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or scope["path"] == SOCKET_PATH:
            await self._app(scope, receive, send)
            return
        detail = f"there is no WebSocket at {scope['path']}; it is at {SOCKET_PATH}"
        await send_refusal(scope, send, Refusal(404, "not_found", detail))
