"""The rows of REST that decide between a frame and the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import Errand, HistoryPage
from klinesync.ingest.questioner import Questioner
from support.fake_exchange import FakeExchange

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ROW = Candle(60 * 990, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 3, 5.0, 7.5)


class OneRow(FakeExchange):
    """An exchange whose history is one row."""

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        yield HistoryPage([ROW], [])


@pytest.mark.parametrize(("enriched", "pending"), [(frozenset(), 0), (frozenset([ROW.time]), 1)])
async def test_a_row_that_only_fills_in_order_flow_does_not_settle_a_question(
    enriched: frozenset[int], pending: int
) -> None:
    written = asyncio.Event()

    async def submit(series: SeriesId, candles: Sequence[Candle], source: str) -> Applied:
        written.set()
        return Applied(series, tuple(candles), frozenset(), rounded=enriched, enriched=enriched)

    questioner = Questioner(OneRow(), submit)
    questioner.ask(BTC, [ROW._replace(volume=11.0)])
    running = asyncio.create_task(questioner.run())
    await written.wait()
    while questioner.questions.settled == 0 and not any(
        question.answers for question in questioner.questions._pending.values()
    ):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(questioner.questions) == pending
    assert questioner.questions.settled == 1 - pending
