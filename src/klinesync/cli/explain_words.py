"""What `klinesync explain` prints: the service's answer in sentences with dates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.series_id import SeriesId

# Newest lines of a kind that are printed; `--json` has what the service tells.
MAX_NEEDS_SHOWN = 10
MAX_GAPS_SHOWN = 10
MAX_EMPTY_SHOWN = 3
MAX_EVENTS_SHOWN = 20
# States of gaps that are looked into no more, as the wire spells them.
_CONFIRMED_EMPTY = "confirmed_empty"

_VERDICTS = {
    "up_to_date": "Nothing is missing.",
    "missing_head": "Nothing is stored, and nobody reads its history.",
    "lagging_no_recent_backfill": "Candles behind the newest stored one are missing, and nobody reads them.",
    "store_damaged": "Stored candles cannot be read, and are missing until healed; `klinesync verify` lists them.",
    "exchange_refuses": "Candles are missing, and the exchange refuses this service.",
    "exchange_unreachable": "Candles are missing, and the exchange gives no answer.",
    "interior_gap": "Candles between stored ones are missing: nobody reads them, or several attempts brought nothing.",
    "gap_healing": "Candles between stored ones are missing, and the service is at work on them.",
    "gap_lost": "Candles between stored ones are missing for good: no source gives them any more.",
    "backfill_running": "Candles are missing, and their history is being read.",
    "backfill_recent": "Candles are missing; their history was read a moment ago.",
    "head_ahead_of_closed_window": "The newest stored candle has not closed yet by the exchange's time.",
}
_STREAMS = {
    "off": "nobody follows the series, so no live candles come; watch it, or put it on the whitelist",
    "subscribed": "subscribed; no frame has come yet",
    "live": "live",
    "stale": "stale: it withholds what REST shows, and REST stands in for it",
    "rest_fallback": "REST stands in for it",
    "reconnecting": "being connected",
    "delisted": "the exchange does not trade the symbol, so no candle follows; it is followed again once it is traded",
}
_REASONS = {
    "tail": "behind the newest stored candle",
    "older": "before the first stored candle",
    "gap": "between stored candles",
    "native": "the exchange's own candles of this timeframe",
    "requested": "requested by a backfill",
}
_GAPS = {
    "unknown": "missing; nobody reads it, or several attempts brought nothing",
    "healing": "missing; asked for",
    _CONFIRMED_EMPTY: "confirmed empty",
    "lost": "lost",
}


class Stream(msgspec.Struct):
    """Where the stream stands."""

    state: str
    since: int | None
    last_frame_at: int | None
    detail: str | None


class Need(msgspec.Struct):
    """Candles that are missing and asked for."""

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
    """Something that happened."""

    at_ms: int
    event: str
    detail: str
    since_ms: int
    count: int


class Explained(msgspec.Struct):
    """The answer of `GET /api/market/explain`, as far as it is printed."""

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
    """The answer, line by line."""
    series = SeriesId.parse(answer.series_id)
    found = [f"{answer.series_id} at {date_text(answer.now_time)}"]
    if answer.base_series_id != answer.series_id:
        found.append(f"It is computed from {answer.base_series_id}, which is what is followed and read.")
    verdict = _VERDICTS.get(answer.status_reason, answer.status_reason)
    found.append(f"{answer.status.upper()}: {_ended(verdict.removesuffix('.') + _behind(answer.detail))}")
    found += ["", *_stored(series, answer), _stream(answer)]
    found += _section(
        "Asked for:", [_need(SeriesId.parse(need.series_id), need) for need in answer.needs[:MAX_NEEDS_SHOWN]]
    )
    found += _more(answer.need_count - min(len(answer.needs), MAX_NEEDS_SHOWN))
    found += _gaps(series, answer)
    events = answer.events[-MAX_EVENTS_SHOWN:]
    found += _section("Lately:", [_event(event) for event in events])
    found += _more(len(answer.events) - len(events), "earlier")
    return found


def _stored(series: SeriesId, answer: Explained) -> Iterator[str]:
    if answer.head_time is None or answer.first_time is None:
        yield "Stored: nothing."
        return
    yield f"Stored: from the candle of {date_text(answer.first_time)} to that of {date_text(answer.head_time)}."
    frame = series.timeframe
    expected = answer.expected_latest_closed_time
    if answer.stream.state != "delisted" and expected > answer.head_time:
        missing = frame.count(frame.next(answer.head_time), frame.next(expected))
        yield f"Behind it {counted(missing, 'candle')} should be there, up to {date_text(expected)}."


def _stream(answer: Explained) -> str:
    stream = answer.stream
    parts = [f"Stream: {_STREAMS.get(stream.state, stream.state)}"]
    if stream.since is not None and stream.state != "off":
        parts.append(f"since {date_text(stream.since)}")
    if stream.last_frame_at is not None:
        parts.append(f"last data at {date_text(stream.last_frame_at)}")
    return _ended(f"{', '.join(parts)}{_behind(stream.detail)}")


def _need(series: SeriesId, need: Need) -> str:
    what = _candles(series, need.start_time, need.end_time)
    why = _REASONS.get(need.reason, need.reason)
    if need.next_try_at_ms is None:
        when = "being read now"
    elif need.attempts:
        when = f"asked for again at {date_text(need.next_try_at_ms // 1000)}"
    else:
        when = f"waits for its turn, from {date_text(need.next_try_at_ms // 1000)} on"
    tries = f" after {counted(need.attempts, 'attempt')}" if need.attempts and need.next_try_at_ms is not None else ""
    answer = "" if need.last_answer is None else f" {_ended(f'Last answer: {need.last_answer}')}"
    return f"{what} ({why}): {when}{tries}; wanted by: {need.asked_by}, urgency {need.urgency}.{answer}"


def _gaps(series: SeriesId, answer: Explained) -> list[str]:
    """The newest holes, those that do not exist apart: these are no trouble."""
    missing = [gap for gap in answer.gaps if gap.state != _CONFIRMED_EMPTY]
    empty = [gap for gap in answer.gaps if gap.state == _CONFIRMED_EMPTY]
    shown = sorted([*missing[-MAX_GAPS_SHOWN:], *empty[-MAX_EMPTY_SHOWN:]], key=lambda gap: gap.start_time)
    found = _section("Gaps between stored candles:", [_gap(series, gap) for gap in shown])
    return found + _more(answer.gap_count - len(shown))


def _gap(series: SeriesId, gap: Hole) -> str:
    what = _candles(series, gap.start_time, gap.end_time)
    since = "" if gap.since is None else f" Known since {date_text(gap.since)}."
    return _ended(f"{what}: {_GAPS.get(gap.state, gap.state)}{_behind(gap.proof)}") + since


def _event(event: Event) -> str:
    when = date_text(event.at_ms // 1000)
    if event.count > 1:
        when = f"{when}, {event.count} times since {date_text(event.since_ms // 1000)}"
    return f"{when}: {event.event}: {event.detail}" if event.detail else f"{when}: {event.event}"


def _candles(series: SeriesId, start: int, end: int) -> str:
    frame = series.timeframe
    candles = frame.count(start, end)
    if candles <= 1:
        return f"1 candle, {date_text(start)}"
    return f"{candles} candles, {date_text(start)} to {date_text(frame.shift(end, -1))}"


def _behind(detail: str | None) -> str:
    return "" if detail is None else f": {detail}"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(".") else f"{sentence}."


def _section(title: str, found: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in found)] if found else []


def _more(count: int, which: str = "more") -> list[str]:
    return [f"  … and {count} {which}; --json lists what the service tells"] if count > 0 else []
