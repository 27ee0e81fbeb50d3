"""A series that the exchange does not list is nobody else's: refused at once, or served as it was imported."""

from __future__ import annotations

import asyncio
from pathlib import Path

from klinesync.sim.server import SimConfig, SimServer
from processes import klinesync


async def test_backfill_of_what_the_exchange_does_not_list_ends_at_once_and_stores_nothing(tmp_path: Path) -> None:
    async with SimServer(SimConfig(symbols=2, contracts=True, odd_symbols=True)) as exchange:
        start = exchange.now_ms() // 60_000 * 60 - 3600
        quarterly = next(name for name in exchange.exchange.futures if "_" in name)

        async def backfill(series: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(
                klinesync,
                *("backfill", series, f"--from={start}", f"--to={start + 300}", "--json"),
                *(
                    f"--database-url=sqlite:///{tmp_path}/store.sqlite",
                    f"--binance-futures-rest-url={exchange.http_url}",
                ),
            )

        dated = f"binance:futures:BTC/USDT:USDT-{quarterly.rpartition('_')[2]}:1m"
        status, out, told = await backfill(dated)
        assert (status, '"candles": 5' in out) == (0, True), told
        status, _, told = await backfill("binance:futures:BTC/USDT:USDT-200101:1m")
        assert (status, "lists no such symbol" in told) == (1, True), told
        status, _, told = await backfill("binance:futures:BTC/USD:BTC:1m")
        assert (status, "coin-margined" in told) == (1, True), told
