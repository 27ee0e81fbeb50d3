"""docs/reference/errors.md, made from the code and from the explanations of codes in this module."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import generated

import klinesync
from klinesync.core.errors import KlinesyncError, Rejected, StoreError, Transient

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"

# By HTTP status and code: when a request gets this answer.
HTTP: dict[tuple[int, str], str] = {
    (
        400,
        "bad_request",
    ): "no HTTP, not exactly one `Host`, a body in an unknown transfer encoding or with a broken chunk",
    (401, "unauthorized"): "the [token](../how-to/run-beyond-loopback.md) is missing or wrong",
    (403, "forbidden"): "`Host` is not one of this service, the `Origin` of a write is foreign, or a browser marks a "
    "request below `/api` as another site's (`Sec-Fetch-Site: cross-site` or `same-site`) and its `Origin` is not "
    "admitted",
    (404, "not_found"): "there is no such path, or the flag that switches the path on is off",
    (404, "unknown_series"): "nothing is stored, and the exchange does not list the symbol (an exchange that cannot be "
    "asked, or does not answer within 5 s, does not count)",
    (405, "method_not_allowed"): "the path has no such method",
    (408, "too_slow"): "no whole request head within 20 s; a body that brings nothing for 20 s, or less than 500 bytes "
    "a second over 30 s",
    (
        409,
        "ledger_out_of_sync",
    ): "factors and overlays are not at the same candle yet: a frame needs both. Retry in a moment",
    (409, "ledger_out_of_sync:factor"): "factors lag behind the candles; `detail` is the code. Retry in a moment",
    (409, "ledger_out_of_sync:overlay"): "overlays lag behind the candles; `detail` is the code. Retry in a moment",
    (413, "too_large"): "the body is longer than 8 MiB",
    (414, "too_large"): "the URL is longer than 8 KiB",
    (422, "bad_candle"): "a candle that must not get in; the value and the reason are named",
    (422, "bad_request"): "a malformed parameter or body; the field is named",
    (422, "derived_series"): "the series is derived from another one; write that one",
    (
        429,
        "rate_limited",
    ): "too many expensive requests, or too many open event streams; `Retry-After` says when to retry",
    (431, "too_large"): "more than 100 headers, or a head longer than 32 KiB",
    (500, "ingest_failed:candles"): "nothing was stored: the store cannot be written",
    (500, "internal"): "a defect of the service; its log has the trace",
    (502, "upstream_error"): "the exchange cannot be asked, and there is no earlier answer",
    (503, "busy"): "64 MiB of bodies are in flight, or the body was the slowest of them; retry after `Retry-After`",
    (
        503,
        "shutting_down",
    ): "the service stops: within 1.5 s pending requests are answered, later ones are refused; after "
    "5 s at most the process has ended",
    (
        503,
        "store_damaged",
    ): "a part of the store that the request needs is damaged; `klinesync verify` lists the damage",
    (503, "store_error"): "the store cannot be read at present",
    (503, "store_replaced"): "the files of the store are not the ones that the service has opened; restart the service",
    (503, "too_many_connections"): "20,000 connections (fewer where the system lets the process open fewer files: 500 "
    "are kept for the store), or 10,000 WebSocket clients",
}

# By code: when `/ws/market` sends this `error`. The connection stays open.
WEBSOCKET: dict[str, str] = {
    "bad_request": "the message is not JSON, has no or an unknown `type`, or a bad field: `unknown message type: X`, "
    "`missing series_id`, `invalid since`, `invalid supports_batch`, `invalid fields`",
    "capacity": "message `ondemand_ingest_capacity`: as many series on demand as `ondemand_max_jobs` or the venue "
    "allows; where the venue is the reason, `detail` says how many fit",
    "rate_limited": "too many messages; the message was not read",
    "store_damaged": "as `store_error`; the part of the store that the subscription needs is damaged",
    "store_error": "the store cannot be read at present; subscribe again later",
    "store_replaced": "as `store_error`; the files of the store were replaced, and the service needs a restart",
    "too_many_subscriptions": "2,000 subscriptions a connection; open another connection",
    "unknown_series": "no such exchange, market or symbol",
}

HEAD = """# Errors

`code` is stable, and programs may branch on `code`; `detail` (HTTP) and `message` (WebSocket) are sentences for people:
what, which, what to do. A sentence is one line of at most 2,000 characters, and text from outside in a sentence is
escaped.

Three kinds. *Rejected*: the caller's mistake; nothing was changed, and the same request fails again. *Transient*: the
service retries, and health and status show the trouble. Everything else is a defect: the part that met the defect
restarts, the log has a trace, and `klinesync_defects_total` counts.

## HTTP

`{"detail": "<sentence>", "code": "<code>"}`. Any route may answer 400, 403, 405, 408, 414, 431, 500 `internal` and 503;
[which route answers what else](http.md#routes).

"""


def error_classes() -> list[type[KlinesyncError]]:
    """Every error class of the package, by kind and name, except internal ones (`_Name`) and those of the simulated
    exchange."""
    for module in pkgutil.walk_packages(klinesync.__path__, "klinesync."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    classes = [
        found
        for found in dict.fromkeys(_below(KlinesyncError))
        if not found.__name__.startswith("_") and found.__module__.startswith("klinesync.")
    ]
    public = [found for found in classes if not found.__module__.startswith("klinesync.sim.")]
    return sorted(public, key=lambda found: (_KINDS.index(_kind(found)), found.__name__))


def page() -> str:
    """The text of the page."""
    http = [(str(status), f"`{code}`", when) for (status, code), when in sorted(HTTP.items())]
    rows = [
        (
            f"`{_room(error)}.{error.__name__}`",
            "per error" if error.code == "internal" else f"`{error.code}`",
            _kind(error),
            _meaning(error),
        )
        for error in error_classes()
        if error not in _KIND_CLASSES
    ]
    return (
        HEAD
        + generated.table(("status", "code", "when"), http)
        + '\n## WebSocket\n\n`{"type": "error", "code", "message"}`, with `series_id` and `detail` where there are '
        + "any. [Close codes](websocket.md) end a connection.\n\n"
        + generated.table(("code", "when"), [(f"`{code}`", when) for code, when in sorted(WEBSOCKET.items())])
        + "\n## Commands\n\nA command that fails prints the sentence of one error on stderr. Exit status: 0 done, "
        + "1 failed, 2 wrong use, 130 interrupted; [which is which](commands.md).\n"
        + "\n## Python\n\nThe error classes of the package; all are `klinesync.core.errors.KlinesyncError`.\n\n"
        + generated.table(("class", "code", "kind", "meaning"), rows)
    )


_KINDS = ("rejected", "transient", "store", "other")
_KIND_CLASSES = (Rejected, Transient, StoreError)


def _kind(error: type[KlinesyncError]) -> str:
    for name, root in zip(_KINDS, _KIND_CLASSES, strict=False):
        if issubclass(error, root):
            return name
    return "other"


def _room(error: type[KlinesyncError]) -> str:
    return error.__module__.split(".")[1]


def _meaning(error: type[KlinesyncError]) -> str:
    return generated.sentence(error.__doc__)


def _below(error: type[KlinesyncError]) -> Iterator[type[KlinesyncError]]:
    for found in error.__subclasses__():
        yield found
        yield from _below(found)
