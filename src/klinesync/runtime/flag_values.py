"""The values of flags: lists, series, timeframes, endpoints, secrets; and the allowed values in words."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BeforeValidator, InstanceOf
from pydantic.fields import FieldInfo

from klinesync.core.errors import Rejected
from klinesync.core.printable import is_text
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import MAX_DAYS, Timeframe

# Shown instead of a secret.
MASK = "***"
# Most derived timeframes, because a closing candle may complete a bucket of each.
MAX_TIMEFRAMES = 64
# Longest part of a refused value in a sentence, in characters.
MAX_SHOWN_CHARS = 120

# Credentials of an address (`user:password@`), and passwords among its parameters.
_USER_INFO = re.compile(r"(?<=://)[^/?#\s]*(?=@)")
_PASSWORD = re.compile(r"((?:password|passwd|pwd|token|secret)=)[^&\s]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The allowed values of a flag in words; in `Annotated` beside its type."""

    text: str


@dataclass(frozen=True, slots=True)
class Secret:
    """Marks a flag whose value is never shown; in `Annotated` beside its type."""


def split_list(value: object) -> tuple[str, ...]:
    """A comma-separated text, or a list of texts, as a tuple. Commas inside parentheses do not separate."""
    if isinstance(value, str):
        parts, depth, start = [], 0, 0
        for at, char in enumerate(value):
            depth += (char == "(") - (char == ")")
            if char == "," and depth == 0:
                parts.append(value[start:at])
                start = at + 1
        parts.append(value[start:])
        return tuple(part.strip() for part in parts if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError("is not a comma-separated list")


def parse_series_list(texts: tuple[str, ...]) -> tuple[SeriesId, ...]:
    """The texts as series, in order, without duplicates. Raises ValueError with the reason."""
    try:
        return tuple(dict.fromkeys(SeriesId.parse(text) for text in texts))
    except Rejected as error:
        raise ValueError(str(error)) from None


def masked(text: str) -> str:
    """A text without the credentials of addresses in it."""
    return _PASSWORD.sub(rf"\g<1>{MASK}", _USER_INFO.sub(MASK, text))


def shown(value: object, *, secret: bool = False) -> str:
    """A value as a sentence may quote it: short, without control characters and credentials."""
    if secret:
        return "its value"
    text = masked(value if isinstance(value, str) else str(value))
    return repr(text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…")


def is_secret(field: FieldInfo) -> bool:
    """Whether a flag's value is never shown."""
    return any(isinstance(mark, Secret) for mark in field.metadata)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values of a flag with a fixed list of values; empty for other flags."""
    kind = _kind(field)
    if kind is bool:
        return ("on", "off")
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()


def metavar(name: str, field: FieldInfo) -> str:
    """The placeholder of a flag's value in help."""
    kind = _kind(field)
    if kind in (int, float):
        return "N" if kind is int else "NUMBER"
    if kind is Path:
        return "PATH"
    if get_origin(kind) is tuple:
        return "LIST"
    return "URL" if name.endswith("_url") else name.upper().rpartition("_")[2]


def allowed(field: FieldInfo) -> str:
    """The allowed values of a flag, in words."""
    for mark in field.metadata:
        if isinstance(mark, Allowed):
            return mark.text
    if words := choices(field):
        return " or ".join((", ".join(words[:-1]), words[-1]))
    kind = _kind(field)
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _bounds(field)
    if kind is Path:
        return "a path"
    least = next((mark.min_length for mark in field.metadata if isinstance(mark, MinLen)), 0)
    return f"a text of at least {least} characters" if least > 1 else "a text"


def _kind(field: FieldInfo) -> object:
    """The type of a flag's value when it is set."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    optional = NoneType in get_args(field.annotation)
    return kinds[0] if optional and len(kinds) == 1 else field.annotation


def _bounds(field: FieldInfo) -> str:
    least: object = None
    most: object = None
    above: object = None
    for mark in field.metadata:
        match mark:
            case Ge(ge=bound):
                least = bound
            case Le(le=bound):
                most = bound
            case Gt(gt=bound):
                above = bound
    if least is not None:
        return f" from {least} to {most}" if most is not None else f", {least} or more"
    if above is not None:
        return f" above {above}" + ("" if most is None else f", at most {most}")
    return "" if most is None else f", at most {most}"


def _series_list(value: object) -> tuple[SeriesId, ...]:
    return parse_series_list(split_list(value))


def _timeframe(value: object) -> str:
    (code,) = _timeframe_list((value,))
    if code not in Timeframe.known:
        raise ValueError(f"{code} is not a timeframe of exchanges; use one of {' '.join(Timeframe.known)}")
    return code


def _timeframe_list(value: object) -> tuple[str, ...]:
    try:
        codes = tuple(Timeframe.parse(text).code for text in split_list(value))
    except Rejected as error:
        raise ValueError(str(error)) from None
    if (twice := next((code for code, count in Counter(codes).items() if count > 1), None)) is not None:
        raise ValueError(f"{twice} is listed twice")
    if len(codes) > MAX_TIMEFRAMES:
        raise ValueError(f"it has {len(codes)} timeframes, and at most {MAX_TIMEFRAMES} may be derived")
    return codes


def _path(value: object) -> object:
    if value == "":
        raise ValueError("it is empty")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("it contains a zero byte")
    return value


def endpoint(text: str, *schemes: str) -> str:
    """An address of one of `schemes` with a host and without a path. Raises ValueError with the reason."""
    address = web_address(text, *schemes)
    parts = urlsplit(address)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("it has a path, and the service appends its own")
    return f"{parts.scheme}://{parts.netloc}"


def web_address(text: str, *schemes: str) -> str:
    """An address of one of `schemes` with a host, and perhaps a path. Raises ValueError with the reason."""
    if any(char.isspace() or not char.isprintable() for char in text):
        raise ValueError("it has spaces or control characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"it cannot be an address ({error})") from None
    if parts.scheme not in schemes or not text.lower().startswith(f"{parts.scheme}://"):
        names = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"it does not begin with {names}")
    if not host:
        raise ValueError("it has no host")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{host[:80]!r} can be no host") from None
    if port == 0:
        raise ValueError("it has port 0")
    return text.rstrip("/")


def _endpoint(*schemes: str) -> BeforeValidator:
    def check(value: object) -> object:
        return endpoint(value, *schemes) if isinstance(value, str) else value

    return BeforeValidator(check)


def _database(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.startswith(("postgres://", "postgresql://")):
        raise ValueError("PostgreSQL is not built yet")
    path = value.removeprefix("sqlite:///")
    if path == value or not path.strip("/"):
        raise ValueError("it is not sqlite:///path")
    if "\0" in path:
        raise ValueError("it contains a zero byte")
    if not is_text(path):  # SQLite accepts only UTF-8 names
        raise ValueError("it is not UTF-8")
    return value


def _archive(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        return web_address(value, "http", "https")
    return _path(value)


TextList = Annotated[tuple[str, ...], BeforeValidator(split_list), Allowed("a comma-separated list")]
SeriesList = Annotated[
    tuple[InstanceOf[SeriesId], ...],
    BeforeValidator(_series_list),
    Allowed("a comma-separated list of series, such as binance:spot:BTC/USDT:1m"),
]
TimeframeList = Annotated[
    tuple[str, ...],
    BeforeValidator(_timeframe_list),
    Allowed(
        f"a comma-separated list of {' '.join(Timeframe.known)}, other parts of a day such as 45m, and days up to "
        f"{MAX_DAYS}d; each a multiple of the base"
    ),
]
TimeframeCode = Annotated[str, BeforeValidator(_timeframe), Allowed(f"one of {' '.join(Timeframe.known)}")]
RestUrl = Annotated[
    str, _endpoint("http", "https"), Allowed("http:// or https://, a host, maybe a port: https://api.binance.com")
]
WsUrl = Annotated[
    str, _endpoint("ws", "wss"), Allowed("ws:// or wss://, a host, maybe a port: wss://stream.binance.com:9443")
]
ArchiveUrl = Annotated[
    str | None, BeforeValidator(_archive), Allowed("an address that begins with http:// or https://, or a folder")
]
DatabaseUrl = Annotated[str, BeforeValidator(_database), Allowed("sqlite:/// and an absolute path")]
OptionalPath = Annotated[Path | None, BeforeValidator(_path), Allowed("a path")]
OptionalSecret = Annotated[str | None, Secret()]
