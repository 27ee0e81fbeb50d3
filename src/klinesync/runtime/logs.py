"""Logs on stderr: lines for people, or one JSON object a line for whoever collects them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Literal, TextIO

import msgspec

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.runtime.log_limit import LogLimit

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
HANDLER = "klinesync"
# Seconds in which one cause of upstream trouble is logged once.
CAUSE_PER_S = 60.0
# What every record has; anything else was given with `extra`.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """`time` (UTC, ISO 8601), `level`, `logger`, `message`; `series` where the line names one; what was given with
    `extra`; and `trace` of an unexpected error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        series = next((arg for arg in _arguments(record) if isinstance(arg, SeriesId)), None)
        if series is not None:
            line["series"] = str(series)
        for name, value in vars(record).items():
            if name not in _USUAL and name not in line:
                line[name] = value if value is None or isinstance(value, str | int | float) else str(value)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate, in what somebody sent us
            return json.dumps(line)


class OncePerCause(logging.Filter):
    """Lets one line in `CAUSE_PER_S` through for each cause of upstream trouble, however many series and requests that
    trouble fails; the next line says how many were left out. Lines at ERROR, and all lines at DEBUG level, stay."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._limit = LogLimit(CAUSE_PER_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        cause = next((arg.cause for arg in _arguments(record) if isinstance(arg, UpstreamError)), None)
        if cause is None or record.levelno >= logging.ERROR or logging.getLogger().isEnabledFor(logging.DEBUG):
            return True
        suppressed = self._limit.allow(cause, self._clock())
        if suppressed:
            record.msg = f"{record.getMessage()} (and {suppressed} more for that reason)"
            record.args = ()
        return suppressed is not None


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    """The values of the message; a single mapping stands for itself."""
    return record.args if isinstance(record.args, tuple) else ()


def set_up_logs(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Write everybody's logs, the web server's and Python's warnings too, to `stream` (stderr). Called again, it takes
    the place of what was set up before."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if one.name == HANDLER]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.name = HANDLER
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(CONSOLE_FORMAT))
    handler.addFilter(OncePerCause())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
