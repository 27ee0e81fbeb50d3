"""Why is this candle (not) here? The route and the command, over real sockets, against the simulated exchange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.server import SimConfig, SimServer
from support.processes import klinesync
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = "binance:spot:ETH/USDT:1m"
HOUR = "binance:spot:BTC/USDT:1h"
START = 1_764_489_600
PATIENCE_S = 60.0

Answer = dict[str, Any]


async def explain(service: Service, series_id: str) -> Answer:
    status, answer = await service.get("/api/market/explain", series_id=series_id)
    assert status == 200, answer
    return answer


async def until(service: Service, series_id: str, true: Callable[[Answer], bool]) -> Answer:
    """The first answer that satisfies the condition."""
    answer: Answer = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await explain(service, series_id)
                if true(answer):
                    return answer
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never came: {json.dumps(answer, indent=1)}") from None


def names(answer: Answer) -> list[str]:
    return [event["event"] for event in answer["events"]]


async def fault(exchange: SimServer, service: Service, **fields: object) -> str:
    async with service.http.post(f"{exchange.http_url}/sim/faults", json=fields) as response:
        return str((await response.json())["id"])


async def command(*arguments: str) -> tuple[int, str, str]:
    """The command in a process of its own, beside this process's event loop."""
    return await asyncio.to_thread(klinesync, "explain", *arguments)


async def test_an_up_to_date_series_shows_stored_candles_and_who_read_them(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(symbols=2, start=START, speed=10)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(BTC)) as service,
    ):
        answer = await until(
            service,
            str(BTC),
            lambda answer: (
                answer["status"] == "green"
                and answer["stream"]["state"] == "live"
                and "history.read" in names(answer)  # written when the reading has ended
            ),
        )
        assert (answer["series_id"], answer["base_series_id"], answer["timeframe_seconds"]) == (str(BTC), str(BTC), 60)
        assert abs(answer["now_time"] - exchange.now_ms() / 1000) < 60
        assert answer["first_time"] < answer["head_time"] <= answer["expected_latest_closed_time"] + 60
        assert (answer["gaps"], answer["gap_count"]) == ([], 0)
        assert "series.followed" in names(answer)
        read = next(event for event in answer["events"] if event["event"] == "history.read")
        assert set(read) == {"at_ms", "event", "detail", "since_ms", "count"}
        assert "startup" in read["detail"]
        derived = await explain(service, HOUR)
        assert derived["base_series_id"] == str(BTC)
        assert "history.read" in names(derived), "what happened to its base"

        out = ""
        async with asyncio.timeout(PATIENCE_S):
            while "GREEN: Nothing is missing." not in out:  # a minute may just have ended
                code, out, errors = await command(str(BTC), "--url", service.url)
                assert (code, errors) == (0, "")
                assert out.startswith(f"{BTC} at 20")
        assert "Stream: live, since 20" in out
        code, out, _ = await command(HOUR, "--url", service.url, "--json")
        assert (code, json.loads(out)["base_series_id"]) == (0, str(BTC))


async def test_no_exchange_is_asked_and_an_unknown_series_is_404(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with (
        SimServer(SimConfig(symbols=2, start=START)) as exchange,
        running_service(store, exchange, enable_whitelist_ingest="off") as service,
    ):
        for series_id in (ETH, "binance:spot:NOSUCH/USDT:1m", "nowhere:spot:BTC/USDT:1m"):
            status, refusal = await service.get("/api/market/explain", series_id=series_id)
            assert (status, refusal["code"]) == (404, "unknown_series")
        async with service.http.get(f"{exchange.http_url}/sim/state") as response:
            state: Answer = await response.json()
        assert (state["rest_weight_used"], state["connections"]) == (0, [])
        status, refusal = await service.get("/api/market/explain", series_id="binance:spot:ETH/USDT:45m")
        assert "add 45m to the flag derived_timeframes" in str(refusal["detail"])
        # Once its list of symbols is kept, a listed series is known.
        status, _ = await service.get("/api/market/health", series_id=ETH)
        assert status == 200
        answer = await explain(service, ETH)
        assert (answer["status_reason"], answer["head_time"], answer["first_time"]) == ("missing_head", None, None)
        assert answer["stream"]["state"] == "off"
        code, out, _ = await command(ETH, "--url", service.url)
        assert code == 0
        assert "the series is not followed" in out
        code, out, errors = await command("binance:spot:NOSUCH/USDT:1m", "--url", service.url)
        assert (code, out) == (1, "")
        assert errors.startswith("klinesync: series binance:spot:NOSUCH/USDT:1m is unknown: ")
        assert errors.count("\n") == 1
    code, _, errors = await command(ETH, "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "does not answer" in errors


async def test_a_confirmed_empty_gap_is_shown_with_its_proof(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(symbols=2, start=START, speed=60)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(BTC)) as service,
    ):
        await until(service, str(BTC), lambda answer: answer["status"] == "green")
        await fault(exchange, service, kind="outage", minutes=3, symbols=["BTCUSDT"])
        answer = await until(service, str(BTC), lambda answer: answer["gap_count"] == 1)
        [gap] = answer["gaps"]
        assert (gap["state"], gap["missing_candles"]) == ("confirmed_empty", 3)
        assert gap["proof"]
        answer = await until(service, str(BTC), lambda answer: "gap.confirmed_empty" in names(answer))
        _, out, _ = await command(str(BTC), "--url", service.url)
        assert ": confirmed empty: " in out


async def test_corrections_and_a_gap_that_is_not_filled_are_shown(tmp_path: Path) -> None:
    rows = [Candle(START - 600 + 60 * minute, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in (0, 1, 5)]
    async with running_service(tmp_path / "store.sqlite") as service:
        await service.runtime.market_data.ingest_candles_closed(BTC, rows)
        await service.runtime.market_data.ingest_candles_closed(BTC, [rows[1]._replace(close=1.6)])
        answer = await explain(service, str(BTC))
        assert names(answer) == ["gap.declared", "candles.corrected"]
        [gap] = answer["gaps"]
        assert (gap["start_time"], gap["end_time"]) == (START - 480, START - 300)
        _, out, _ = await command(str(BTC), "--url", service.url)
        assert "3 candles, 2025-11-30 07:52 UTC to 2025-11-30 07:54 UTC: missing" in out
        assert "the candle of 2025-11-30 07:51 UTC: http has corrected it" in out


async def test_an_exchange_that_refuses_from_the_start_is_the_reason_for_missing_candles(tmp_path: Path) -> None:
    """Needs name the caller, the number of attempts, the time of the next request, and the last answer."""
    store = tmp_path / "store.sqlite"
    rows = [Candle(START - 7200 + 60 * minute, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in (0, 1, 5)]
    async with SimServer(SimConfig(symbols=2, start=START)) as exchange:
        async with running_service(store) as service:
            await service.runtime.market_data.ingest_candles_closed(BTC, rows)
            await fault(exchange, service, kind="rest_error", status=451, count=10_000)
            await fault(exchange, service, kind="refuse_connect")
        async with running_service(store, exchange, whitelist=str(BTC)) as service:
            answer = await until(
                service,
                str(BTC),
                lambda answer: {"exchange.refuses", "history.failed"} <= set(names(answer)),
            )
            assert answer["status_reason"] == "exchange_refuses"
            assert "451" in answer["detail"]
            # A read of the series requests its older history as well.
            status, _ = await service.get("/api/market/candles", series_id=str(BTC))
            assert status == 200

            def refused(answer: Answer) -> bool:
                return any("451" in (need["last_answer"] or "") for need in answer["needs"])

            answer = await until(service, str(BTC), refused)
            need = next(need for need in answer["needs"] if need["last_answer"])
            assert set(need) == {
                "series_id", "start_time", "end_time", "reason", "asked_by", "urgency", "attempts", "next_try_at_ms",
                "last_answer",
            }  # fmt: skip
            assert need["series_id"] == str(BTC)
            assert need["attempts"] >= 1
            assert need["start_time"] < need["end_time"]
            assert answer["need_count"] == len(answer["needs"])
            _, out, _ = await command(str(BTC), "--url", service.url)
            assert "the exchange refuses this service: " in out
            assert "Requested:" in out
            assert "Last answer: " in out


async def test_a_restart_knows_what_happened_before(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(symbols=2, start=START, speed=10)) as exchange:
        async with running_service(store, exchange, whitelist=str(BTC)) as service:
            await until(service, str(BTC), lambda answer: answer["status"] == "green")
            await fault(exchange, service, kind="disconnect")
            before = await until(service, str(BTC), lambda answer: "connection.lost" in names(answer))
        async with running_service(store) as service:
            after = await explain(service, str(BTC))
            kept = [event for event in after["events"] if event in before["events"]]
            assert {"series.followed", "history.read", "connection.lost"} <= {event["event"] for event in kept}
            assert after["stream"]["state"] == "off"
            assert service.runtime.events.written == 0, "nothing is written again"
