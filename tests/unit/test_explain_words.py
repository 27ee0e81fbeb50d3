"""The output of `klinesync explain` for typical series: a complete one, one with a hole, one of an exchange that
refuses, a delisted one, and one that is not followed."""

from __future__ import annotations

from klinesync.cli.explain_words import (
    MAX_EMPTY_SHOWN,
    MAX_EVENTS_SHOWN,
    MAX_GAPS_SHOWN,
    MAX_NEEDS_SHOWN,
    Event,
    Explained,
    Hole,
    Need,
    Stream,
    lines,
)

BTC = "binance:spot:BTC/USDT:1m"
EIGHT = 1_764_489_600  # 2025-11-30 08:00 UTC


def at(minute: int) -> int:
    return EIGHT + 60 * minute


def fine() -> Explained:
    return Explained(
        series_id="binance:spot:BTC/USDT:1m",
        base_series_id="binance:spot:BTC/USDT:1m",
        now_time=at(10) + 20,
        first_time=at(-1000),
        head_time=at(9),
        expected_latest_closed_time=at(9),
        status="green",
        status_reason="up_to_date",
        detail=None,
        stream=Stream("live", at(-60), at(10) + 19, None),
        needs=[],
        need_count=0,
        gaps=[],
        gap_count=0,
        events=[],
    )


def test_an_up_to_date_series() -> None:
    assert lines(fine()) == [
        "binance:spot:BTC/USDT:1m at 2025-11-30 08:10:20 UTC",
        "GREEN: Nothing is missing.",
        "",
        "Stored: from the candle of 2025-11-29 15:20 UTC to that of 2025-11-30 08:09 UTC.",
        "Stream: live, since 2025-11-30 07:00 UTC, last data at 2025-11-30 08:10:19 UTC.",
    ]


def test_a_series_with_a_requested_gap() -> None:
    answer = fine()
    answer.status, answer.status_reason = "yellow", "gap_healing"
    answer.needs = [
        Need(BTC, at(2), at(5), "gap", "declared gap", "deep", 3, (at(11) + 30) * 1000, "no row came"),
        Need(BTC, at(6), at(7), "tail", "read", "read", 1, None, None),
        Need(BTC, at(-2000), at(-1000), "older", "read", "read", 0, at(10) * 1000, None),
    ]
    answer.need_count = 3
    answer.gaps = [
        Hole(at(2), at(5), "healing", None, None),
        Hole(at(6), at(7), "confirmed_empty", "REST has its neighbours", at(9)),
        Hole(at(8), at(9), "unknown", None, None),
    ]
    answer.gap_count = 3
    answer.events = [
        Event(at(5) * 1000, "gap.declared", "3 candles: missing", at(5) * 1000, 1),
        Event(at(9) * 1000, "history.failed", "no answer", at(6) * 1000, 4),
        Event(at(9) * 1000 + 20, "connection.made", "streams of the market are subscribed", at(9) * 1000, 20),
    ]
    text = lines(answer)
    assert text[1] == "YELLOW: Candles between stored ones are missing, and are requested."
    assert text[5:] == [
        "",
        "Requested:",
        (
            "  3 candles, 2025-11-30 08:02 UTC to 2025-11-30 08:04 UTC (between stored candles): next attempt at "
            "2025-11-30 08:11:30 UTC after 3 attempts; requested by: declared gap, urgency deep. "
            "Last answer: no row came."
        ),
        (
            "  1 candle, 2025-11-30 08:06 UTC (after the newest stored candle): being read now; requested by: read, "
            "urgency read."
        ),
        (
            "  1000 candles, 2025-11-28 22:40 UTC to 2025-11-29 15:19 UTC (before the first stored candle): "
            "queued, from 2025-11-30 08:10 UTC on; requested by: read, urgency read."
        ),
        "",
        "Gaps between stored candles:",
        "  3 candles, 2025-11-30 08:02 UTC to 2025-11-30 08:04 UTC: missing; requested.",
        (
            "  1 candle, 2025-11-30 08:06 UTC: confirmed empty: REST has its neighbours. "
            "Known since 2025-11-30 08:09 UTC."
        ),
        "  1 candle, 2025-11-30 08:08 UTC: missing; not being read, or several attempts brought nothing.",
        "",
        "Recent events:",
        "  2025-11-30 08:05 UTC: gap.declared: 3 candles: missing",
        "  2025-11-30 08:09 UTC, 4 times since 2025-11-30 08:06 UTC: history.failed: no answer",
        "  2025-11-30 08:09 UTC, 20 times: connection.made: streams of the market are subscribed",
    ]


def test_a_series_of_an_exchange_that_refuses_the_service() -> None:
    answer = fine()
    answer.status, answer.status_reason, answer.detail = "red", "exchange_refuses", "http://x/time answered 451."
    answer.head_time = at(3)
    answer.stream = Stream("reconnecting", at(4), None, "the handshake is answered with 451")
    assert lines(answer)[1:] == [
        "RED: Candles are missing, and the exchange refuses this service: http://x/time answered 451.",
        "",
        "Stored: from the candle of 2025-11-29 15:20 UTC to that of 2025-11-30 08:03 UTC.",
        "Missing after it: 6 candles, up to 2025-11-30 08:09 UTC.",
        "Stream: reconnecting, since 2025-11-30 08:04 UTC: the handshake is answered with 451.",
    ]


def test_a_series_that_is_delisted() -> None:
    answer = fine()
    answer.head_time = at(3)
    answer.stream = Stream("delisted", at(4), at(3), "its status is BREAK")
    assert lines(answer)[3:] == [
        "Stored: from the candle of 2025-11-29 15:20 UTC to that of 2025-11-30 08:03 UTC.",
        (
            "Stream: delisted: the exchange does not trade the symbol; the series is followed again when it is "
            "traded, since 2025-11-30 08:04 UTC, last data at 2025-11-30 08:03 UTC: its status is BREAK."
        ),
    ]


def test_a_derived_series_that_is_not_followed() -> None:
    answer = fine()
    answer.series_id = "binance:spot:BTC/USDT:1h"
    answer.status, answer.status_reason = "red", "missing_head"
    answer.first_time = answer.head_time = None
    answer.stream = Stream("off", at(0), None, None)
    assert lines(answer) == [
        "binance:spot:BTC/USDT:1h at 2025-11-30 08:10:20 UTC",
        "Computed from binance:spot:BTC/USDT:1m, which is followed and read.",
        "RED: Nothing is stored, and no history is being read.",
        "",
        "Stored: nothing.",
        "Stream: the series is not followed, so no live candles come; subscribe to it, or put it on the whitelist.",
    ]


def test_only_the_newest_lines_are_printed_and_further_ones_are_counted() -> None:
    answer = fine()
    answer.needs = [Need(BTC, at(n), at(n + 1), "gap", "declared gap", "deep", 0, 0, None) for n in range(50)]
    answer.need_count = 700
    states = ["unknown"] * 40 + ["confirmed_empty"] * 40
    answer.gaps = [Hole(at(2 * n), at(2 * n + 1), state, None, None) for n, state in enumerate(states)]
    answer.gap_count = 1000
    answer.events = [Event(at(n) * 1000, "gap.declared", str(n), at(n) * 1000, 1) for n in range(200)]
    text = lines(answer)
    more = [line for line in text if line.startswith("  …")]
    assert [line.split()[2] for line in more] == [
        str(700 - MAX_NEEDS_SHOWN),
        str(1000 - MAX_GAPS_SHOWN - MAX_EMPTY_SHOWN),
        str(200 - MAX_EVENTS_SHOWN),
    ]
    assert text[-2].endswith(": 199")


def test_unknown_states_and_reasons_of_a_newer_service_are_printed() -> None:
    answer = fine()
    answer.status_reason, answer.stream.state = "something_new", "paused"
    answer.gaps, answer.gap_count = [Hole(at(0), at(1), "odd", None, None)], 1
    text = "\n".join(lines(answer))
    for word in ("something_new", "paused", "odd"):
        assert word in text
