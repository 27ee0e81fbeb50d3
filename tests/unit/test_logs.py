"""Log lines as JSON."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.runtime.logs import CAUSE_PER_S, HANDLER, OncePerCause, set_up_logs

log = logging.getLogger("klinesync.test_logs")
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [one for one in root.handlers if one.name == HANDLER]:
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


def test_the_series_that_a_line_is_about_is_a_field_of_its_own(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    log.info("%s: %d candles are missing from %d on", BTC, 2, 1_700_000_040)
    log.info("%(a)s", {"a": BTC})
    first, second = lines(stream)
    assert first["series"] == str(BTC)
    assert first["message"] == "binance:spot:BTC/USDT:1m: 2 candles are missing from 1700000040 on"
    assert "series" not in second


def test_what_is_given_as_extra_is_there_and_covers_nothing(stream: io.StringIO) -> None:
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


def test_any_text_makes_one_line(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    # What pytest captures is sent between processes, which a lone surrogate cannot be.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    set_up_logs("json", "info", stream)
    log.info("two\nlines, a \x00 and a lone \ud800")
    (line,) = lines(stream)
    assert str(line["message"]).startswith("two\nlines, a \x00")


def test_the_web_servers_lines_and_warnings_go_the_same_way(stream: io.StringIO) -> None:
    set_up_logs("json", "info", stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [line["logger"] for line in lines(stream)] == ["uvicorn.error"]


def test_the_level_holds_and_a_second_set_up_takes_the_place_of_the_first(stream: io.StringIO) -> None:
    set_up_logs("json", "warning", stream)
    log.info("not this")
    again = io.StringIO()
    set_up_logs("console", "debug", again)
    log.debug("%s: this", BTC)
    assert stream.getvalue() == ""
    assert again.getvalue().endswith("DEBUG   klinesync.test_logs: binance:spot:BTC/USDT:1m: this\n")


def test_one_cause_of_upstream_trouble_is_logged_once_whatever_it_fails() -> None:
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
