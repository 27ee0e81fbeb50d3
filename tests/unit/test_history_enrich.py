"""One pass of `backfill --enrich` over stored candles, with sources like those of exchanges and files."""

from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from klinesync.cli import history_store
from klinesync.cli.history_enrich import Enriched, enrich_series
from klinesync.core.candle import Candle
from klinesync.core.errors import NotListed, Rejected
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


async def enriched(
    stored: dict[int, Candle],
    *,
    twice: bool = False,
    has_flow: Callable[[int], bool] = lambda _: True,
    page: int = 10**6,
    read_pages: list[int] | None = None,
) -> Enriched:
    """The result of a pass over `stored`; the source has each minute, `twice` in its answer, in pages of `page` rows,
    with order flow where `has_flow`. `read_pages` gets the number of rows of each page read."""

    async def read(_: SeriesId, since: int) -> Sequence[Candle]:
        return [candle for time, candle in stored.items() if time > since]

    async def put(_: SeriesId, candles: Sequence[Candle]) -> int:
        assert len({candle.time for candle in candles}) == len(candles)
        stored.update((candle.time, candle) for candle in candles)
        return len(candles)

    async def pages(_: SeriesId, span: Span) -> AsyncGenerator[HistoryPage, None]:
        minutes = [time // 60 for time in range(span.start, span.end, 60) for _ in range(2 if twice else 1)]
        rows = [minute(at) if has_flow(at) else bare(at) for at in minutes]
        for start in range(0, len(rows), page):
            if read_pages is not None:
                read_pages.append(len(rows[start : start + page]))
            yield HistoryPage(rows[start : start + page], [])

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


async def test_a_source_that_lacks_the_order_flow_of_some_candles_is_asked_for_the_others() -> None:
    stored = {60 * at: bare(at) if at in (0, 1000) else minute(at) for at in range(1100)}
    done = await enriched(stored, has_flow=lambda at: at > 0)
    assert done == Enriched(str(BTC), enriched=1, remaining=1)


async def test_a_source_without_order_flow_is_not_read_to_the_end() -> None:
    stored = {60 * at: bare(at) for at in range(5000)}
    pages: list[int] = []
    done = await enriched(stored, has_flow=lambda _: False, page=400, read_pages=pages)
    assert done == Enriched(str(BTC), remaining=5000)
    assert pages == [400, 400]


async def test_a_series_that_its_exchange_no_longer_lists_does_not_end_the_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def has_flow(_: int) -> bool:
        raise NotListed(f"{BTC}: the exchange lists it no more")

    stored = {60 * at: bare(at) for at in range(3)}
    assert await enriched(stored, has_flow=has_flow) == Enriched(str(BTC), remaining=3)
    assert capsys.readouterr().err == f"klinesync: {BTC}: the exchange lists it no more\n"


def test_a_factor_that_cannot_be_loaded_may_read_order_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: LedgerSettings) -> LedgerStep:
        raise Rejected("it cannot be imported")

    assert not history_store.no_ledger_of(load_flags({})).redoes_flow
    assert history_store.no_ledger_of(load_flags({"indicators": "CVD"})).redoes_flow
    monkeypatch.setattr(history_store, "ledger_step", refused)
    assert history_store.no_ledger_of(load_flags({})).redoes_flow
