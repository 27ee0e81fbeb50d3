"""docs/reference/logs.md, made from the calls that write log lines."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import generated

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "klinesync"
PAGE = ROOT / "docs" / "reference" / "logs.md"

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
# Methods that limit the rate of a line, and take its event.
LIMITED = ("warn", "_warn", "_log")
EVENT = re.compile(r"[a-z]+(\.[a-z]+(_[a-z]+)*)?")
# The simulated exchange is a separate program, and logs with the standard library.
OTHER_PROGRAMS = ("sim",)

# By event: its meaning.
MEANINGS: dict[str, str] = {
    "audit.postponed": "the audit of a series is postponed",
    "audit.revised": "the audit found other values of stored candles; they are corrected",
    "backfill.resume_failed": "which backfills were running before the restart cannot be read",
    "backfill.resumed": "a backfill of before the restart goes on",
    "command.failed": "where in the code a command met what its sentence says (with `--verbose`)",
    "connections.limited": "the system lets the process open so few files that fewer clients fit",
    "defect": "an exception that nobody expected ended a part of the service, which begins again; with its trace",
    "derived.forming_failed": "the derived candles in progress cannot be read from the store",
    "derived.recompute": "derived series are computed anew: `done` of `total`",
    "derived.recompute_failed": "derived series cannot be computed anew at present; tried again",
    "derived.settle_failed": "whether derived series fit the flags cannot be checked yet",
    "events.unreadable": "the stored events of series cannot be read; those of before this start are lost",
    "events.unwritten": "the newest events of series cannot be stored",
    "exchange.clock": "a clock of the exchange jumped, or its clocks differ",
    "exchange.close_failed": "connections to an exchange could not be closed",
    "exchange.reachable": "the exchange sends frames or answers again",
    "exchange.time_failed": "the exchange does not tell its time",
    "exchange.unreachable": "the exchange sends no frames and answers no requests",
    "factor.left_out": "a factor failed while a slice was read; the slice is without it",
    "files.left_out": "a file of history, rows of a file, or an archive is left out",
    "flags.left_out": "variables of an orchestrator are ignored",
    "gap.declared": "candles are missing, and live candles go on behind the gap",
    "history.files_failed": "files of a source cannot be read; the next source is read",
    "history.gap_failed": "a gap cannot be read from the exchange; tried again after a backoff",
    "history.look_failed": "missing candles cannot be looked up in the store; tried again after a backoff",
    "history.lost": "candles that no source has any more",
    "history.native_failed": "native candles of a derived series cannot be read; tried again after a backoff",
    "history.not_listed": "the exchange does not list the symbol; its gaps stay",
    "history.queue_full": "the queue of missing candles has no room; requested again later",
    "history.store_failed": "missing candles cannot be requested because the store fails",
    "history.tail_failed": "the missing tail of a series cannot be read; tried again after a backoff",
    "history.unproven": "an answer neither filled a gap nor showed it empty; requested again after a backoff",
    "ledger.catch_up_failed": "factors and overlays of a series cannot catch up with its candles; tried again",
    "ledger.failed": "factors and overlays failed in a write; the candles are stored, the ledgers lag",
    "ledger.flow_not_redone": "order flow was filled in, and the states of factors that read it cannot be redone: the "
    "ledger is rewound",
    "ledger.lags": "a factor or overlay failed at a candle; the ledger of the series lags",
    "ledger.look_failed": "which ledgers lag cannot be read from the store; tried again",
    "ledger.rebuilt": "stored states cannot be read: the factors of a series are computed anew",
    "ledger.trimmed": "stored states cannot be kept at a trim: factors begin at the first remaining candle",
    "origin.refused": "a browser page of another origin is refused; once an origin",
    "overlay.left_out": "an overlay failed while drawings were read; they are without it",
    "pipeline.batch_failed": "a write transaction failed; nothing of the batch is stored",
    "pipeline.pack_failed": "the newest candles, or those of a damaged series, cannot be packed; tried again later",
    "pipeline.submission_failed": "a submission that was written alone failed",
    "plugin.suspended": "a factor or overlay that failed again and again does not run until the next start",
    "rest.items_left_out": "items of a REST answer are invalid, and are left out",
    "rest.row_quarantined": "a row of a REST answer is no valid candle, and is left out",
    "retention.failed": "old candles cannot be trimmed; tried again",
    "retention.trimmed": "old candles of a series were trimmed",
    "series.history_failed": "the history in front of live candles cannot be read; tried again with backoff",
    "series.no_capacity": "a series is not followed: the venue has no room for it",
    "series.not_followed": "a series of an exchange cannot be followed",
    "series.store_failed": "a series begins again once the store can be read",
    "startup.left_out": "a series of the whitelist cannot be followed",
    "startup.progress": "how far the start-up sweep is: `done` of `total` series",
    "startup.retry": "the start-up sweep tries a series again after a backoff",
    "store.damaged": "a part of the store cannot be read",
    "store.healed": "damaged candles that were in quarantine are stored again, or their absence is settled",
    "store.hole": "stored candles are gone, and no gap has them: declared, and requested again",
    "store.lock_retaken": "the lock file had been removed while the service held the lock",
    "store.log_left": "the write-ahead log of a replaced store cannot be moved away",
    "store.log_moved": "the write-ahead log of a replaced store was moved aside",
    "store.mended": "a part of the store that was damaged can be read again",
    "store.not_healed": "a damaged part of the store cannot be healed while the service runs",
    "store.probe_failed": "the store, which could not be written, still cannot be",
    "store.quarantine_unreadable": "what is in quarantine since an earlier start cannot be read",
    "store.quarantined": "damaged candles were taken out of the store, and are kept in quarantine",
    "store.repack_failed": "candles of an earlier format could not be packed anew; the next start tries again",
    "store.repacked": "candles of an earlier format were packed anew; in how many series some are left",
    "store.repacking": "candles of an earlier format are packed anew, a few chunks at a time",
    "store.replaced": "the files of the store are not those that were opened",
    "store.scrub_failed": "the stored candles of a series cannot be checked",
    "store.unwritable": "a write failed; stored candles are served meanwhile",
    "store.writable": "the store can be written again",
    "stream.check_postponed": "a check over REST is postponed",
    "stream.closed_early": "a frame closed a candle before its end by the exchange's clock; checked over REST",
    "stream.connect_failed": "a connection for streams cannot be opened; tried again with backoff",
    "stream.connection_broken": "a connection for streams broke; reconnected with backoff",
    "stream.connection_ended": "a connection for streams ended; reconnected with backoff",
    "stream.connection_rotated": "a connection is replaced before the exchange's time limit",
    "stream.flow_left_out": "a candle of a frame is taken without its order flow, which is invalid",
    "stream.frame_quarantined": "a frame is no valid candle, and is left out",
    "stream.name_unknown": "a stream cannot be subscribed: the exchange's name of its symbol is not known yet",
    "stream.polled": "REST is polled in place of a stream",
    "stream.reconnect": "every stream of a connection is stale; the connection is renewed",
    "stream.resubscribe": "a stale stream is subscribed again",
    "stream.stamp_doubted": "a frame is stamped far from the exchange's time, and is left out",
    "stream.state": "the state of a series' stream has changed: `before`, `state`",
    "stream.subscribe_failed": "streams cannot be subscribed; tried again on a new connection",
    "stream.unsubscribe_failed": "a stream cannot be unsubscribed",
    "stream.values_differ": "a frame has other values than the stored candle; checked over REST",
    "symbols.damaged": "the stored list of symbols of a market is damaged, or of another version",
    "symbols.failed": "the list of symbols of a market cannot be read; tried again",
    "symbols.onboard_failed": "when a symbol was listed first cannot be read",
    "symbols.outdated": "the list of symbols cannot be refreshed; an older list is used",
    "symbols.unreadable": "the stored list of symbols cannot be read",
    "symbols.unwritten": "the list of symbols cannot be stored",
    "ws.client_slow": "a client read too slowly, and was closed with 1013",
    "ws.subscribe_failed": "a subscription failed because the store cannot be read",
}

HEAD = """# Logs

Lines go to stderr. `log_format=console` writes them for people, `log_format=json` one JSON object a line; both say the same.
`log_level` is the least level that is written.

```
2026-01-31 12:00:00,123 WARNING klinesync.ws.hub: event=ws.client_slow suppressed=3: a client read too slowly, and was closed with 1013
```

```json
{"time":"2026-01-31T12:00:00.123Z","level":"warning","logger":"klinesync.ws.hub","event":"ws.client_slow","message":"a client read too slowly, and was closed with 1013","suppressed":3}
```

- `event` is stable: look for events, not for sentences, which may change.
- Fields say what the line is about: `series`, `market`, `exchange`; a `span` is `start..end` in UTC seconds, end exclusive; `error` is the
  sentence of an error; `suppressed` counts the lines of the kind that were held back since the last one. A field without a value is
  left out.
- `time` is the system's clock, in UTC in JSON and in local time on the console. An unexpected error has its trace in `trace`.
- Text from outside (an exchange's message, a file name) is escaped: no text forges a line.
- One cause of trouble with an exchange or the store is logged once a minute, however many series meet it; the next line says how
  many were held back. Lines of the web server and of asyncio, which have no event, are logged once a minute a kind.

## Events

"""  # noqa: E501  # a log line is shown as it is written


class Line(NamedTuple):
    """A call that writes a log line. `event` is None where the call does not name it."""

    path: str
    number: int
    level: str
    event: str | None
    fields: tuple[str, ...]


def lines() -> Iterator[Line]:
    """Every call of a method of `log`, in the whole package except other programs."""
    for path in sorted(SRC.rglob("*.py")):
        place = path.relative_to(SRC)
        if place.parts[0] not in OTHER_PROGRAMS:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield from _line(str(place), node, node.func)


def _line(path: str, call: ast.Call, method: ast.Attribute) -> Iterator[Line]:
    """The log line that a call writes, if any. For a method that limits its lines and passes `event` on, its callers
    count."""
    fields = tuple(keyword.arg for keyword in call.keywords if keyword.arg not in (None, "exc_info"))
    if method.attr in LIMITED:
        # The event may follow the key of the limit.
        events = [event for argument in call.args[:2] if (event := _text(argument)) and EVENT.fullmatch(event)]
        if events:
            series = ("series",) if _text(call.args[0]) == events[-1] else ()  # follows the event
            yield Line(path, call.lineno, "warning", events[-1], (*fields, *series, "suppressed"))
        return
    level = _level(method)
    if level is not None and not (call.args and ast.unparse(call.args[0]) == "event"):
        yield Line(path, call.lineno, level, _text(call.args[0]) if call.args else None, fields)


def _text(argument: ast.expr) -> str | None:
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def _level(method: ast.Attribute) -> str | None:
    """The level of a method of a log; None for any other."""
    owner = ast.unparse(method.value)
    ours = owner in ("log", "logger", "self._log") or owner.startswith(("Log(", "logging.getLogger("))
    return LEVELS.get(method.attr) if ours else None


def page() -> str:
    """The text of the page."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for line in lines():
        if line.event in MEANINGS:
            levels[line.event].add(line.level)
            fields[line.event] |= set(line.fields)
    rows = [
        (
            f"`{event}`",
            ", ".join(sorted(levels[event])),
            ", ".join(f"`{name}`" for name in sorted(fields[event])) or "–",
            MEANINGS[event],
        )
        for event in sorted(MEANINGS)
    ]
    return HEAD + generated.table(("event", "level", "fields", "meaning"), rows)
