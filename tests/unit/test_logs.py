"""Log lines as JSON."""

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.runtime.log_events import Log
from klinesync.runtime.logs import (
    CAUSE_PER_S,
    HANDLER,
    KIND_PER_S,
    MAX_MESSAGE_CHARS,
    MAX_TRACE_LINES,
    TRACE_MARGIN,
    LogFormat,
    OncePerCause,
    OncePerKind,
    set_up_logs,
)

log = logging.getLogger("klinesync.test_logs")
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler.name == HANDLER]:
        root.removeHandler(handler)
    logging.captureWarnings(capture=False)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_logger_and_message(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    log.warning("%d of %s", 3, "many")
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert line == {"level": "warning", "logger": "klinesync.test_logs", "message": "3 of many"}


def test_extra_fields_are_written_and_hide_no_other_field(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    log.info("filled", extra={"start_time": 60, "end": float("nan"), "level": "none", "of": BTC})
    (line,) = lines(stream)
    assert (line["start_time"], line["end"], line["level"], line["of"]) == (60, None, "info", str(BTC))


def test_an_unexpected_error_has_its_trace_in_the_same_line(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError:
        log.exception("it broke")
    (line,) = lines(stream)
    assert "RuntimeError: broken" in str(line["trace"])


@contextmanager
def unrecorded() -> Iterator[None]:
    """pytest keeps no log records: a lone surrogate in one cannot be passed between its processes."""
    root = logging.getLogger()
    recording = [handler for handler in root.handlers if type(handler).__module__ == "_pytest.logging"]
    for handler in recording:
        root.removeHandler(handler)
    yield
    for handler in recording:
        root.addHandler(handler)


FORGED = "busy\n2026-11-29 12:00:00,000 ERROR   klinesync: sold\r\x1b]0;title\x07\x9b31m\u202e\u2028\x00\ud800"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_foreign_text_is_one_line_without_control_characters(stream: io.StringIO, log_format: LogFormat) -> None:
    set_up_logs(log_format, "info", stream)
    with unrecorded():
        log.info("the exchange says %s", FORGED, extra={"file": FORGED, "size": 10**400})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "the exchange says busy" in line
    if log_format == "json":
        assert json.loads(line)["message"] == f"the exchange says {printable(FORGED)}"
        assert json.loads(line)["file"] == printable(FORGED)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_text_in_a_trace_forges_no_record(stream: io.StringIO, log_format: LogFormat) -> None:
    set_up_logs(log_format, "info", stream)
    try:
        raise RuntimeError(FORGED)
    except RuntimeError:
        with unrecorded():
            log.exception("it broke", stack_info=True)
    first, *trace = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in (first, *trace))
    if log_format == "json":
        assert trace == []
        trace = [TRACE_MARGIN + line for line in json.loads(first)["trace"].split("\n")]
    assert all(line.startswith(TRACE_MARGIN) for line in trace)
    assert any("RuntimeError: busy" in line for line in trace)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_record_has_a_bounded_length(stream: io.StringIO, log_format: LogFormat) -> None:
    def fail(depth: int) -> None:
        if depth:
            fail_again(depth - 1)
        raise RuntimeError("x" * 100_000)

    def fail_again(depth: int) -> None:
        fail(depth)

    set_up_logs(log_format, "info", stream)
    try:
        fail(300)
    except RuntimeError:
        log.exception("%s", "y" * 100_000)
    assert len(stream.getvalue()) < 2 * MAX_MESSAGE_CHARS + 120 * MAX_TRACE_LINES
    assert "lines are left out" in stream.getvalue()


def test_the_web_servers_lines_and_warnings_go_the_same_way(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [line["logger"] for line in lines(stream)] == ["uvicorn.error"]


def test_the_level_is_applied_and_a_second_set_up_replaces_the_first(stream: io.StringIO) -> None:
    set_up_logs("json", "warning", stream)
    log.info("not this")
    again = io.StringIO()
    set_up_logs("console", "debug", again)
    log.debug("%s: this", BTC)
    assert stream.getvalue() == ""
    assert again.getvalue().endswith("DEBUG   klinesync.test_logs: binance:spot:BTC/USDT:1m: this\n")


def test_one_cause_of_upstream_errors_is_logged_once_for_all_series_and_requests() -> None:
    now_s = 0.0
    once = OncePerCause(lambda: now_s)

    def line(what: str, cause: str | None, level: int = logging.WARNING) -> str | None:
        error = UpstreamError(f"{what} failed: {cause}", cause=cause)
        record = logging.LogRecord("x", level, "x", 1, "%s: 100 %% of %s", (what, error), None)
        return record.getMessage() if once.filter(record) else None

    assert line("BTC", "h cannot be found") == "BTC: 100 % of BTC failed: h cannot be found"
    assert line("ETH", "h cannot be found") is None
    assert line("ETH", "h does not answer in time") is not None
    assert line("ETH", None) is not None
    assert line("ETH", None) is not None
    assert line("ETH", "h cannot be found", logging.ERROR) is not None
    now_s = CAUSE_PER_S
    told = line("SOL", "h cannot be found")
    assert told == "SOL: 100 % of SOL failed: h cannot be found (and 1 more for that reason)"


def test_one_store_error_is_logged_once_a_minute_for_all_series() -> None:
    now_s = 0.0
    once = OncePerCause(lambda: now_s)

    def line(series: str, error: StoreError, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("x", level, "x", 1, "%s: the store cannot be read: %s", (series, error), None)
        return record.getMessage() if once.filter(record) else None

    cut, full = StoreError("the log was cut"), StoreError("disk full")
    assert line("BTC", cut) == "BTC: the store cannot be read: the log was cut"
    assert [line(f"S{number}", StoreError("the log was cut")) for number in range(500)] == [None] * 500
    assert line("BTC", full) is not None
    assert line("BTC", cut, logging.ERROR) is not None
    now_s = CAUSE_PER_S
    assert line("ETH", cut) == "ETH: the store cannot be read: the log was cut (and 500 more for that reason)"


def test_lines_that_clients_cause_are_logged_once_a_minute_with_a_count() -> None:
    now_s = 0.0
    kinds = OncePerKind(lambda: now_s)
    server = logging.getLogger("uvicorn.error")

    def said(text: str, *args: object) -> str | None:
        record = server.makeRecord(server.name, logging.WARNING, "", 0, text, args, None)
        return record.getMessage() if kinds.filter(record) else None

    assert said("%s connected", "1.2.3.4") == "1.2.3.4 connected"
    assert [said("%s connected", number) for number in range(1500)] == [None] * 1500
    assert said("Invalid HTTP request received.") == "Invalid HTTP request received."
    now_s = KIND_PER_S
    assert said("%s connected", "5.6.7.8") == "5.6.7.8 connected (and 1500 more like it)"


def test_lines_of_one_kind_differ_in_numbers_and_addresses() -> None:
    kinds = OncePerKind(lambda: 0.0)
    loop = logging.getLogger("asyncio")
    records = [
        loop.makeRecord(loop.name, logging.ERROR, "", 0, f"Fatal error on <Transport fd={n} at 0x7f{n:x}>", (), None)
        for n in range(100)
    ]
    assert [kinds.filter(record) for record in records] == [True] + [False] * 99


def test_our_own_lines_are_all_written() -> None:
    kinds = OncePerKind(lambda: 0.0)
    records = [log.makeRecord(log.name, logging.INFO, "", 0, "a line", (), None) for _ in range(3)]
    assert all(map(kinds.filter, records))


ours = Log("klinesync.test_logs")


def test_a_line_has_an_event_a_sentence_and_fields_in_both_formats(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    console = io.StringIO()

    def tell() -> None:
        ours.warning("store.mended", "the %s can be read again", "candles", series=BTC, span=Span(60, 120), path="a b")

    tell()
    (line,) = lines(stream)
    del line["time"]
    assert line == {
        "level": "warning", "logger": "klinesync.test_logs", "event": "store.mended", "series": str(BTC),
        "message": "the candles can be read again", "span": "60..120", "path": "a b",
    }  # fmt: skip
    set_up_logs("console", "info", console)
    tell()
    assert console.getvalue().endswith(
        f"event=store.mended series={BTC} span=60..120 path='a b': the candles can be read again\n"
    )


def test_a_field_without_a_value_is_left_out_and_an_error_ends_the_sentence(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    error = StoreError("disk full")
    ours.error("store.unwritable", "100 % is not written", series=None, suppressed=0, error=error)
    ours.error("store.unwritable", "again", suppressed=3, error=error)
    first, second = lines(stream)
    assert first["message"] == "100 % is not written: disk full"
    assert {"series", "suppressed"} & first.keys() == set()
    assert (second["suppressed"], second["error"]) == (3, "disk full")


def test_the_trace_of_an_exception_is_written_on_request(stream: io.StringIO) -> None:
    set_up_logs("json", "debug", stream)
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        ours.exception("ledger.failed", "it broke")
        ours.error("defect", "it broke", exc_info=error)
        ours.debug("command.failed", "it broke", exc_info=error)
        ours.warning("ledger.rebuilt", "it broke", error=error)
    assert ["RuntimeError: broken" in str(line.get("trace")) for line in lines(stream)] == [True, True, True, False]


def test_a_cause_among_the_fields_is_logged_once_too(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    for series in ("A", "B", "C"):
        ours.warning("ledger.rebuilt", "the store cannot be read", series=series, error=StoreError("the log was cut"))
    assert [line["series"] for line in lines(stream)] == ["A"]


def test_a_line_below_the_level_is_not_formatted() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise AssertionError("made into text")

    logging.getLogger("klinesync.test_logs").setLevel(logging.WARNING)
    try:
        ours.info("ledger.rebuilt", "%s", Unprintable(), series=Unprintable())
    finally:
        logging.getLogger("klinesync.test_logs").setLevel(logging.NOTSET)
