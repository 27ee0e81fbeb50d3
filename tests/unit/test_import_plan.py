"""The plan of an import of zips, whose names have only the exchange's name of a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.exchange import Listing
from klinesync.history.files.names import archive_name
from klinesync.history.files.planning import MAX_UNNAMED, ArchiveZip, Found, plan
from klinesync.market_data.listings import SymbolNames

PERPETUAL = Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", "TRADING", None, "perpetual")
DATED = Listing("BTC/USDT:USDT-250328", "BTCUSDT_250328", "BTC", "USDT", "TRADING", None, "delivery")


def zips(*paths: str) -> Found:
    found = Found()
    for path in map(Path, paths):
        name = archive_name(path)
        assert name is not None
        found.add(ArchiveZip(path, name))
    return found


class Lists:
    """Lists of symbols, and the markets that were requested."""

    def __init__(self, kept: dict[str, list[Listing]], now: dict[str, list[Listing]]) -> None:
        self.asked: list[str] = []
        self._now = now
        self.names = SymbolNames(lambda market: kept.get(market, []), self._ask)

    async def _ask(self, market: str) -> Sequence[Listing]:
        self.asked.append(market)
        if market not in self._now:
            raise UpstreamError("no such name")
        return self._now[market]


async def test_a_symbol_of_the_stored_list_needs_no_request() -> None:
    lists = Lists({"futures": [PERPETUAL, DATED]}, {})
    files, others = await plan(zips("um/BTCUSDT_250328-1m-2025-01.zip", "um/BTCUSDT-1m-2025-01.zip"), lists.names.name)
    assert [str(file.series) for file in files] == [
        "binance:futures:BTC/USDT:1m", "binance:futures:BTC/USDT:USDT-250328:1m",
    ]  # fmt: skip
    assert (others, lists.asked) == ([], [])


async def test_a_symbol_missing_in_the_stored_list_costs_one_request_a_market() -> None:
    lists = Lists({"futures": [PERPETUAL]}, {"futures": [PERPETUAL, DATED]})
    found = zips("um/BTCUSDT_250328-1m-2025-01.zip", "um/NOUSDT-1m-2025-01.zip", "spot/AUSDT-1m-2025-01.zip",
                 "spot/BUSDT-1m-2025-01.zip")  # fmt: skip
    files, others = await plan(found, lists.names.name)
    assert [str(file.series) for file in files] == ["binance:futures:BTC/USDT:USDT-250328:1m"]
    assert sorted(lists.asked) == ["futures", "spot"]
    assert [one.path.name[:5] for one in others] == ["NOUSD", "AUSDT", "BUSDT"]
    assert lists.names.asked == {"futures": [PERPETUAL, DATED]}


@pytest.mark.parametrize(("now", "series"), [({"spot": []}, 1), ({}, 0)])
async def test_a_bare_zip_is_of_futures_only_where_spot_is_known_to_lack_its_symbol(
    now: dict[str, list[Listing]], series: int
) -> None:
    lists = Lists({"futures": [DATED]}, now)
    files, _ = await plan(zips("BTCUSDT_250328-1m-2025-01.zip"), lists.names.name)
    assert len(files) == series


async def test_unlisted_symbols_beyond_the_limit_are_counted() -> None:
    paths = [
        f"spot/{number}/{number}USDT-1m-2025-0{month}.zip" for number in range(MAX_UNNAMED + 7) for month in (1, 2)
    ]
    files, others = await plan(zips(*paths), Lists({}, {}).names.name)
    assert (files, len(others)) == ([], MAX_UNNAMED + 1)
    assert all(one.refused is not None for one in others)
    assert "the last of 7 more folders" in str(others[-1].refused)
