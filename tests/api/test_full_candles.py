"""Candles with their order flow (`fields=full`), over real sockets: posted, read, subscribed to, refused."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
FIVE = "binance:spot:BTC/USDT:5m"
START = 1_700_000_100  # a multiple of 300
FLOW = {"quote_volume": 15.0, "trades": 3, "taker_buy_volume": 4.0, "taker_buy_quote_volume": 6.0}
NO_FLOW = dict.fromkeys(FLOW)


def short(minute: int, **changes: object) -> dict[str, object]:
    prices: dict[str, object] = {"open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
    return {"candle_time": START + 60 * minute} | prices | changes


def full(minute: int, **changes: object) -> dict[str, object]:
    return short(minute) | FLOW | changes


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", enable_debug_api="on") as running:
        yield running


async def ingest(service: Service, *candles: dict[str, object]) -> None:
    body = {"series_id": BTC, "candles": list(candles)}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 200, answer


async def page(service: Service, series_id: str = BTC, **params: str) -> object:
    status, answer = await service.get("/api/market/candles", series_id=series_id, **params)
    assert status == 200, answer
    return answer["candles"]


async def test_a_page_has_the_order_flow_only_where_it_is_requested(service: Service) -> None:
    await ingest(service, full(0), short(1), full(2, trades=None))
    shown = [full(0), short(1) | NO_FLOW, full(2, trades=None)]
    for _ in range(2):  # the second answers come from the cache
        assert await page(service) == [short(0), short(1), short(2)]
        assert await page(service, fields="full") == shown
        assert await page(service, fields="full", since=str(START)) == shown[1:]
        assert await page(service, fields="full", before=str(START + 60)) == shown[:1]


async def test_a_page_without_fields_has_the_bytes_of_six_values(service: Service) -> None:
    await ingest(service, full(0))
    async with service.http.get(service.url + "/api/market/candles", params={"series_id": BTC}) as response:
        assert await response.read() == (
            b'{"series_id":"binance:spot:BTC/USDT:1m","server_head_time":1700000100,"candles":[{"candle_time":1700000100,'
            b'"open":1.0,"high":2.0,"low":0.5,"close":1.5,"volume":10.0}],"gaps":[]}'
        )


async def test_a_derived_page_has_the_sums_and_null_where_a_part_is_null(service: Service) -> None:
    await ingest(service, *(full(minute) for minute in range(4)), full(4, trades=None), full(5))
    bucket = short(0, volume=50.0) | {
        "quote_volume": 75.0,
        "trades": None,
        "taker_buy_volume": 20.0,
        "taker_buy_quote_volume": 30.0,
    }
    assert await page(service, FIVE, fields="full") == [bucket]


async def test_an_enrichment_shows_on_the_next_page(service: Service) -> None:
    await ingest(service, short(0))
    assert await page(service, fields="full") == [short(0) | NO_FLOW]
    await ingest(service, full(0))
    assert await page(service, fields="full") == [full(0)]
    await ingest(service, short(0))  # a source without order flow contradicts nothing
    assert await page(service, fields="full") == [full(0)]
    await ingest(service, short(0, close=1.0))
    assert await page(service, fields="full") == [short(0, close=1.0) | NO_FLOW]


async def test_a_candle_that_is_posted_with_and_without_order_flow_is_one_candle(service: Service) -> None:
    await ingest(service, short(0), full(0, trades=None), short(0) | {"trades": 3})
    assert await page(service, fields="full") == [full(0)]
    body = {"series_id": BTC, "candles": [full(1), full(1, trades=4)]}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert (status, answer["code"]) == (422, "bad_candle")
    assert "it is given twice, with different values" in str(answer["detail"])


@pytest.mark.parametrize("fields", ["", "Full", "short", "full,short", "null", "1"])
async def test_other_fields_are_refused_by_name(service: Service, fields: str) -> None:
    status, answer = await service.get("/api/market/candles", series_id=BTC, fields=fields)
    assert (status, answer["code"]) == (422, "bad_request")
    assert "fields" in str(answer["detail"])


@pytest.mark.parametrize("path", ["candle_closed", "candles_closed", "candle_forming"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quote_volume": -1.0}, "quote_volume -1.0 is negative"),
        ({"trades": -1}, "trades -1 is negative"),
        ({"trades": 10**10 + 1}, "trades is larger than 10000000000"),
        ({"trades": 10**400}, "trades is larger than 10000000000"),
        ({"taker_buy_volume": 10.1}, "taker_buy_volume 10.1 is larger than volume 10.0"),
        ({"taker_buy_quote_volume": 15.1}, "taker_buy_quote_volume 15.1 is larger than quote_volume 15.0"),
        ({"quote_volume": 1e101}, "quote_volume 1e+101 is larger than 1e+100"),
    ],
)
async def test_impossible_order_flow_is_refused_with_a_sentence(
    service: Service, path: str, changes: dict[str, object], sentence: str
) -> None:
    candle = full(0, **changes)
    body = {"series_id": BTC} | ({"candles": [full(1), candle]} if path == "candles_closed" else {"candle": candle})
    status, answer = await service.post(f"/api/market/ingest/{path}", body)
    assert (status, answer["code"]) == (422, "bad_candle")
    assert sentence in str(answer["detail"])
    assert await page(service) == []


@pytest.mark.parametrize(
    "told", [b'"trades":1.5', b'"trades":"3"', b'"trades":true', b'"quote_volume":"15"', b'"taker_buy_volume":1e999']
)
async def test_order_flow_of_another_type_is_refused_by_name(service: Service, told: bytes) -> None:
    candle = b'{"candle_time":1700000100,"open":1,"high":2,"low":0.5,"close":1.5,"volume":10,%s}' % told
    body = BytesIO(b'{"series_id":"%s","candle":%s}' % (BTC.encode(), candle))
    headers = {"Content-Type": "application/json"}
    url = service.url + "/api/market/ingest/candle_closed"
    async with service.http.post(url, data=body, headers=headers) as response:
        answer = await response.json()
        assert (response.status, answer["code"]) == (422, "bad_request"), answer
        if b"999" not in told:  # not a JSON number
            assert told.split(b'"')[1].decode() in answer["detail"]


async def test_taker_parts_may_exceed_their_wholes_by_a_rounding(service: Service) -> None:
    candle = full(0, taker_buy_volume=10.0 * (1 + 5e-10))
    await ingest(service, candle)
    assert await page(service, fields="full") == [candle]


class Socket:
    """A client of the WebSocket: sends JSON, receives JSON."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def subscribe(self, series_id: str = BTC, **message: object) -> None:
        await self._socket.send_json({"type": "subscribe", "series_id": series_id} | message)

    async def settle(self) -> list[dict[str, object]]:
        """All messages up to now: sends a ping and reads up to its pong."""
        await self._socket.send_json({"type": "ping"})
        messages = []
        while (message := await self._socket.receive_json(timeout=10)) != {"type": "pong"}:
            messages.append(message)
        return messages

    async def candles(self) -> list[object]:
        """The candles of all messages up to now, as (type, revised, candles)."""
        return [
            (message["type"], message.get("revised", False), message.get("candles", [message.get("candle")]))
            for message in await self.settle()
        ]


@asynccontextmanager
async def sockets(service: Service, count: int) -> AsyncIterator[list[Socket]]:
    async with AsyncExitStack() as stack:
        yield [
            Socket(await stack.enter_async_context(service.http.ws_connect(service.url + "/ws/market")))
            for _ in range(count)
        ]


@pytest.mark.parametrize("batches", [False, True])
async def test_each_subscriber_gets_its_fields_in_catch_up_live_and_corrections(
    service: Service, batches: bool
) -> None:
    await ingest(service, full(0), short(1))
    async with sockets(service, 4) as clients:
        for number, client in enumerate(clients):
            fields = {"fields": "full"} if number % 2 else {}
            await client.subscribe(since=START - 60, supports_batch=batches, **fields)

        async def told(revised: bool, *candles: dict[str, object]) -> None:
            """Assert that each client is sent these candles, and nothing else."""
            for number, client in enumerate(clients):
                shown = [
                    {name: candle.get(name) for name in (full(0) if number % 2 else short(0))} for candle in candles
                ]
                if batches and len(shown) > 1:
                    expected: list[object] = [("candles_batch", revised, shown)]
                else:
                    expected = [("candle_closed", revised, [one]) for one in shown]
                assert await client.candles() == expected

        await told(False, full(0), short(1))
        await ingest(service, full(2))
        await told(False, full(2))
        await ingest(service, full(3), full(4, trades=None))
        await told(False, full(3), full(4, trades=None))
        await ingest(service, full(2, close=1.0), full(3, close=1.0))
        await told(True, full(2, close=1.0), full(3, close=1.0))
        await ingest(service, full(1), full(4))  # an enrichment
        await told(False)
        await ingest(service, full(5))
        await told(False, full(5))


async def test_a_correction_of_the_order_flow_alone_is_sent_to_clients_that_have_it(service: Service) -> None:
    await ingest(service, full(0), full(1))
    async with sockets(service, 2) as (without, having):
        await without.subscribe(since=START)
        await having.subscribe(since=START, fields="full")
        await without.settle()
        await having.settle()
        await ingest(service, full(0, trades=4), full(1, trades=4), full(2))
        assert await without.candles() == [("candle_closed", False, [short(2)])]
        assert await having.candles() == [
            ("candle_closed", True, [full(0, trades=4)]),
            ("candle_closed", True, [full(1, trades=4)]),
            ("candle_closed", False, [full(2)]),
        ]


async def test_one_client_has_series_with_and_without_order_flow(service: Service) -> None:
    await ingest(service, *(full(minute) for minute in range(6)))
    sums = {"quote_volume": 75.0, "trades": 15, "taker_buy_volume": 20.0, "taker_buy_quote_volume": 30.0}
    five = short(0, volume=50.0)
    async with sockets(service, 1) as (client,):
        await client.subscribe(since=START + 240)
        await client.subscribe(FIVE, since=START - 300, fields="full")
        assert await client.candles() == [
            ("candle_closed", False, [short(5)]),
            ("candle_closed", False, [five | sums]),
        ]
        await client.subscribe(since=START + 240, fields="full")  # a second subscription replaces the first
        await client.subscribe(FIVE, since=START - 300, fields=None)
        assert await client.candles() == [("candle_closed", False, [full(5)]), ("candle_closed", False, [five])]
        await ingest(service, full(6))
        assert await client.candles() == [("candle_closed", False, [full(6)])]


async def test_forming_candles_have_their_order_flow_and_so_have_derived_ones(service: Service) -> None:
    await ingest(service, full(0), full(1))
    async with sockets(service, 2) as (without, having):
        for series_id in (BTC, FIVE):
            await without.subscribe(series_id, what=["forming"])
            await having.subscribe(series_id, what=["forming"], fields="full")
        await without.settle()
        await having.settle()

        async def form(candle: dict[str, object]) -> list[dict[object, object]]:
            """Post a forming candle until each client was sent one of each series, for the buckets of the derived
            series are read after the first. Returns their newest ones."""
            newest: list[dict[object, object]] = [{}, {}]
            while not all(len(shown) == 2 for shown in newest):
                body = {"series_id": BTC, "candle": candle}
                status, answer = await service.post("/api/market/ingest/candle_forming", body)
                assert status == 200, answer
                for client, shown in zip((without, having), newest, strict=True):
                    shown |= {message["series_id"]: message["candle"] for message in await client.settle()}
            return newest

        sums = {"quote_volume": 45.0, "trades": 13, "taker_buy_volume": 12.0, "taker_buy_quote_volume": 18.0}
        five = short(0, volume=30.0)
        assert await form(full(2, trades=7)) == [
            {BTC: short(2), FIVE: five},
            {BTC: full(2, trades=7), FIVE: five | sums},
        ]
        assert await form(short(2)) == [
            {BTC: short(2), FIVE: five},
            {BTC: short(2) | NO_FLOW, FIVE: five | NO_FLOW},
        ]


async def test_order_flow_is_there_after_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with running_service(store) as service:
        await ingest(service, *(full(minute) for minute in range(300)), short(300))
    async with running_service(store) as service:
        expected = [*(full(minute) for minute in range(300)), short(300) | NO_FLOW]
        assert await page(service, fields="full") == expected
        async with sockets(service, 1) as (client,):
            await client.subscribe(since=0, supports_batch=True, fields="full")
            assert await client.candles() == [("candles_batch", False, expected)]


@pytest.mark.parametrize("fields", ["", "short", "FULL", 1, True, ["full"]])
async def test_a_subscription_to_other_fields_is_refused(service: Service, fields: object) -> None:
    await ingest(service, full(0))
    async with sockets(service, 1) as (client,):
        await client.subscribe(since=0, fields=fields)
        refusal = {"type": "error", "code": "bad_request", "message": "invalid fields", "series_id": BTC}
        assert await client.settle() == [refusal]
