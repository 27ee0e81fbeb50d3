"""Logs on stderr: lines for people, or one JSON object a line for whoever collects them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from klinesync.core.series_id import SeriesId

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
HANDLER = "klinesync"
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
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
