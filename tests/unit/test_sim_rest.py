from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from klinesync.sim.exchange import SimExchange, make_exchange
from klinesync.sim.generator import generated_tapes
from klinesync.sim.rest import RestAnswer, RestApi
from klinesync.sim.rest_request import RestRequest
from klinesync.sim.tape import Market

FIRST_S = 1_780_012_800
NOW_S = FIRST_S + 2 * 86_400 + 3 * 3600 + 30 * 60 + 12
NOW_MS = NOW_S * 1000 + 345
MINUTE_MS = NOW_MS // 60_000 * 60_000


@pytest.fixture
def exchange() -> SimExchange:
    return make_exchange(
        [*generated_tapes("spot", 3, 1, FIRST_S), *generated_tapes("futures", 3, 1, FIRST_S)], 1, 0, "generator"
    )


@pytest.fixture
def api(exchange: SimExchange) -> RestApi:
    return RestApi(exchange)


def ask(api: RestApi, market: Market, path: str, **params: object) -> RestAnswer:
    """The answer at `NOW_MS`."""
    texts = {name: str(value) for name, value in params.items()}
    return api.answer(RestRequest(market, path, texts, "127.0.0.1"), NOW_MS)


def read(answer: RestAnswer) -> object:
    found: object = json.loads(answer.body)
    return found


def klines(api: RestApi, market: Market = "spot", path: str = "klines", **params: object) -> list[list[object]]:
    """The rows for BTCUSDT and 1m, unless `params` say otherwise."""
    defaults = {"pair" if path in ("continuousKlines", "indexPriceKlines") else "symbol": "BTCUSDT", "interval": "1m"}
    answer = ask(api, market, path, **(defaults | params))
    assert answer.status == 200, answer.body
    rows: list[list[object]] = json.loads(answer.body)
    return rows


def opens(rows: Iterable[list[object]]) -> list[int]:
    return [int(str(row[0])) for row in rows]


def test_without_bounds_the_newest_500_come_and_the_last_is_still_open(api: RestApi) -> None:
    rows = klines(api)
    assert opens(rows) == list(range(MINUTE_MS - 499 * 60_000, MINUTE_MS + 1, 60_000))
    params = {"symbol": "BTCUSDT", "interval": "1m"}
    later = json.loads(api.answer(RestRequest("spot", "klines", params, "127.0.0.1"), NOW_MS + 60_000).body)
    assert later[-2][0] == rows[-1][0]
    assert int(str(later[-2][8])) > int(str(rows[-1][8]))


def test_bounds_are_inclusive_and_the_limit_cuts_from_the_end_or_the_start(api: RestApi) -> None:
    start, end = MINUTE_MS - 600_000, MINUTE_MS - 300_000
    assert opens(klines(api, startTime=start, endTime=end)) == list(range(start, end + 1, 60_000))
    assert opens(klines(api, startTime=start, endTime=end, limit=2)) == [start, start + 60_000]
    assert opens(klines(api, endTime=end, limit=2)) == [end - 60_000, end]
    assert opens(klines(api, startTime=start, limit=2)) == [start, start + 60_000]
    assert opens(klines(api, startTime=start, endTime=start)) == [start]
    assert opens(klines(api, startTime=start + 1, endTime=start + 59_999)) == []
    assert opens(klines(api, startTime=start + 1, limit=1)) == [start + 60_000]


def test_from_time_zero_the_first_candle_is_found(api: RestApi) -> None:
    for market in ("spot", "futures"):
        assert opens(klines(api, "spot" if market == "spot" else "futures", startTime=0, limit=1)) == [FIRST_S * 1000]


def test_the_future_and_the_time_before_the_listing_are_empty(api: RestApi) -> None:
    assert klines(api, startTime=MINUTE_MS + 60_000) == []
    assert klines(api, endTime=FIRST_S * 1000 - 1) == []


def test_spot_caps_the_limit_silently_and_futures_refuse_it(api: RestApi) -> None:
    assert len(klines(api, limit=5000)) == 1000
    assert len(klines(api, "futures", limit=1500)) == 1500
    refused = ask(api, "futures", "klines", symbol="BTCUSDT", interval="1m", limit=1501)
    assert refused.status == 400
    assert read(refused) == {"code": -1130, "msg": "Data sent for parameter 'limit' is not valid."}


def test_a_start_behind_the_end_is_empty_on_spot_and_an_error_on_futures(api: RestApi) -> None:
    assert klines(api, startTime=NOW_MS, endTime=NOW_MS - 10**6) == []
    refused = ask(api, "futures", "klines", symbol="BTCUSDT", interval="1m", startTime=NOW_MS, endTime=NOW_MS - 1)
    assert (refused.status, read(refused)) == (400, {"code": -1023, "msg": "Start time is greater than end time."})


def test_spot_takes_microseconds_and_gives_them_when_asked(api: RestApi) -> None:
    start = MINUTE_MS - 600_000
    assert klines(api, startTime=start * 1000, limit=3) == klines(api, startTime=start, limit=3)
    params = {"symbol": "BTCUSDT", "interval": "1m", "startTime": str(start), "limit": "1"}

    def in_micro(market: Market, path: str) -> RestAnswer:
        return api.answer(RestRequest(market, path, params, "127.0.0.1", micro=True), NOW_MS)

    rows = json.loads(in_micro("spot", "klines").body)
    assert (rows[0][0], rows[0][6]) == (start * 1000, start * 1000 + 59_999_999)
    assert read(in_micro("spot", "time")) == {"serverTime": NOW_MS * 1000}
    assert json.loads(in_micro("futures", "klines").body)[0][0] == start


def test_a_time_zone_moves_the_day(api: RestApi) -> None:
    day = klines(api, interval="1d", limit=1)
    east = klines(api, interval="1d", limit=1, timeZone="8")
    west = klines(api, interval="1d", limit=1, timeZone="-3:30")
    assert [int(str(rows[0][0])) // 1000 % 86_400 for rows in (day, east, west)] == [0, 16 * 3600, 12_600]
    for zone in ("+14:01", "-12:30", "x", "8:99"):
        assert ask(api, "spot", "klines", symbol="BTCUSDT", interval="1d", timeZone=zone).status == 400


def test_ui_continuous_mark_and_index_klines_follow_klines(api: RestApi) -> None:
    assert klines(api, "spot", "uiKlines", limit=7) == klines(api, limit=7)
    plain = klines(api, "futures", limit=7)
    assert klines(api, "futures", "continuousKlines", contractType="PERPETUAL", limit=7) == plain
    assert klines(api, "futures", "continuousKlines", contractType="NEXT_QUARTER") == []
    for path in ("markPriceKlines", "indexPriceKlines"):
        rows = klines(api, "futures", path, limit=7)
        assert [row[:5] for row in rows] == [row[:5] for row in plain]
        assert {row[5] for row in rows} == {"0"}
    premium = klines(api, "futures", "premiumIndexKlines", limit=7)
    assert [row[0] for row in premium] == [row[0] for row in plain]
    assert {str(value) for row in premium for value in row[1:5]} == {"0.00000000"}


@pytest.mark.parametrize(
    ("market", "path", "params", "code", "message"),
    [
        ("spot", "klines", {"symbol": "NOPE", "interval": "1m"}, -1121, "Invalid symbol."),
        ("futures", "klines", {"symbol": "NOPE", "interval": "1m"}, -1121, "Invalid symbol."),
        ("spot", "klines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120, "Invalid interval."),
        ("spot", "klines", {"symbol": "BTCUSDT", "interval": "45m"}, -1120, "Invalid interval."),
        ("spot", "klines", {"symbol": "BTCUSDT", "interval": "1s"}, -1120, "Invalid interval."),
        ("futures", "klines", {"symbol": "BTCUSDT", "interval": "1s"}, -1120, "Invalid interval."),
        (
            "spot",
            "klines",
            {"symbol": "BTCUSDT"},
            -1102,
            "Mandatory parameter 'interval' was not sent, was empty/null, or malformed.",
        ),
        (
            "futures",
            "klines",
            {"interval": "1m"},
            -1102,
            "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.",
        ),
        (
            "futures",
            "continuousKlines",
            {"pair": "BTCUSDT", "interval": "1m"},
            -1102,
            "Mandatory parameter 'contractType' was not sent, was empty/null, or malformed.",
        ),
        (
            "spot",
            "klines",
            {"symbol": "btcusdt", "interval": "1m"},
            -1100,
            "Illegal characters found in parameter 'symbol'; legal range is '^[\\w\\-._&&[^a-z]]{1,50}$'.",
        ),
        (
            "spot",
            "klines",
            {"symbol": "BTCUSDT", "interval": "1m", "limit": "x"},
            -1100,
            "Illegal characters found in parameter 'limit'; legal range is '^[0-9]{1,20}$'.",
        ),
        (
            "spot",
            "klines",
            {"symbol": "BTCUSDT", "interval": "1m", "startTime": "-1"},
            -1100,
            "Illegal characters found in parameter 'startTime'; legal range is '^[0-9]{1,20}$'.",
        ),
        (
            "spot",
            "klines",
            {"symbol": "BTCUSDT", "interval": "1m", "limit": "0"},
            -1130,
            "Data sent for parameter 'limit' is not valid.",
        ),
        (
            "spot",
            "ticker/24hr",
            {"symbol": "BTCUSDT", "symbols": '["ETHUSDT"]'},
            -1128,
            "Combination of optional parameters invalid.",
        ),
        ("spot", "exchangeInfo", {"symbols": '["NOPE"]'}, -1121, "Invalid symbol."),
    ],
)
def test_a_bad_request_is_told_in_the_words_of_the_exchange_and_costs_its_weight(
    api: RestApi, market: Market, path: str, params: dict[str, object], code: int, message: str
) -> None:
    answer = ask(api, market, path, **params)
    assert answer.status == 400
    assert read(answer) == {"code": code, "msg": message}
    assert int(answer.headers["X-MBX-USED-WEIGHT-1M"]) > 0


def test_futures_take_lower_case_symbols(api: RestApi) -> None:
    assert klines(api, "futures", symbol="btcusdt", limit=2) == klines(api, "futures", limit=2)


def test_an_unknown_path_is_404(api: RestApi) -> None:
    assert ask(api, "spot", "nope").status == 404
    page = api.answer(RestRequest("spot", "nope", {}, "x", wants_html=True), NOW_MS)
    assert (page.status, page.content_type) == (404, "text/html")


@pytest.mark.parametrize(
    ("market", "path", "params", "weight"),
    [
        ("spot", "ping", {}, 1),
        ("spot", "exchangeInfo", {}, 20),
        ("spot", "klines", {"limit": 1000}, 2),
        ("spot", "ticker/24hr", {"symbol": "BTCUSDT"}, 2),
        ("spot", "ticker/24hr", {}, 80),
        ("spot", "ticker/24hr", {"symbols": '["BTCUSDT","ETHUSDT"]'}, 2),
        ("futures", "klines", {"limit": 100}, 1),
        ("futures", "klines", {"limit": 101}, 2),
        ("futures", "klines", {"limit": 500}, 2),
        ("futures", "klines", {"limit": 501}, 5),
        ("futures", "klines", {"limit": 1000}, 5),
        ("futures", "klines", {"limit": 1001}, 10),
        ("futures", "klines", {}, 5),
        ("futures", "exchangeInfo", {}, 1),
        ("futures", "ticker/24hr", {}, 40),
    ],
)
def test_each_request_has_its_weight_and_the_answer_tells_the_sum(
    api: RestApi, market: Market, path: str, params: dict[str, object], weight: int
) -> None:
    before = int(ask(api, market, "ping").headers["X-MBX-USED-WEIGHT-1M"])
    headers = ask(api, market, path, **params).headers
    assert int(headers["X-MBX-USED-WEIGHT-1M"]) - before == weight
    assert ("X-MBX-USED-WEIGHT" in headers) == (market == "spot")
    assert api.weight_used(NOW_MS) == before + weight
    assert api.weight_used(NOW_MS + 60_000) == 0


def test_too_much_is_429_then_418_with_retry_after(api: RestApi) -> None:
    answers = [ask(api, "spot", "ticker/24hr") for _ in range(100)]
    refused = [answer for answer in answers if answer.status != 200]
    assert sum(answer.status == 200 for answer in answers) == 75
    assert [answer.status for answer in refused][:1] == [429]
    assert [answer.status for answer in refused][-1:] == [418]
    assert refused[0].headers["Retry-After"] == "48"
    assert refused[-1].headers["Retry-After"] == "120"
    body = read(refused[-1])
    assert isinstance(body, dict)
    assert body["code"] == -1003
    assert ask(api, "futures", "ping").status == 200, "the markets count for themselves"


def test_exchange_info_says_what_clients_need(api: RestApi) -> None:
    spot = json.loads(ask(api, "spot", "exchangeInfo").body)
    assert [symbol["symbol"] for symbol in spot["symbols"]] == ["BTCUSDT", "ETHUSDT", "BNBUSDT"]
    first = spot["symbols"][0]
    assert first["permissionSets"] == [["SPOT", "MARGIN"]]
    filters = {one["filterType"]: one for one in first["filters"]}
    assert filters["PRICE_FILTER"]["tickSize"] == "0.01000000"
    assert {"LOT_SIZE", "NOTIONAL", "MARKET_LOT_SIZE"} <= set(filters)
    only = json.loads(ask(api, "spot", "exchangeInfo", symbols='["ETHUSDT"]').body)
    assert [symbol["symbol"] for symbol in only["symbols"]] == ["ETHUSDT"]
    futures = json.loads(ask(api, "futures", "exchangeInfo").body)
    perpetual = futures["symbols"][0]
    assert futures["futuresType"] == "U_MARGINED"
    assert (perpetual["contractType"], perpetual["pair"], perpetual["marginAsset"]) == ("PERPETUAL", "BTCUSDT", "USDT")
    assert perpetual["onboardDate"] == FIRST_S * 1000


def test_a_ticker_sums_up_what_klines_show(api: RestApi) -> None:
    ticker = json.loads(ask(api, "spot", "ticker/24hr", symbol="BTCUSDT").body)
    rows = klines(api, startTime=ticker["openTime"], limit=1000) + klines(
        api, startTime=ticker["openTime"] + 1000 * 60_000, limit=1000
    )
    assert ticker["openPrice"] == rows[0][1]
    assert ticker["lastPrice"] == rows[-1][4]
    assert float(ticker["highPrice"]) == max(float(str(row[2])) for row in rows)
    assert float(ticker["volume"]) == pytest.approx(sum(float(str(row[5])) for row in rows))
    assert ticker["count"] == sum(int(str(row[8])) for row in rows)
    assert len(json.loads(ask(api, "spot", "ticker/24hr").body)) == 3
    mini = json.loads(ask(api, "spot", "ticker/24hr", symbol="BTCUSDT", type="MINI").body)
    assert "priceChange" not in mini
    assert mini["lastPrice"] == ticker["lastPrice"]


def test_funding_comes_every_eight_hours(api: RestApi) -> None:
    rates = json.loads(ask(api, "futures", "fundingRate", symbol="BTCUSDT").body)
    times = [rate["fundingTime"] for rate in rates]
    assert times == list(range(FIRST_S * 1000, NOW_MS, 8 * 3_600_000))
    part = json.loads(ask(api, "futures", "fundingRate", symbol="BTCUSDT", startTime=times[1], limit=2).body)
    assert [rate["fundingTime"] for rate in part] == times[1:3]
