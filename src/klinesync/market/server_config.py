"""ServerConfig: uvicorn's configuration, with the limits of connections."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp

from klinesync.market.limits import ConnectionLimits


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, which its protocols get, with the limits of connections.

    app: the application.
    limits: of connections.
    http, ws: the classes of the two protocols.
    ws_max_size: longest message of a client, in bytes.
    timeout_graceful_shutdown: the server's own wait for connections that were cut off, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        *,
        http: type[asyncio.Protocol],
        ws: type[asyncio.Protocol],
        ws_max_size: int,
        timeout_graceful_shutdown: int,
    ) -> None:
        super().__init__(
            app,
            lifespan="off",
            http=http,
            ws=ws,
            ws_max_size=ws_max_size,
            ws_ping_interval=limits.ping_interval_s,
            ws_ping_timeout=limits.ping_timeout_s,
            ws_per_message_deflate=False,  # compressed frames could not be shared by clients
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=timeout_graceful_shutdown,
        )
        self.connection_limits = limits


def limits_of(config: uvicorn.Config) -> ConnectionLimits:
    """The limits that the configuration of a protocol carries."""
    assert isinstance(config, ServerConfig)
    return config.connection_limits
