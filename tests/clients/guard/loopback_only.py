"""Nothing under test may reach beyond this machine: an audit hook refuses every other address, and remembers it.

A client that calls home (an update check, a telemetry ping, a forgotten default URL) would otherwise make the tests
pass or fail by what the Internet says. The hook sees every connect and look-up made through Python's socket module,
from any thread, and cannot be taken off again.
"""

from __future__ import annotations

import ipaddress
import os
import sys

# One line per refused address is appended to this file, so that the refusals of a subprocess (freqtrade) can be read.
LOG = "KLINESYNC_REFUSED_ADDRESSES"

refused: list[str] = []


def is_loopback(host: object) -> bool:
    """Whether `host` (name or address, as the socket module was given it) is this machine."""
    if host is None or host in ("", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook. Raises `PermissionError` for an address that is not loopback."""
    if event == "socket.getaddrinfo":
        host, port = arguments[0], arguments[1]
    elif event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):
            return  # a Unix socket
        host, port = address[0], address[1]
    else:
        return
    if is_loopback(host):
        return
    told = f"{event} {host!r} port {port!r}"
    refused.append(told)
    if path := os.environ.get(LOG):
        with open(path, "a", encoding="utf-8") as log:  # noqa: PTH123 - this must not import more than it needs
            log.write(told + "\n")
    raise PermissionError(f"the client tests stay on this machine, but something asked for {told}")


def install() -> None:
    """From here on, for the rest of this process."""
    sys.addaudithook(refuse)
