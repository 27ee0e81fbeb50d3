"""Logs on stderr: lines for people, or one JSON object a line for collectors.

Records contain foreign text: an exchange's `msg`, file names, messages of errors. Both formatters escape such text, in
traces too, so that it can neither forge a record nor send a control sequence to a terminal.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.printable import printable
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.log_events import field_text
from klinesync.runtime.log_limit import LogLimit

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
HANDLER = "klinesync"
# Prefix of every line of a trace. No record begins so, so that text in a trace cannot pass for a record.
TRACE_MARGIN = "    | "
# Longest message of a record, in characters, because foreign text may have any length.
MAX_MESSAGE_CHARS = 8192
# Longest trace, in lines; the first and last ones are kept. An endless recursion has 1,000 equal frames.
MAX_TRACE_LINES = 120
# Seconds between two lines about one cause of trouble with an exchange or the store.
CAUSE_PER_S = 60.0
# Seconds between two lines of one kind of the loggers in `CHATTY`, because clients can cause these lines.
KIND_PER_S = 60.0
CHATTY = frozenset({"asyncio", "uvicorn", "websockets"})
# Characters at the start of an unformatted line that identify its kind.
MAX_KIND_CHARS = 100
_NUMBERS = re.compile(r"(0x)?[0-9][0-9a-fA-F]*")
# Attributes of every record; other attributes come from `extra`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class ConsoleLines(logging.Formatter):
    """One line a record, followed by the lines of its trace, each with the prefix `TRACE_MARGIN`."""

    def __init__(self) -> None:
        super().__init__(CONSOLE_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        record.message = _cut(record.getMessage())
        record.asctime = self.formatTime(record)
        line = printable(self.formatMessage(record))
        return "\n".join((line, *(TRACE_MARGIN + trace_line for trace_line in _trace(self, record))))


class JsonLines(logging.Formatter):
    """One JSON object a record: `time` (UTC, ISO 8601), `level`, `logger`, `event`, `message` (the sentence), the
    fields (of other libraries: `extra`), and `trace` of an unexpected error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z",
            "level": record.levelname.lower(),
            "logger": printable(record.name),
        }
        event = getattr(record, "event", None)
        if event is not None:
            line["event"] = event
        line["message"] = printable(_cut(getattr(record, "sentence", None) or record.getMessage()))
        for name, value in (vars(record) if event is None else _fields(record)).items():
            if name not in _USUAL and name not in line:
                line[printable(name)] = _field(value)
        trace = _trace(self, record)
        if trace:
            line["trace"] = "\n".join(trace)
        return msgspec.json.encode(line).decode()


def _field(value: object) -> str | int | float | None:
    """A field as a JSON value; integers of more than 64 bits become text."""
    if value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 64):
        return value
    return printable(_cut(field_text(value)))


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    """The fields of a record of `Log`; empty for records of other libraries."""
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + "…"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The printable lines of a record's trace and stack, at most about `MAX_TRACE_LINES`."""
    # The `exc_text` of another handler is not escaped, so the trace is formatted again.
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    lines = [printable(_cut(line)) for part in parts for line in part.split("\n")]
    left_out = len(lines) - MAX_TRACE_LINES
    if left_out <= 0:
        return lines
    half = MAX_TRACE_LINES // 2
    return [*lines[:half], f"… {left_out} lines are left out", *lines[-half:]]


class OncePerCause(logging.Filter):
    """Passes one line per `CAUSE_PER_S` for each cause of trouble with an exchange or the store, however many series
    and requests fail for it; the next line counts the suppressed ones. Lines at ERROR pass, and all lines at DEBUG
    level."""

    def __init__(self, clock: Callable[[], float] = SYSTEM_CLOCK.monotonic_s) -> None:
        super().__init__()
        self._clock = clock
        self._limit = LogLimit(CAUSE_PER_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        values = (*_arguments(record), *_fields(record).values())
        cause = next((cause for value in values if (cause := _cause(value)) is not None), None)
        if cause is None or record.levelno >= logging.ERROR or logging.getLogger().isEnabledFor(logging.DEBUG):
            return True
        suppressed = self._limit.allow(cause, self._clock())
        if suppressed:
            _add(record, f" (and {suppressed} more for that reason)")
        return suppressed is not None


class OncePerKind(logging.Filter):
    """Passes one line per `KIND_PER_S` for each kind of line of the web server and its parsers, however many clients
    cause it; the next line of the kind counts the suppressed ones. At DEBUG level all lines pass."""

    def __init__(self, clock: Callable[[], float] = SYSTEM_CLOCK.monotonic_s) -> None:
        super().__init__()
        self._clock = clock
        self._limit = LogLimit(KIND_PER_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.name.partition(".")[0] not in CHATTY or logging.getLogger().isEnabledFor(logging.DEBUG):
            return True
        # asyncio's lines are already formatted: numbers and addresses in them belong to one object.
        kind = _NUMBERS.sub("", str(record.msg)[:MAX_KIND_CHARS])
        error = record.exc_info[0] if record.exc_info else None
        suppressed = self._limit.allow((record.name, kind, error), self._clock())
        if suppressed:
            _add(record, f" (and {suppressed} more like it)")
        return suppressed is not None


def _add(record: logging.LogRecord, words: str) -> None:
    """Append `words` to the message."""
    record.msg = record.getMessage().rstrip() + words
    record.args = ()
    if (sentence := getattr(record, "sentence", None)) is not None:
        record.sentence = sentence + words


def _cause(value: object) -> str | None:
    """The cause that failures of many requests and series share; None for other values."""
    if isinstance(value, UpstreamError):
        return value.cause
    return str(value) if isinstance(value, StoreError) else None


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    """The values of the message; none for a single mapping."""
    return record.args if isinstance(record.args, tuple) else ()


def set_up_logs(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Write all logs, including the web server's and Python's warnings. A later call replaces the earlier set-up.

    log_format: lines for people, or JSON.
    level: lowest level that is written.
    stream: stderr by default.
    """
    root = logging.getLogger()
    for handler in [previous for previous in root.handlers if previous.name == HANDLER]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.name = HANDLER
    handler.setFormatter(JsonLines() if log_format == "json" else ConsoleLines())
    handler.addFilter(OncePerCause())
    handler.addFilter(OncePerKind())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
