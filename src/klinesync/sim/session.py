"""One WebSocket connection's protocol: requests in, answers out; what it listens to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec

from klinesync.sim.limits import MAX_STREAMS
from klinesync.sim.tape import Market

_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_MAX_ID_CHARS = 36

RequestId = int | str | None


@dataclass(frozen=True, slots=True)
class Route:
    """What a WebSocket address stands for. `live` is False where klines are never sent: the retired futures routes,
    and those for other kinds of data."""

    market: Market
    live: bool
    combined: bool
    micro: bool
    streams: tuple[str, ...]


def parse_route(path: str, query: str) -> Route | None:
    """The route of a raw path and query; None when the exchange has no such address (404)."""
    market: Market = "spot"
    live = True
    for prefix, of_market, is_live in (
        ("/market", "futures", True),
        ("/public", "futures", False),
        ("/private", "futures", False),
        ("/futures-legacy", "futures", False),
    ):
        if path == prefix or path.startswith(prefix + "/"):
            market = "futures" if of_market == "futures" else "spot"
            live = is_live
            path = path[len(prefix) :]
            break
    arguments = _arguments(query)
    unit = arguments.get("timeUnit", "")
    micro = market == "spot" and unit in ("MICROSECOND", "microsecond")
    # `/stream/ws` is not the exchange's: ccxt takes an address for spot by the word "stream" in it.
    for prefix in ("/stream/ws", "/ws"):
        if path == prefix or path.startswith(prefix + "/"):
            names = tuple(unquote(name) for name in path[len(prefix) :].split("/") if name)
            return Route(market, live, False, micro, names)
    if path in ("/stream", "/stream/"):
        names = tuple(name for name in arguments.get("streams", "").split("/") if name)
        return Route(market, live, True, micro, names)
    return None


def _arguments(query: str) -> dict[str, str]:
    # A plus sign is part of a stream's name here (`@+08:00`), not a space.
    pairs = (part.partition("=") for part in query.split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}


@dataclass(slots=True)
class Answer:
    """What a message does: `text` goes back, streams are joined and left, the connection closes with `close`."""

    text: str | None = None
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    rewrap: bool = False
    close: tuple[int, str] | None = None


class _BadRequest(Exception):
    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(slots=True)
class Session:
    """A connection's state. `names` are the streams as the client named them, dead ones too, in order."""

    route: Route
    combined: bool
    names: dict[str, None] = field(default_factory=dict)

    def open(self) -> Answer:
        """What the address itself asks for."""
        return self._subscribe(self.route.streams, None, silent=True)

    def receive(self, text: str) -> Answer:
        """The answer to one text message."""
        try:
            message = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Answer(_error(3, f"Invalid JSON: {_where(text)}"))
        try:
            return self._request(message)
        except _BadRequest as bad:
            return Answer(_error(bad.code, bad.message, **_echo(message)))

    def _request(self, message: object) -> Answer:
        if not isinstance(message, dict):
            raise _BadRequest(2, "Invalid request: expected an object")
        if "method" not in message:
            raise _BadRequest(2, "Invalid request: missing field `method` at line 1 column 1")
        method = message["method"]
        if method not in _METHODS:
            raise _BadRequest(
                2,
                f"Invalid request: unknown variant `{method}`, expected one of "
                + ", ".join(f"`{known}`" for known in _METHODS)
                + " at line 1 column 1",
            )
        request_id = message.get("id")
        if isinstance(request_id, bool) or not isinstance(request_id, int | str | None):
            raise _BadRequest(2, "Invalid request: request ID must be an unsigned integer")
        if isinstance(request_id, str) and len(request_id) > _MAX_ID_CHARS:
            raise _BadRequest(2, "Invalid request: request ID must be an unsigned integer")
        params = message.get("params", [])
        if not isinstance(params, list):
            raise _BadRequest(2, "Invalid request: params must be an array")
        if method == "LIST_SUBSCRIPTIONS":
            return Answer(_result(list(self.names), request_id))
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            names = tuple(name for name in params if isinstance(name, str))
            if len(names) != len(params):
                raise _BadRequest(2, "Invalid request: stream name must be a string")
            if method == "SUBSCRIBE":
                return self._subscribe(names, request_id)
            left = tuple(name for name in dict.fromkeys(names) if name in self.names)
            for name in left:
                del self.names[name]
            return Answer(_result(None, request_id), unsubscribe=left)
        return self._property(method == "SET_PROPERTY", params, request_id)

    def _subscribe(self, names: Iterable[str], request_id: RequestId, *, silent: bool = False) -> Answer:
        new = tuple(name for name in dict.fromkeys(names) if name not in self.names)
        if len(self.names) + len(new) > MAX_STREAMS:
            return Answer(_error(4, "Too many subscriptions"), close=(1008, "Invalid request"))
        self.names.update(dict.fromkeys(new))
        return Answer(None if silent else _result(None, request_id), subscribe=new)

    def _property(self, is_set: bool, params: list[object], request_id: RequestId) -> Answer:
        if len(params) > 1 + is_set:
            raise _BadRequest(2, "Invalid request: too many parameters")
        if not params or not isinstance(params[0], str):
            raise _BadRequest(2, "Invalid request: property name must be a string")
        if params[0] != "combined":
            raise _BadRequest(0, "Unknown property")
        if not is_set:
            return Answer(_result(self.combined, request_id))
        if len(params) < 2 or not isinstance(params[1], bool):
            raise _BadRequest(1, "Invalid value type: expected Boolean")
        self.combined = params[1]
        return Answer(_result(None, request_id), rewrap=True)


def _result(value: object, request_id: RequestId) -> str:
    return msgspec.json.encode({"result": value, "id": request_id}).decode()


def _error(code: int, message: str, **echo: object) -> str:
    return msgspec.json.encode({"error": {"code": code, "msg": message}, **echo}).decode()


def _echo(message: object) -> dict[str, object]:
    if isinstance(message, dict):
        request_id = message.get("id")
        if isinstance(request_id, int | str) and not isinstance(request_id, bool):
            return {"id": request_id}
    return {}


def _where(text: str) -> str:
    """Where a text stops being JSON, in the exchange's words."""
    stripped = text.strip()
    line = text.count("\n") + 1
    return f"{'EOF while parsing a value' if not stripped else 'expected value'} at line {line} column 1"
