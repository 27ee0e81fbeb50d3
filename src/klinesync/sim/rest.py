"""What the exchange answers to a REST request: a function of the request and the time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from klinesync.core.timeframe import Timeframe
from klinesync.sim.dice import dice_key, unit
from klinesync.sim.exchange import Grid, Listing, SimExchange
from klinesync.sim.exchange_info import ExchangeInfo
from klinesync.sim.limits import Refusal, WeightLimit
from klinesync.sim.rest_faults import Failure, RestFaults
from klinesync.sim.rest_request import NUMBER, Refused, RestRequest, illegal, limit_of, missing, time_ms, zone_s
from klinesync.sim.rest_tickers import book_of, ticker_of
from klinesync.sim.tape import MINUTE_S, Market, Rows
from klinesync.sim.wire import error_body, kline_rows, price_rows

_FUNDING_S = 8 * 3600
_SPOT_SYMBOL = re.compile(r"(?:(?![a-z])[\w\-.]){1,50}")
_SYMBOL_RANGE = r"^[\w\-._&&[^a-z]]{1,50}$"
_SYMBOLS_RANGE = r'^\[("[\w\-._&&[^a-z]]{1,50}"(,"[\w\-._&&[^a-z]]{1,50}"){0,}){0,1}\]$'
_CONTRACT_TYPES = ("PERPETUAL", "CURRENT_QUARTER", "NEXT_QUARTER", "CURRENT_MONTH", "NEXT_MONTH", "TRADIFI_PERPETUAL")


@dataclass(slots=True)
class RestAnswer:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class RestApi:
    """The REST side of both markets."""

    def __init__(self, exchange: SimExchange, *, odd_symbols: bool = False) -> None:
        self._exchange = exchange
        self._info: dict[Market, ExchangeInfo] = {
            "spot": ExchangeInfo("spot", exchange.spot, odd=odd_symbols),
            "futures": ExchangeInfo("futures", exchange.futures, odd=odd_symbols),
        }
        self.faults = RestFaults()
        self.weights: dict[Market, WeightLimit] = {"spot": WeightLimit("spot"), "futures": WeightLimit("futures")}
        self._answered = 0
        self._uuid = dice_key(exchange.seed, "uuid")
        self._funding = dice_key(exchange.seed, "funding")
        spot: dict[str, _Endpoint] = {
            "ping": _Endpoint(_one, lambda _request, _now_ms: b"{}"),
            "time": _Endpoint(_one, self._time),
            "exchangeInfo": _Endpoint(lambda _params: 20, self._exchange_info),
            "klines": _Endpoint(lambda _params: 2, self._klines),
            "uiKlines": _Endpoint(lambda _params: 2, self._klines),
            "ticker/24hr": _Endpoint(_spot_ticker_weight, self._tickers),
            "ticker/price": _Endpoint(lambda params: 2 if "symbol" in params else 4, self._prices),
            "ticker/bookTicker": _Endpoint(lambda params: 2 if "symbol" in params else 4, self._books),
        }
        futures: dict[str, _Endpoint] = {
            "ping": _Endpoint(_one, lambda _request, _now_ms: b"{}"),
            "time": _Endpoint(_one, self._time),
            "exchangeInfo": _Endpoint(_one, self._exchange_info),
            "klines": _Endpoint(_futures_kline_weight, self._klines),
            "continuousKlines": _Endpoint(_futures_kline_weight, self._continuous_klines),
            "markPriceKlines": _Endpoint(_futures_kline_weight, self._mark_klines),
            "indexPriceKlines": _Endpoint(_futures_kline_weight, self._index_klines),
            "premiumIndexKlines": _Endpoint(_futures_kline_weight, self._premium_klines),
            "fundingRate": _Endpoint(_one, self._funding_rates),
            "fundingInfo": _Endpoint(lambda _params: 0, self._funding_info),
            "premiumIndex": _Endpoint(lambda params: 1 if "symbol" in params else 10, self._premium_index),
            "ticker/24hr": _Endpoint(lambda params: 1 if "symbol" in params else 40, self._tickers),
            "ticker/price": _Endpoint(lambda params: 1 if "symbol" in params else 2, self._prices),
            "ticker/bookTicker": _Endpoint(lambda params: 2 if "symbol" in params else 5, self._books),
        }
        self._endpoints: dict[Market, dict[str, _Endpoint]] = {"spot": spot, "futures": futures}

    def answer(self, request: RestRequest, now_ms: int) -> RestAnswer:
        """The answer at `now_ms`, with the weight counted and told. The one way by which REST answers leave: faults
        of REST act here."""
        refusal: Refusal | Failure | None = None
        if self.faults.active:
            refusal = self.faults.refuse(request.market, request.path, request.params, now_ms)
        limit = self.weights[request.market]
        if refusal is None:
            endpoint = self._endpoints[request.market].get(request.path)
            if endpoint is None:
                return _not_found(request)
            refusal = limit.charge(request.address, endpoint.weight(request.params), now_ms)
            if refusal is None:
                answer = _asked(endpoint, request, now_ms)
        if refusal is not None:
            answer = _refused(refusal)
        used = str(limit.used(request.address, now_ms))
        answer.headers["X-MBX-USED-WEIGHT-1M"] = used
        if request.market == "spot":
            answer.headers["X-MBX-USED-WEIGHT"] = used
            answer.headers["x-mbx-uuid"] = self._next_uuid()
        return answer

    def weight_used(self, now_ms: int) -> int:
        """Weight used by everybody on both markets in the present minute."""
        return sum(limit.total(now_ms) for limit in self.weights.values())

    def warm_tickers(self, request: RestRequest, now_ms: int) -> Iterator[None]:
        """Work out in small steps what an answer about all symbols will need, so that the answer itself is short."""
        if request.path.startswith("ticker/") and "symbol" not in request.params:
            for listing in self._exchange.listings(request.market).values():
                listing.day(now_ms)
                yield

    def _next_uuid(self) -> str:
        self._answered += 1
        text = f"{dice_key(self._uuid, self._answered):016x}{dice_key(self._answered, self._uuid):016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    # parameters

    def _listing(self, request: RestRequest, now_ms: int, name: str = "symbol") -> Listing:
        text = request.params.get(name, "")
        if not text:
            missing(name)
        return self._named(request, text, name, now_ms)

    def _listed(self, market: Market, now_ms: int) -> list[Listing]:
        """All symbols that the exchange knows at that time."""
        return [listing for listing in self._exchange.listings(market).values() if listing.is_listed(now_ms // 1000)]

    def _named(self, request: RestRequest, text: str, parameter: str, now_ms: int) -> Listing:
        if request.market == "futures":
            text = text.upper()
        listing = self._exchange.listings(request.market).get(text)
        if listing is None or not listing.is_listed(now_ms // 1000):
            if request.market == "spot" and _SPOT_SYMBOL.fullmatch(text) is None:
                illegal(parameter, _SYMBOL_RANGE)
            raise Refused(-1121, "Invalid symbol.")
        return listing

    def _grid(self, request: RestRequest) -> Grid:
        text = request.params.get("interval", "")
        if not text:
            missing("interval")
        timeframe = Timeframe.known.get(text)
        if timeframe is None:
            raise Refused(-1120, "Invalid interval.")
        zone = request.params.get("timeZone", "0") if request.market == "spot" else "0"
        return Grid(timeframe, zone_s(zone))

    def _span(self, request: RestRequest) -> tuple[int | None, int | None]:
        """startTime and endTime in milliseconds."""
        start, end = (time_ms(request, name) for name in ("startTime", "endTime"))
        if request.market == "futures" and start is not None and end is not None and start > end:
            raise Refused(-1023, "Start time is greater than end time.")
        return start, end

    # endpoints

    def _time(self, request: RestRequest, now_ms: int) -> bytes:
        return b'{"serverTime":%d}' % (now_ms * 1000 if request.micro else now_ms)

    def _exchange_info(self, request: RestRequest, now_ms: int) -> bytes:
        info = self._info[request.market]
        if request.market == "futures":
            return info.body(now_ms)
        names = self._names(request, now_ms)
        status = request.params.get("symbolStatus")
        if status is not None and names is None:
            names = tuple(name for name, one in self._exchange.spot.items() if one.status(now_ms // 1000) == status)
        return info.body(now_ms, names, micro=request.micro)

    def _klines(self, request: RestRequest, now_ms: int) -> bytes:
        listing = self._listing(request, now_ms)
        return self._rows(request, listing, now_ms)

    def _continuous_klines(self, request: RestRequest, now_ms: int) -> bytes:
        listing = self._listing(request, now_ms, "pair")
        contract = request.params.get("contractType", "")
        if not contract:
            missing("contractType")
        if contract not in _CONTRACT_TYPES:
            raise Refused(-4104, "Invalid contract type.")
        if contract != "PERPETUAL":
            return b"[]"  # of delivery contracts there is no continuous series here
        return self._rows(request, listing, now_ms)

    def _rows(self, request: RestRequest, listing: Listing, now_ms: int) -> bytes:
        grid = self._grid(request)
        rows = self._shown_rows(request, listing, grid, now_ms)
        return kline_rows(listing, grid, rows, micro=request.micro and request.market == "spot")

    def _shown_rows(self, request: RestRequest, listing: Listing, grid: Grid, now_ms: int) -> Rows:
        """The candles that the request asks for, of the moment that is shown to it."""
        start_ms, end_ms = self._span(request)
        limit = limit_of(request, 500, 1500)
        shown = self.faults.shown(request.market, request.params, now_ms) if self.faults.active else None
        if shown is None:
            return listing.klines(grid, start_ms, end_ms, limit, now_ms)
        if not shown.open_row:
            last_ms = grid.floor(shown.at_ms // 1000) * 1000 - 1
            end_ms = last_ms if end_ms is None else min(end_ms, last_ms)
        return listing.klines(grid, start_ms, end_ms, limit, shown.at_ms)

    def _mark_klines(self, request: RestRequest, now_ms: int) -> bytes:
        return self._price_rows(request, self._listing(request, now_ms), now_ms)

    def _index_klines(self, request: RestRequest, now_ms: int) -> bytes:
        return self._price_rows(request, self._listing(request, now_ms, "pair"), now_ms)

    def _premium_klines(self, request: RestRequest, now_ms: int) -> bytes:
        return self._price_rows(request, self._listing(request, now_ms), now_ms, premium=True)

    def _price_rows(self, request: RestRequest, listing: Listing, now_ms: int, *, premium: bool = False) -> bytes:
        grid = self._grid(request)
        rows = self._shown_rows(request, listing, grid, now_ms)
        return price_rows(listing, grid, rows, premium=premium)

    def _funding_rates(self, request: RestRequest, now_ms: int) -> bytes:
        start_ms, end_ms = self._span(request)
        limit = limit_of(request, 100, 1000)
        if "symbol" in request.params:
            listings = [self._listing(request, now_ms)]
        else:
            listings = self._listed("futures", now_ms)
            start_ms, end_ms, limit = None, None, 1
        now_s = now_ms // 1000
        found: list[dict[str, object]] = []
        for listing in listings:
            first = -(-listing.tape.first_s // _FUNDING_S)
            last = now_s // _FUNDING_S
            if end_ms is not None:
                last = min(last, end_ms // 1000 // _FUNDING_S)
            if start_ms is not None:
                first = max(first, -(-start_ms // (_FUNDING_S * 1000)))
                last = min(last, first + limit - 1)
            else:
                first = max(first, last - limit + 1)
            found.extend(self._funding_at(listing, turn) for turn in range(first, last + 1))
        return msgspec.json.encode(found)

    def _funding_at(self, listing: Listing, turn: int) -> dict[str, object]:
        minute = listing.minute(turn * _FUNDING_S - MINUTE_S)
        return {
            "symbol": listing.symbol.name,
            "fundingTime": turn * _FUNDING_S * 1000,
            "fundingRate": f"{self._rate(listing, turn):.8f}",
            "markPrice": "" if minute is None else f"{minute.close:.8f}",
        }

    def _rate(self, listing: Listing, turn: int) -> float:
        return (unit(dice_key(self._funding, listing.symbol.name), turn) - 0.35) * 0.0003

    def _funding_info(self, _request: RestRequest, _now_ms: int) -> bytes:
        return b"[]"  # lists only symbols with unusual terms; here are none

    def _premium_index(self, request: RestRequest, now_ms: int) -> bytes:
        if "symbol" in request.params:
            return msgspec.json.encode(self._premium_of(self._listing(request, now_ms), now_ms))
        return msgspec.json.encode([self._premium_of(one, now_ms) for one in self._listed("futures", now_ms)])

    def _premium_of(self, listing: Listing, now_ms: int) -> dict[str, object]:
        day = listing.day(now_ms)
        price = f"{0.0 if day is None else day.close:.8f}"
        turn = now_ms // 1000 // _FUNDING_S
        return {
            "symbol": listing.symbol.name,
            "markPrice": price,
            "indexPrice": price,
            "estimatedSettlePrice": price,
            "lastFundingRate": f"{self._rate(listing, turn):.8f}",
            "interestRate": "0.00010000",
            "nextFundingTime": (turn + 1) * _FUNDING_S * 1000,
            "time": now_ms,
        }

    def _names(self, request: RestRequest, now_ms: int) -> tuple[str, ...] | None:
        """The symbols that `symbol` or `symbols` asks for; None for all."""
        one, many = request.params.get("symbol"), request.params.get("symbols")
        if one is not None and many is not None:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        if one is not None:
            return (self._listing(request, now_ms).symbol.name,)
        if many is None:
            return None
        try:
            names = msgspec.json.decode(many, type=list[str])
        except msgspec.DecodeError:
            illegal("symbols", _SYMBOLS_RANGE)
        return tuple(self._named(request, name, "symbols", now_ms).symbol.name for name in names)

    def _tickers(self, request: RestRequest, now_ms: int) -> bytes:
        mini = False
        if request.market == "spot":
            kind = request.params.get("type", "FULL")
            if kind not in ("FULL", "MINI"):
                raise Refused(-1108, f"Parameter 'type' was sent as '{kind}'; use FULL or MINI.")
            mini = kind == "MINI"

        def ticker(listing: Listing) -> dict[str, object] | None:
            return ticker_of(listing, listing.day(now_ms), now_ms, mini=mini, micro=request.micro)

        return self._of_each(request, now_ms, ticker)

    def _prices(self, request: RestRequest, now_ms: int) -> bytes:
        def price(listing: Listing) -> dict[str, object] | None:
            day = listing.day(now_ms)
            if day is None:
                return None
            body: dict[str, object] = {"symbol": listing.symbol.name, "price": listing.price_text(day.close)}
            return body | ({"time": now_ms} if request.market == "futures" else {})

        return self._of_each(request, now_ms, price)

    def _books(self, request: RestRequest, now_ms: int) -> bytes:
        def book(listing: Listing) -> dict[str, object] | None:
            day = listing.day(now_ms)
            if day is None:
                return None
            body = {"symbol": listing.symbol.name} | book_of(listing, day)
            return body | ({"time": now_ms} if request.market == "futures" else {})

        return self._of_each(request, now_ms, book)

    def _of_each(
        self, request: RestRequest, now_ms: int, describe: Callable[[Listing], dict[str, object] | None]
    ) -> bytes:
        """One object for `symbol`, an array otherwise. A symbol without any trade to tell of is left out."""
        if "symbol" in request.params and "symbols" not in request.params:
            body = describe(self._listing(request, now_ms))
            return msgspec.json.encode({} if body is None else body)
        names = self._names(request, now_ms) if request.market == "spot" else None
        listings = self._exchange.listings(request.market)
        chosen = self._listed(request.market, now_ms) if names is None else [listings[name] for name in names]
        return msgspec.json.encode([body for body in map(describe, chosen) if body is not None])


@dataclass(frozen=True, slots=True)
class _Endpoint:
    weight: Callable[[Mapping[str, str]], int]
    answer: Callable[[RestRequest, int], bytes]


def _asked(endpoint: _Endpoint, request: RestRequest, now_ms: int) -> RestAnswer:
    """What was asked for, or the error that the exchange finds in it."""
    try:
        return RestAnswer(200, endpoint.answer(request, now_ms))
    except Refused as refused:
        return RestAnswer(refused.status, error_body(refused.code, refused.message))


def _refused(refusal: Refusal | Failure) -> RestAnswer:
    if isinstance(refusal, Refusal):
        headers = {"Retry-After": str(refusal.retry_after_s)}
        return RestAnswer(refusal.status, error_body(-1003, refusal.message), headers=headers)
    if refusal.status >= 500:
        text = "Internal error; unable to process your request. Please try again."
        return RestAnswer(refusal.status, error_body(-1001, text))
    return RestAnswer(refusal.status, error_body(-1000, "An unknown error occurred while processing the request."))


def _one(_params: Mapping[str, str]) -> int:
    return 1


def _spot_ticker_weight(params: Mapping[str, str]) -> int:
    if "symbol" in params:
        return 2
    if "symbols" in params:
        count = params["symbols"].count(",") + 1
        return 2 if count <= 20 else 40 if count <= 100 else 80
    return 80


def _futures_kline_weight(params: Mapping[str, str]) -> int:
    text = params.get("limit", "500")
    limit = int(text) if NUMBER.fullmatch(text) else 500
    if "limit" not in params:
        return 5
    return 1 if limit <= 100 else 2 if limit <= 500 else 5 if limit <= 1000 else 10


def _not_found(request: RestRequest) -> RestAnswer:
    if request.wants_html:
        return RestAnswer(404, b"<html><head><title>404 Not Found</title></head></html>", "text/html")
    prefix = "/api/v3/" if request.market == "spot" else "/fapi/v1/"
    return RestAnswer(404, error_body(-5000, f"Path {prefix}{request.path}, Method GET is invalid"))
