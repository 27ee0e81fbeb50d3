"""The output of `klinesync explain`: the service's answer in sentences with dates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.series_id import SeriesId

# Most lines of a kind that are printed, the newest; `--json` has the whole answer.
MAX_NEEDS_SHOWN = 10
MAX_GAPS_SHOWN = 10
MAX_EMPTY_SHOWN = 3
MAX_EVENTS_SHOWN = 20
# The state of gaps that are no trouble, as the wire spells it.
_CONFIRMED_EMPTY = "confirmed_empty"

_VERDICTS = {
    "up_to_date": "Nothing is missing.",
    "missing_head": "Nothing is stored, and no history is being read.",
    "lagging_no_recent_backfill": "Candles after the newest stored one are missing, and no history is being read.",
    "store_damaged": "Stored candles were damaged, and are missing until healed; `klinesync verify` lists them.",
    "exchange_refuses": "Candles are missing, and the exchange refuses this service.",
    "exchange_unreachable": "Candles are missing, and the exchange gives no answer.",
    "interior_gap": "Candles between stored ones are missing: not being read, or several attempts brought nothing.",
    "gap_healing": "Candles between stored ones are missing, and are requested.",
    "gap_lost": "Candles between stored ones are lost: no source has them any more.",
    "backfill_running": "Candles are missing, and their history is being read.",
    "backfill_recent": "Candles are missing; their history was read a moment ago.",
    "head_ahead_of_closed_window": "The newest stored candle has not closed yet by the exchange's clock.",
}
_STREAMS = {
    "off": "the series is not followed, so no live candles come; subscribe to it, or put it on the whitelist",
    "subscribed": "subscribed, without a frame yet",
    "live": "live",
    "stale": "stale: the stream withholds candles that REST shows, so candles are read over REST",
    "rest_fallback": "candles are read over REST",
    "reconnecting": "reconnecting",
    "delisted": "delisted: the exchange does not trade the symbol; the series is followed again when it is traded",
}
_REASONS = {
    "tail": "after the newest stored candle",
    "older": "before the first stored candle",
    "gap": "between stored candles",
    "native": "the exchange's own candles of this timeframe",
    "requested": "requested by a backfill",
}
_GAPS = {
    "unknown": "missing; not being read, or several attempts brought nothing",
    "healing": "missing; requested",
    _CONFIRMED_EMPTY: "confirmed empty",
    "lost": "lost",
}


class Stream(msgspec.Struct):
    """The state of the stream."""

    state: str
    since: int | None
    last_frame_at: int | None
    detail: str | None


class Need(msgspec.Struct):
    """Missing candles that are requested."""

    series_id: str
    start_time: int
    end_time: int
    reason: str
    asked_by: str
    urgency: str
    attempts: int
    next_try_at_ms: int | None
    last_answer: str | None


class Hole(msgspec.Struct):
    """A hole between stored candles."""

    start_time: int
    end_time: int
    state: str
    proof: str | None
    since: int | None


class Event(msgspec.Struct):
    """An event of the series."""

    at_ms: int
    event: str
    detail: str
    since_ms: int
    count: int


class Explained(msgspec.Struct):
    """The printed fields of the answer of `GET /api/market/explain`. Texts of a newer service are accepted."""

    series_id: str
    base_series_id: str
    now_time: int
    first_time: int | None
    head_time: int | None
    expected_latest_closed_time: int
    status: str
    status_reason: str
    detail: str | None
    stream: Stream
    needs: list[Need]
    need_count: int
    gaps: list[Hole]
    gap_count: int
    events: list[Event]


def lines(answer: Explained) -> list[str]:
    """The answer as lines of text."""
    series = SeriesId.parse(answer.series_id)
    output = [f"{answer.series_id} at {date_text(answer.now_time)}"]
    if answer.base_series_id != answer.series_id:
        output.append(f"Computed from {answer.base_series_id}, which is followed and read.")
    verdict = _VERDICTS.get(answer.status_reason, answer.status_reason)
    output.append(
        f"{answer.status.upper()}: {_with_full_stop(verdict.removesuffix('.') + _after_colon(answer.detail))}"
    )
    output += ["", *_stored(series, answer), _stream(answer)]
    output += _section(
        "Requested:", [_need(SeriesId.parse(need.series_id), need) for need in answer.needs[:MAX_NEEDS_SHOWN]]
    )
    output += _more(answer.need_count - min(len(answer.needs), MAX_NEEDS_SHOWN))
    output += _gaps(series, answer)
    events = answer.events[-MAX_EVENTS_SHOWN:]
    output += _section("Recent events:", [_event(event) for event in events])
    output += _more(len(answer.events) - len(events), "earlier")
    return output


def _stored(series: SeriesId, answer: Explained) -> Iterator[str]:
    if answer.head_time is None or answer.first_time is None:
        yield "Stored: nothing."
        return
    yield f"Stored: from the candle of {date_text(answer.first_time)} to that of {date_text(answer.head_time)}."
    frame = series.timeframe
    expected = answer.expected_latest_closed_time
    if answer.stream.state != "delisted" and expected > answer.head_time:
        missing = frame.count(frame.next(answer.head_time), frame.next(expected))
        yield f"Missing after it: {counted(missing, 'candle')}, up to {date_text(expected)}."


def _stream(answer: Explained) -> str:
    stream = answer.stream
    parts = [f"Stream: {_STREAMS.get(stream.state, stream.state)}"]
    if stream.since is not None and stream.state != "off":
        parts.append(f"since {date_text(stream.since)}")
    if stream.last_frame_at is not None:
        parts.append(f"last data at {date_text(stream.last_frame_at)}")
    return _with_full_stop(f"{', '.join(parts)}{_after_colon(stream.detail)}")


def _need(series: SeriesId, need: Need) -> str:
    candles = _candles(series, need.start_time, need.end_time)
    reason = _REASONS.get(need.reason, need.reason)
    if need.next_try_at_ms is None:
        next_try = "being read now"
    elif need.attempts:
        next_try = f"next attempt at {date_text(need.next_try_at_ms // 1000)}"
    else:
        next_try = f"queued, from {date_text(need.next_try_at_ms // 1000)} on"
    tries = f" after {counted(need.attempts, 'attempt')}" if need.attempts and need.next_try_at_ms is not None else ""
    answer = "" if need.last_answer is None else f" {_with_full_stop(f'Last answer: {need.last_answer}')}"
    return f"{candles} ({reason}): {next_try}{tries}; requested by: {need.asked_by}, urgency {need.urgency}.{answer}"


def _gaps(series: SeriesId, answer: Explained) -> list[str]:
    """The newest holes. Confirmed empty ones, which are no trouble, are limited by themselves."""
    missing = [gap for gap in answer.gaps if gap.state != _CONFIRMED_EMPTY]
    empty = [gap for gap in answer.gaps if gap.state == _CONFIRMED_EMPTY]
    shown = sorted([*missing[-MAX_GAPS_SHOWN:], *empty[-MAX_EMPTY_SHOWN:]], key=lambda gap: gap.start_time)
    section = _section("Gaps between stored candles:", [_gap(series, gap) for gap in shown])
    return section + _more(answer.gap_count - len(shown))


def _gap(series: SeriesId, gap: Hole) -> str:
    candles = _candles(series, gap.start_time, gap.end_time)
    since = "" if gap.since is None else f" Known since {date_text(gap.since)}."
    return _with_full_stop(f"{candles}: {_GAPS.get(gap.state, gap.state)}{_after_colon(gap.proof)}") + since


def _event(event: Event) -> str:
    time = date_text(event.at_ms // 1000)
    if event.count > 1:
        since = date_text(event.since_ms // 1000)
        time = f"{time}, {event.count} times" + ("" if since == time else f" since {since}")
    return f"{time}: {event.event}: {event.detail}" if event.detail else f"{time}: {event.event}"


def _candles(series: SeriesId, start: int, end: int) -> str:
    frame = series.timeframe
    candles = frame.count(start, end)
    if candles <= 1:
        return f"1 candle, {date_text(start)}"
    return f"{candles} candles, {date_text(start)} to {date_text(frame.shift(end, -1))}"


def _after_colon(detail: str | None) -> str:
    return "" if detail is None else f": {detail}"


def _with_full_stop(sentence: str) -> str:
    return sentence if sentence.endswith(".") else f"{sentence}."


def _section(title: str, items: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in items)] if items else []


def _more(count: int, kind: str = "more") -> list[str]:
    return [f"  … and {count} {kind}; --json lists all"] if count > 0 else []
