"""Why a connection or a request failed, as a sentence that names the address. Pure: errors in, text out."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from urllib.parse import urlsplit

# Errors of HTTP clients, without an error of the operating system, when the other side ends a connection early.
_BROKEN_OFF = frozenset({"ServerDisconnectedError", "ClientPayloadError"})
# Error of an HTTP client when a WebSocket handshake is answered with a status other than 101.
_BAD_HANDSHAKE = "WSServerHandshakeError"
# Error of an HTTP client when a proxy answers a CONNECT with a status other than 200.
_PROXY_REFUSAL = "ClientHttpProxyError"


def unreachable(url: str, error: BaseException) -> str:
    """A sentence about a failed request: `fapi.binance.com cannot be found: no such name`.

    url: the requested address; the sentence has its host and, where the address has one, its port.
    error: an OSError, a timeout, or an HTTP client's error around one (`os_error`).
    """
    host = address_of(url)
    cause = _cause(error)
    match cause:
        case socket.gaierror():
            temporary = cause.errno == socket.EAI_AGAIN
            return f"{host} cannot be found: " + ("the name server does not answer" if temporary else "no such name")
        case ssl.SSLCertVerificationError():
            return f"{host} is not trusted: {getattr(cause, 'verify_message', None) or cause}"
        case ssl.SSLError():
            # Only errors that OpenSSL itself raised have a reason.
            return f"{host} cannot be talked to securely: {getattr(cause, 'reason', None) or cause}"
        case TimeoutError():
            return f"{host} does not answer in time"
        case ConnectionRefusedError():
            return f"{host} cannot be reached: connection refused"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return f"{host} broke the connection off"
    if type(cause).__name__ in _BROKEN_OFF:
        return f"{host} broke the connection off"
    if type(cause).__name__ == _BAD_HANDSHAKE:
        return f"{host} answers a WebSocket handshake with {getattr(cause, 'status', 'no status')}"
    if type(cause).__name__ == _PROXY_REFUSAL:
        return f"{host} cannot be reached: the proxy refuses with {getattr(cause, 'status', 'no status')}"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        # The text of a failed connect may be the client's own, with the address again.
        return f"{host} cannot be reached: {os.strerror(cause.errno).lower()}"
    text = str(cause).splitlines()[0] if str(cause) else ""
    return f"{host} cannot be reached: {text or type(cause).__name__}"


def address_of(url: str) -> str:
    """Host and port of an address (the port where the address has one), without user, password and path."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or url
    except ValueError:
        return url


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system, where the client's error carries one."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, BaseException) and inner is not error:
        return _cause(inner)
    certificate = getattr(error, "certificate_error", None)
    return certificate if isinstance(certificate, BaseException) else error
