"""Audit: the candles that are compared with those of the exchange."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import pytest

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, HistoryPage
from klinesync.ingest.audit import Audit
from klinesync.ingest.timings import USUAL_AUDIT
from klinesync.pipelines.submissions import Empty

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
NOW_S = 60 * 1000 + USUAL_AUDIT.age_s
ReadHistory = Callable[[SeriesId, int, Errand, int | None], AsyncGenerator[HistoryPage, None]]
Submit = Callable[[SeriesId, Sequence[Candle], str, Empty], Awaitable[Applied]]


async def audited_over(history: ReadHistory, stored: Span | None, submit: Submit) -> Audit:
    """The result of one audit of a series."""

    async def stored_span(_: SeriesId) -> Span | None:
        return stored

    audit = Audit(
        history,
        series=lambda: [BTC],
        stored=stored_span,
        not_streamed_since=lambda _, candles, __: candles,
        submit=submit,
        now_ms=lambda _: NOW_S * 1000,
        interval_s=1.0,
    )
    await audit.audit(BTC)
    return audit


async def audited(pages: Sequence[HistoryPage], submit: Submit) -> Audit:
    """An audit of a series that is stored from 0 on, over these pages of the exchange."""

    async def history(
        series: SeriesId, start: int, errand: Errand, end: int | None
    ) -> AsyncGenerator[HistoryPage, None]:
        for page in pages:
            yield page

    return await audited_over(history, Span(0, 60 * 2000), submit)


async def look_at(stored: Span | None) -> list[tuple[int, int | None]]:
    asked: list[tuple[int, int | None]] = []

    async def history(
        series: SeriesId, start: int, errand: Errand, end: int | None
    ) -> AsyncGenerator[HistoryPage, None]:
        asked.append((start, end))
        yield HistoryPage([], [])

    async def submit(series: SeriesId, candles: Sequence[Candle], name: str, empty: Empty) -> Applied:
        return Applied(series, (), frozenset())

    await audited_over(history, stored, submit)
    return asked


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (None, []),
        (Span(0, 60 * 2000), [(60 * (1000 - USUAL_AUDIT.candles), 60 * 1000)]),
        (Span(60 * 990, 60 * 2000), [(60 * 990, 60 * 1000)]),
        (Span(0, 60 * 500), [(60 * (500 - USUAL_AUDIT.candles), 60 * 500)]),
        (Span(60 * 999, 60 * 1001), [(60 * 999, 60 * 1000)]),
        (Span(60 * 1000, 60 * 1001), []),
    ],
    ids=["empty store", "old head", "short history", "head behind", "one old candle", "young candles alone"],
)
async def test_the_audit_compares_the_newest_stored_candles_that_are_old_enough(
    stored: Span | None, asked: list[tuple[int, int | None]]
) -> None:
    assert await look_at(stored) == asked


async def test_order_flow_that_the_audit_fills_in_is_no_revision(caplog: pytest.LogCaptureFixture) -> None:
    candles = [Candle(60 * at, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 3, 5.0, 7.5) for at in (990, 991, 992)]
    some = frozenset([60 * 990, 60 * 992])

    async def submit(series: SeriesId, candles: Sequence[Candle], name: str, empty: Empty) -> Applied:
        revised = frozenset(candle.time for candle in candles if candle.time not in some)
        return Applied(series, tuple(candles), revised, rounded=some, enriched=some)

    audit = await audited([HistoryPage(candles, [])], submit)
    assert (audit.revised, audit.enriched) == (1, 2)
    assert "1 candle" in caplog.text
    caplog.clear()
    audit = await audited([HistoryPage([candles[0], candles[2]], [])], submit)
    assert (audit.revised, audit.enriched) == (0, 2)
    assert caplog.text == ""
