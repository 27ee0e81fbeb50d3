"""One pass of `backfill --enrich` over stored candles, with sources as exchanges and files have them."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from klinesync.cli import history_store
from klinesync.cli.history_enrich import Enriched, enrich_series
from klinesync.core.candle import Candle
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryPage
from klinesync.market.settings import LedgerSettings
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.flags import load_flags

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


def minute(at: int) -> Candle:
    return Candle(60 * at, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, 0.5, 0.5)


def bare(at: int) -> Candle:
    return Candle(*minute(at).ohlcv)


async def enriched(stored: dict[int, Candle], *, twice: bool = False) -> Enriched:
    """The result of a pass over `stored`; the source has each minute, `twice` in its answer."""

    async def read(_: SeriesId, since: int) -> Sequence[Candle]:
        return [candle for time, candle in stored.items() if time > since]

    async def put(_: SeriesId, candles: Sequence[Candle]) -> int:
        assert len({candle.time for candle in candles}) == len(candles)
        stored.update((candle.time, candle) for candle in candles)
        return len(candles)

    async def pages(_: SeriesId, span: Span) -> AsyncGenerator[HistoryPage, None]:
        rows = [minute(time // 60) for time in range(span.start, span.end, 60) for _ in range(2 if twice else 1)]
        yield HistoryPage(rows, [])

    done = Enriched(str(BTC))
    await enrich_series(BTC, Span(0, 10**9), [(1, pages)], read, put, done)
    return done


async def test_spans_far_from_each_other_are_filled_in_one_pass() -> None:
    stored = {60 * at: bare(at) if at in (0, 1, 1000, 1001) else minute(at) for at in range(1100)}
    assert await enriched(stored) == Enriched(str(BTC), enriched=4)
    assert stored == {60 * at: minute(at) for at in range(1100)}


async def test_a_row_that_an_answer_has_twice_is_filled_in_once() -> None:
    stored = {60 * at: bare(at) for at in range(3)}
    assert await enriched(stored, twice=True) == Enriched(str(BTC), enriched=3)


def test_a_factor_that_cannot_be_loaded_may_read_order_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: LedgerSettings) -> LedgerStep:
        raise Rejected("it cannot be imported")

    assert not history_store.factors_read_flow(load_flags({}))
    monkeypatch.setattr(history_store, "ledger_step", refused)
    assert history_store.factors_read_flow(load_flags({}))
