"""One tree of errors. Each has a `code` that clients may branch on, and a message that is a sentence.

`Rejected` is the caller's mistake: nothing was changed. `Transient` is trouble outside of this process, such as an
exchange that does not answer: the service retries, and health shows the trouble. A broken invariant is an assertion,
and ends its task.
"""

from __future__ import annotations

import errno

from klinesync.core.dates import date_text
from klinesync.core.printable import printable

# Longest sentence of an error, in characters: text from outside in it (a name, a path) has any length.
MAX_SENTENCE_CHARS = 2_000
# Characters of the end of a longer sentence that are kept: the reason follows the long name.
_KEPT_END_CHARS = 500
_CUT = " … "


class KlinesyncError(Exception):
    """The root of all errors. `code` is stable; the message is one line, a sentence for people. Text from outside in
    the message (an exchange's `msg`, a file name) is escaped, and a sentence that is too long is cut in its middle."""

    code = "internal"

    def __str__(self) -> str:
        sentence = printable(super().__str__())
        if len(sentence) <= MAX_SENTENCE_CHARS:
            return sentence
        return f"{sentence[: MAX_SENTENCE_CHARS - len(_CUT) - _KEPT_END_CHARS]}{_CUT}{sentence[-_KEPT_END_CHARS:]}"


class Rejected(KlinesyncError):
    """The caller's mistake. Nothing was changed.

    detail: a sentence beside a message that is a code; None where the message is a sentence.
    """

    code = "bad_request"
    detail: str | None = None


class BadSeriesId(Rejected):
    """A series_id that does not name a series."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        self.reason = reason
        super().__init__(
            f"series_id {text[:120]!r} {reason}; it is written exchange:market:symbol:timeframe, "
            "for example binance:spot:BTC/USDT:1m"
        )


class BadTimeframe(Rejected):
    """A text that is no timeframe. `reason` says why, and names the right code of a length that has another."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        self.reason = reason
        super().__init__(f"timeframe {text[:40]!r} {reason}")


class BadCandle(Rejected):
    """An invalid candle: a wrong value, an open time off the grid or in the future. `reason` names the value."""

    code = "bad_candle"

    def __init__(self, candle_time: object, reason: str) -> None:
        self.candle_time = candle_time
        self.reason = reason
        when = date_text(candle_time) if isinstance(candle_time, int) else candle_time
        super().__init__(f"candle at {when} refused: {reason}")


class UnknownSeries(Rejected):
    """No such exchange, market, symbol or timeframe. `reason` says which."""

    code = "unknown_series"

    def __init__(self, series_id: str, reason: str) -> None:
        self.series_id = series_id
        self.reason = reason
        super().__init__(f"series {series_id} is unknown: {reason}")


class DerivedSeries(Rejected):
    """A write to a series that is computed from another series."""

    code = "derived_series"

    def __init__(self, series: object, base: object) -> None:
        super().__init__(f"series {series} is derived from {base}: write the {base} candles instead")


class BadFlag(Rejected):
    """A configuration value that stops the start. `source`: where the value was given; None where that is not known."""

    code = "bad_flag"

    def __init__(self, name: str, reason: str, source: str | None = None) -> None:
        self.name = name
        self.source = source
        super().__init__(f"flag {name}: {reason}")


class CannotListen(KlinesyncError):
    """An address and port that the process cannot listen on."""

    code = "cannot_listen"

    def __init__(self, host: str, port: int, error: OSError) -> None:
        self.host = host
        self.port = port
        taken = error.errno == errno.EADDRINUSE
        hint = "; another process listens there: choose another --port" if taken else ""
        super().__init__(f"{host}:{port} cannot be listened on: {error.strerror or error}{hint}")


class StoreError(KlinesyncError):
    """The store cannot be opened or written."""

    code = "store_error"


class Transient(KlinesyncError):
    """Trouble that may pass. Its owner retries, and health shows the trouble."""

    code = "transient"


# HTTP status of an answer to a wrong request: the exchange itself is well, and a retry is useless.
WRONG_REQUEST = 400


class UpstreamError(Transient):
    """The exchange did not answer, or answered with an error.

    status: HTTP status; 0 without an answer.
    retry_after_s: the exchange's Retry-After in seconds; None where the answer has none.
    cause: the reason of a failed connection as a sentence, the same for all requests that fail for this reason; logs
        write one line a cause and minute, however many requests fail.
    """

    code = "upstream_error"

    def __init__(
        self, what: str, status: int = 0, retry_after_s: float | None = None, cause: str | None = None
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        self.cause = cause
        super().__init__(what)


class NotListed(UpstreamError):
    """The exchange does not list the symbol, and is not asked for its candles."""

    code = "unknown_series"

    def __init__(self, what: str) -> None:
        super().__init__(what, 400)
