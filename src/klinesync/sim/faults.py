"""What can go wrong on purpose: the kinds of fault, and how they are written down.

A fault is JSON with a `kind`; `symbols` (exchange names) and `market` narrow it. Seconds are the exchange's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from klinesync.core.errors import Rejected
from klinesync.sim.tape import Market

MAX_FAULT_S = 10 * 366 * 86_400  # no fault lasts or lags longer: ten years are more than any test has
MAX_FAULT_SYMBOLS = 10_000  # as many as the generator makes on a market
MAX_SCRIPT_FAULTS = 1000
_CODES_NEVER_SENT = (1004, 1005, 1006, 1015)  # RFC 6455, 7.4.1: no close frame carries them

Duration = Annotated[float, Meta(gt=0, le=MAX_FAULT_S)]
Count = Annotated[int, Meta(ge=1, le=10**9)]


class BadFault(Rejected):
    """A fault that cannot be."""

    code = "bad_fault"


class UnknownFault(Rejected):
    """There is no fault with that id."""

    code = "unknown_fault"

    def __init__(self, fault_id: object) -> None:
        self.fault_id = fault_id
        super().__init__(f"there is no fault {fault_id}; it was never added, or is lifted already")


class _Narrowed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    symbols: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_FAULT_SYMBOLS)] | None = None
    market: Market | None = None

    def covers(self, market: Market, symbol: str) -> bool:
        """Whether the fault concerns that symbol."""
        return (self.market is None or self.market == market) and (self.symbols is None or symbol in self.symbols)

    def concerns(self, market: Market, symbols: Collection[str]) -> bool:
        """Whether the fault concerns something that is about those symbols, which may be none."""
        if self.market is not None and self.market != market:
            return False
        return self.symbols is None or any(symbol in self.symbols for symbol in symbols)


# Connections


class Disconnect(_Narrowed, frozen=True, tag="disconnect"):
    """Once: connections are cut without a close frame, or closed with `code`; `count` of them, the oldest first."""

    code: Annotated[int, Meta(ge=1000, le=4999)] | None = None
    count: Count | None = None

    def __post_init__(self) -> None:
        if self.code in _CODES_NEVER_SENT:
            raise ValueError(f"code {self.code} is never sent; use another, or none for a cut without a close frame")


class RefuseConnect(_Narrowed, frozen=True, tag="refuse_connect"):
    """Handshakes are answered with `status`, or, with `reset`, not at all: the connection is cut."""

    status: Annotated[int, Meta(ge=400, le=599)] = 503
    reset: bool = False


class ServerShutdown(_Narrowed, frozen=True, tag="server_shutdown"):
    """Once: connections are told that the server stops, and are closed `delay_s` later."""

    delay_s: Annotated[float, Meta(ge=0, le=MAX_FAULT_S)] = 10.0


# Streams


class Silent(_Narrowed, frozen=True, tag="silent"):
    """Streams stop, the connection stays. `connections`: all, also those that are opened later, or only those that
    are present when the fault begins, so that a new connection has data again."""

    connections: Literal["all", "present"] = "all"


class _EventFault(_Narrowed, frozen=True):
    """Acts on each `every`-th event of a stream that it could act on, `count` times at most."""

    every: Count = 1
    count: Count | None = None


class DropClosed(_EventFault, frozen=True, tag="drop_closed"):
    """Final events are lost."""


class LateClosed(_EventFault, frozen=True, tag="late_closed"):
    """Final events come `delay_s` later; REST has the row meanwhile."""

    delay_s: Duration = 10.0


class Duplicate(_EventFault, frozen=True, tag="duplicate"):
    """Events come twice."""

    events: Literal["all", "closed"] = "all"


class Reorder(_EventFault, frozen=True, tag="reorder"):
    """An event waits until the next one of its stream has been sent."""

    events: Literal["all", "closed"] = "all"


Variant = Literal[
    "broken_json",  # cut in the middle
    "wrong_types",  # null, a list, an object, true, a number and a text where the others should be
    "wrong_symbol",  # another symbol's name, in the event of this one
    "wrong_interval",
    "closed_text",  # "x": "false"
    "nan",  # NaN and Infinity for prices and volume
    "future",  # E, t and T a year ahead
    "huge",  # more than a megabyte, nothing else wrong with it
    "binary",  # the event in a binary frame
]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class Malformed(_EventFault, frozen=True, tag="malformed"):
    """A frame that is not what it should be, before the good one or `instead` of it; without `variant` all of them in
    turn."""

    variant: Variant | None = None
    mode: Literal["extra", "instead"] = "extra"
    events: Literal["all", "closed"] = "all"


# REST


class _RestFault(_Narrowed, frozen=True):
    """`paths` narrows to those endpoints, `klines` for example; `count` is how many requests, none: all of them."""

    paths: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100)] | None = None
    count: Count | None = None


class RestError(_RestFault, frozen=True, tag="rest_error"):
    """Requests are answered with an error."""

    status: Annotated[int, Meta(ge=400, le=599)] = 500


class RestSlow(_RestFault, frozen=True, tag="rest_slow"):
    """Answers, made when the request comes, arrive `delay_s` later."""

    delay_s: Duration = 5.0


class RateLimit(_Narrowed, frozen=True, tag="rate_limit"):
    """`after` requests are still answered, `count` get 429; the next one begins a ban of `ban_s`, when that is given,
    during which everything gets 418. `retry_after_s` is what 429 says; none: the rest of the minute."""

    after: Annotated[int, Meta(ge=0, le=10**9)] = 0
    count: Count = 1
    retry_after_s: Annotated[int, Meta(ge=0, le=MAX_FAULT_S)] | None = None
    ban_s: Duration | None = None


class RestStale(_Narrowed, frozen=True, tag="rest_stale"):
    """Klines are shown as of `delay_s` ago; `time` stays true. Without `open_row` the candle that was in progress
    then is left out."""

    delay_s: Duration = 120.0
    open_row: bool = True


# The market


class Outage(_Narrowed, frozen=True, tag="outage"):
    """`minutes`, from the next one on, never happen: not in REST, not in streams, not in longer intervals."""

    minutes: Annotated[int, Meta(ge=1, le=MAX_FAULT_S // 60)] = 5


class Revise(_Narrowed, frozen=True, tag="revise"):
    """Once: the newest closed candle gets other values. Only REST shows them, unless `push` sends the final event
    anew."""

    push: bool = False


class Delist(_Narrowed, frozen=True, tag="delist"):
    """Trading ends with the present minute and begins again, after the fault is lifted, with the next one.

    exchangeInfo says `status` meanwhile (none: BREAK on spot, SETTLING on futures), or nothing when the symbol is
    `gone`. With `forget` (none: on futures) what was before is not served after it."""

    status: Annotated[str, Meta(pattern="^[A-Z_]{1,32}$")] | None = None
    gone: bool = False
    forget: bool | None = None


class Unlisted(_Narrowed, frozen=True, tag="unlisted"):
    """The symbol does not exist yet; lifting the fault lists it, from the next minute on."""


class ClockSkew(_Narrowed, frozen=True, tag="clock_skew"):
    """From the start only: the exchange's clock is `skew_s` ahead of the host's, or behind it."""

    skew_s: Annotated[float, Meta(ge=-MAX_FAULT_S, le=MAX_FAULT_S)]

    def __post_init__(self) -> None:
        if self.symbols is not None or self.market is not None:
            raise ValueError("a clock skew concerns the exchange as a whole; leave symbols and market away")


Fault = (
    Disconnect | RefuseConnect | ServerShutdown
    | Silent | DropClosed | LateClosed | Duplicate | Reorder | Malformed
    | RestError | RestSlow | RateLimit | RestStale
    | Outage | Revise | Delist | Unlisted | ClockSkew
)  # fmt: skip

_FAULT: msgspec.json.Decoder[Fault] = msgspec.json.Decoder(Fault)
_SCRIPT: msgspec.json.Decoder[tuple[Fault, ...]] = msgspec.json.Decoder(tuple[Fault, ...])

F = TypeVar("F", bound=_Narrowed, covariant=True)


@dataclass(eq=False, slots=True)
class Rule(Generic[F]):
    """A fault that is in force; `seen` counts how often it has acted."""

    id: int
    fault: F
    seen: int = 0


def kind_of(fault: _Narrowed) -> str:
    """The fault's kind as it is written."""
    return str(fault.__struct_config__.tag)


def decode_fault(text: bytes | str) -> Fault:
    """The fault that the JSON object describes. Raises `BadFault`."""
    try:
        return _FAULT.decode(text)
    except msgspec.MsgspecError as error:
        raise BadFault(f"the fault is refused: {error}") from None


def decode_script(text: bytes | str) -> tuple[Fault, ...]:
    """The faults of a JSON array. Raises `BadFault`, which says where."""
    try:
        script = _SCRIPT.decode(text)
    except msgspec.MsgspecError as error:
        raise BadFault(f"it is no list of faults: {error}") from None
    if len(script) > MAX_SCRIPT_FAULTS:
        raise BadFault(f"it has {len(script)} faults; {MAX_SCRIPT_FAULTS} are allowed")
    return script


def checked(fault: Fault) -> Fault:
    """The same fault, its values checked as those of a written one are. Raises `BadFault`."""
    return decode_fault(msgspec.json.encode(fault))
