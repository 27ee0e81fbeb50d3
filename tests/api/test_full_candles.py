"""Candles with their order flow (`fields=full`), over real sockets: posted, read, refused."""

from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

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
        ({"trades": 2**53}, "trades is larger than 9007199254740991"),
        ({"trades": 10**400}, "trades is larger than 9007199254740991"),
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
        if b"999" not in told:  # which is no number of JSON at all
            assert told.split(b'"')[1].decode() in answer["detail"]


async def test_taker_parts_may_exceed_their_wholes_by_a_rounding(service: Service) -> None:
    candle = full(0, taker_buy_volume=10.0 * (1 + 5e-10))
    await ingest(service, candle)
    assert await page(service, fields="full") == [candle]
