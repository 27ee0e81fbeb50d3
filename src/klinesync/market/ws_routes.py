"""`/ws/market`: one reader and one writer task a socket."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from klinesync.market.runtime import MarketRuntime
from klinesync.ws.hub import Client, Outbox

router = APIRouter()

# How long a connection may take to accept its end before it is cut off.
CLOSE_TIMEOUT_S = 5.0


@router.websocket("/ws/market")
async def market_socket(websocket: WebSocket) -> None:
    """Subscriptions of one client. See the protocol's reference for the messages."""
    runtime = websocket.app.state.runtime
    assert isinstance(runtime, MarketRuntime)
    await websocket.accept()
    client = Client()
    runtime.coordinator.connected(client)
    reader = asyncio.create_task(_read(websocket, runtime, client), name="socket reader")
    writer = asyncio.create_task(_write(websocket, client.outbox), name="socket writer")
    try:
        ended = asyncio.create_task(client.outbox.wait_ended(), name="socket end")
        await asyncio.wait([reader, writer, ended], return_when=asyncio.FIRST_COMPLETED)
        if client.outbox.ended is not None:
            # The writer closes after what waits; a client that takes nothing any more is cut off.
            await asyncio.wait([writer], timeout=CLOSE_TIMEOUT_S)
    finally:
        runtime.coordinator.disconnected(client)
        for task in (reader, writer, ended):
            task.cancel()
        await asyncio.gather(reader, writer, ended, return_exceptions=True)


async def _read(websocket: WebSocket, runtime: MarketRuntime, client: Client) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        await runtime.coordinator.handle(client, message["bytes"] if text is None else text)


async def _write(websocket: WebSocket, outbox: Outbox) -> None:
    # A client may go away at any time; the reader, or the next write, then ends the connection.
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            for message in await outbox.take():
                await websocket.send_text(message)
            if outbox.ended is not None:
                await websocket.close(outbox.ended)
                return
