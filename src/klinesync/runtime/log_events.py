"""Log: each line has an event name, a sentence for people, and fields.

Event names are stable, for alerts and searches. docs/reference/logs.md lists all of them.
"""

from __future__ import annotations

import logging
from typing import Literal

from klinesync.core.spans import Span

LogEvent = Literal[
    "audit.postponed",
    "audit.revised",
    "backfill.resume_failed",
    "backfill.resumed",
    "command.failed",
    "connections.limited",
    "defect",
    "derived.forming_failed",
    "derived.recompute",
    "derived.recompute_failed",
    "derived.settle_failed",
    "events.unreadable",
    "events.unwritten",
    "exchange.clock",
    "exchange.close_failed",
    "exchange.reachable",
    "exchange.time_failed",
    "exchange.unreachable",
    "factor.left_out",
    "files.left_out",
    "flags.left_out",
    "gap.declared",
    "history.files_failed",
    "history.gap_failed",
    "history.look_failed",
    "history.lost",
    "history.native_failed",
    "history.not_listed",
    "history.queue_full",
    "history.store_failed",
    "history.tail_failed",
    "history.unproven",
    "ledger.catch_up_failed",
    "ledger.failed",
    "ledger.flow_not_redone",
    "ledger.lags",
    "ledger.look_failed",
    "ledger.rebuilt",
    "ledger.trimmed",
    "origin.refused",
    "overlay.left_out",
    "pipeline.batch_failed",
    "pipeline.pack_failed",
    "pipeline.submission_failed",
    "plugin.suspended",
    "rest.items_left_out",
    "rest.row_quarantined",
    "retention.failed",
    "retention.trimmed",
    "series.history_failed",
    "series.no_capacity",
    "series.not_followed",
    "series.store_failed",
    "startup.left_out",
    "startup.progress",
    "startup.retry",
    "store.damaged",
    "store.healed",
    "store.hole",
    "store.lock_retaken",
    "store.log_left",
    "store.log_moved",
    "store.mended",
    "store.not_healed",
    "store.probe_failed",
    "store.quarantine_unreadable",
    "store.quarantined",
    "store.repack_failed",
    "store.repacked",
    "store.repacking",
    "store.replaced",
    "store.scrub_failed",
    "store.unwritable",
    "store.writable",
    "stream.check_postponed",
    "stream.closed_early",
    "stream.connect_failed",
    "stream.connection_broken",
    "stream.connection_ended",
    "stream.connection_rotated",
    "stream.flow_left_out",
    "stream.frame_quarantined",
    "stream.name_unknown",
    "stream.polled",
    "stream.reconnect",
    "stream.resubscribe",
    "stream.stamp_doubted",
    "stream.state",
    "stream.subscribe_failed",
    "stream.unsubscribe_failed",
    "stream.values_differ",
    "symbols.damaged",
    "symbols.failed",
    "symbols.onboard_failed",
    "symbols.outdated",
    "symbols.unreadable",
    "symbols.unwritten",
    "ws.client_slow",
    "ws.subscribe_failed",
]

# The trace of a line: of this exception, of the exception being handled (True), or none.
Trace = BaseException | bool | None


class Log:
    """Writes the events of one module.

    name: the module's `__name__`; the name of the logger.

    Each method takes the event, a sentence with `%` placeholders, and its values. Keywords are fields: `series=…`,
    `span=…`, `market=…`. A field of None is left out, and so is `suppressed=0` (lines suppressed since the last one).
    The text of the field `error` is appended to the sentence. A line looks like
    `event=history.failed series=binance:spot:BTC/USDT:1m: history cannot be read: no answer in time`.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: LogEvent, sentence: str, *values: object, exc_info: Trace = None, **fields: object) -> None:
        """Log details for finding defects."""
        self._write(logging.DEBUG, event, sentence, values, exc_info, fields)

    def info(self, event: LogEvent, sentence: str, *values: object, **fields: object) -> None:
        """Log normal operation."""
        self._write(logging.INFO, event, sentence, values, None, fields)

    def warning(self, event: LogEvent, sentence: str, *values: object, **fields: object) -> None:
        """Log a problem that the service handles."""
        self._write(logging.WARNING, event, sentence, values, None, fields)

    def error(self, event: LogEvent, sentence: str, *values: object, exc_info: Trace = None, **fields: object) -> None:
        """Log a problem that needs attention."""
        self._write(logging.ERROR, event, sentence, values, exc_info, fields)

    def exception(self, event: LogEvent, sentence: str, *values: object, **fields: object) -> None:
        """Log the unexpected exception that is being handled, with its trace."""
        self._write(logging.ERROR, event, sentence, values, True, fields)

    def _write(
        self,
        level: int,
        event: LogEvent,
        sentence: str,
        values: tuple[object, ...],
        trace: Trace,
        fields: dict[str, object],
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        shown_fields = {name: value for name, value in fields.items() if value is not None}
        if not shown_fields.get("suppressed", True):
            del shown_fields["suppressed"]
        text = sentence % values if values else sentence
        if "error" in shown_fields:
            text = f"{text}: {shown_fields['error']}"
        # Other handlers show the message alone, so it has all fields.
        head = [
            f"event={event}",
            *(f"{name}={_shown(value)}" for name, value in shown_fields.items() if name != "error"),
        ]
        extra = {"event": event, "sentence": text, "fields": shown_fields}
        self._logger.log(level, "%s: %s", " ".join(head), text, exc_info=trace, extra=extra, stacklevel=3)


def field_text(value: object) -> str:
    """A field's value as text: a span as `start..end`."""
    return f"{value.start}..{value.end}" if isinstance(value, Span) else str(value)


def _shown(value: object) -> str:
    """A field's value on the console, in quotes when it is empty or has spaces."""
    text = field_text(value)
    return repr(text) if " " in text or not text else text
