"""Requests to a service over HTTP: retried while the service is busy; failures become sentences."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from klinesync.core.busy import repeat_after_s
from klinesync.core.decoding import Undecodable, decode_json
from klinesync.core.errors import KlinesyncError, Rejected

T = TypeVar("T")
R = TypeVar("R")

# Longest wait for an answer or a handshake, in seconds.
ANSWER_TIMEOUT_S = 30.0


class ServiceError(KlinesyncError):
    """The service answered with an error, or not at all. `code` is the service's; the message is a sentence."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class BadUrl(Rejected):
    """A malformed address of a service."""

    code = "bad_url"


class Refusal(msgspec.Struct):
    """The body of an error answer."""

    code: str
    detail: str


def service_url(text: str) -> str:
    """The address of a service (http://host:port), without the slash at its end. Raises `BadUrl`."""
    url = text.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading `port` checks the number
    except ValueError as error:
        raise BadUrl(f"{text!r} is no address of a service: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        example = f"http://{url.partition('://')[2] or url}" if url else "http://127.0.0.1:8000"
        raise BadUrl(f"{text!r} is no address of a service; write {example}")
    return url.rstrip("/")


async def get(session: aiohttp.ClientSession, url: str, params: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of the answer to a GET, which is retried after 503 `busy` and `shutting_down`. Raises what
    aiohttp raises."""
    repeats = 0
    while True:
        async with session.get(url, params=params) as answer:
            body = await answer.read()
        refusal = refusal_in(body) if answer.status == 503 else None
        code = None if refusal is None else refusal.code
        pause_s = repeat_after_s(answer.status, code, answer.headers.get("Retry-After"), repeats)
        if pause_s is None:
            return answer.status, body
        repeats += 1
        await asyncio.sleep(pause_s * random.uniform(1.0, 1.25))  # noqa: S311  # jitter


def refusal_in(body: bytes) -> Refusal | None:
    """The refusal in a body; None when the body is something else."""
    try:
        return decode_json(body, Refusal)
    except Undecodable:
        return None


def answer_in(body: bytes, kind: type[T], read: Callable[[T], R], where: str) -> R:
    """An answer, decoded and converted.

    body: of the answer
    kind: the type of the decoded body
    read: converts the decoded body to the result; may raise when its values contradict each other
    where: the address, for the sentence

    Returns the result of `read`. Raises `ServiceError` when the body is malformed.
    """
    try:
        return read(decode_json(body, kind))
    except (Undecodable, msgspec.MsgspecError, Rejected, ValueError, OverflowError, RecursionError) as error:
        raise ServiceError("bad_message", f"{where} sent an answer that is not understood: {error}") from None


def unreachable(url: str, error: Exception) -> str:
    """The sentence for a request or connection that failed with an `aiohttp.ClientError`, `OSError` or timeout."""
    return f"the service at {url} cannot be reached: {reason(error)}"


def reason(error: Exception) -> str:
    """Why a connection or a request failed, in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause: BaseException = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, socket.gaierror):
        return "no such host name"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is it running?"
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return "the connection broke off"
    if isinstance(cause, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        # The text of a failed connect may be aiohttp's own, with the address twice.
        return os.strerror(cause.errno).lower()
    return str(cause) or type(cause).__name__
