"""`/ws/market`."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from klinesync.market.runtime import MarketRuntime
from klinesync.market.ws_transport import serve_socket

router = APIRouter()


@router.websocket("/ws/market")
async def market_socket(websocket: WebSocket) -> None:
    """Subscriptions of one client. See the protocol's reference for the messages."""
    runtime = websocket.app.state.runtime
    assert isinstance(runtime, MarketRuntime)
    await serve_socket(websocket, runtime.coordinator, runtime.hub.clients)
