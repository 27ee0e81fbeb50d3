"""The readers of outside data, each as a function of bytes. A target accepts the one error that its reader declares;
any other exception is a defect of the reader."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePath

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message as AsgiMessage

from fuzz import CORPUS
from fuzz.mutation import MAX_BYTES
from klinesync.cli import service_client
from klinesync.client import tables
from klinesync.client.asking import ServiceError, answer_in, refusal_in
from klinesync.client.messages import GapMessage, SystemMessage, message_in, page_in
from klinesync.client.updates import ClosedCandle, Gap, System
from klinesync.client.watch import as_json, health_in, line
from klinesync.core.busy import repeat_after_s
from klinesync.core.candle import check_candle
from klinesync.core.dates import parse_time
from klinesync.core.errors import MAX_SENTENCE_CHARS, BadCandle, BadFlag, BadSeriesId, KlinesyncError, UpstreamError
from klinesync.core.network_errors import address_of
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.core.times import BadTime, unix_seconds
from klinesync.exchanges.binance.frames import BadFrame, Stream, parse_frame
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.ccxt.client import CcxtClient
from klinesync.exchanges.ccxt.rows import LiveCandles, date_ms, read_page, upstream_error
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.ccxt.venue_margin import VenueMargin
from klinesync.exchanges.exchange import Errand, KlineEvent, Listing, Ticker, Urgency
from klinesync.factor.indicator_names import parse_indicators
from klinesync.history.files.importing import ReadOptions, survey
from klinesync.history.files.names import archive_name, freqtrade_series
from klinesync.history.files.planning import ImportFile
from klinesync.history.files.readers import BadFile, column_names, verify_checksum
from klinesync.market import app as market_app
from klinesync.market.content_coding import negotiate
from klinesync.market.guard import Guard, Origin
from klinesync.market.schemas import CandlesClosedBody
from klinesync.market.security import head_of
from klinesync.market.strict_json import StrictJsonRoute
from klinesync.market_data.listings import stored_listings
from klinesync.market_data.top_markets import ranked
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flag_sources import CONFIG_FILE, ENV_FILE
from klinesync.runtime.flag_values import web_address
from klinesync.runtime.flags import RuntimeFlags, read_configuration, whitelist
from klinesync.runtime.http_client import WebSocket
from klinesync.runtime.proxies import Proxies
from klinesync.storage import lock
from klinesync.storage.chunks import checked, unpack
from klinesync.ws import protocol
from klinesync.ws.protocol import BadMessage, WsMessageParser
from sim.http import Answer
from sim.virtual_loop import VirtualLoop

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
CONTRACT = SeriesId.parse("binance:futures:BTC/USDT:1m")
OTHER_VENUE = SeriesId.parse("fake:spot:BTC/USDT:1m")
STREAMS = {"btcusdt@kline_1m": Stream("BTCUSDT", BTC)}
MONTH = Timeframe.parse("1M")
# Retrying the same answer would never end.
MAX_PAGES = 5
# The time of the recorded payloads, in UTC seconds.
NOW_S = int(json.loads((CORPUS / "rest_time_spot" / "recorded").read_bytes())["serverTime"]) // 1000


@contextmanager
def _declared(*errors: type[Exception]) -> Iterator[None]:
    """Accept these errors, and check their sentence: a bounded length, one line, no terminal control characters."""
    try:
        yield
    except errors as error:
        if isinstance(error, KlinesyncError):
            _check_sentence(str(error))


def _check_sentence(sentence: str, most: int = MAX_SENTENCE_CHARS) -> None:
    assert printable(sentence) == sentence, ascii(sentence[:500])
    assert len(sentence) <= most, f"{len(sentence)} characters: {sentence[:300]}"


@dataclass(frozen=True, slots=True)
class Target:
    """A reader under test. `run` raises for a defect; `corpus` is the folder of its payloads."""

    name: str
    run: Callable[[bytes], None]

    def payloads(self) -> list[bytes]:
        """Recorded payloads, and those that found defects."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


# The exchange: REST.


class _Exchange:
    """Stands in for an HTTP client: the reader under test gets the payload, other requests get a valid answer."""

    def __init__(self, name: str, payload: bytes, status: int, headers: Mapping[str, str]) -> None:
        self._name = name
        self._answer = Answer(status, payload, headers=headers)

    @asynccontextmanager
    async def get(self, url: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Answer]:
        name = url.rpartition("/")[2]
        if name == self._name:
            yield self._answer
        else:
            market = "spot" if "/api/" in url else "futures"
            yield Answer(200, _recorded(f"rest_{name}_{market}"))

    async def close(self) -> None:
        """Nothing to close."""

    async def ws_connect(self, url: str, **_: object) -> WebSocket:
        raise NotImplementedError


@cache
def _recorded(target: str) -> bytes:
    return (CORPUS / target / "recorded").read_bytes()


def _rest(
    name: str,
    ask: Callable[[BinanceRest], Awaitable[object]],
    payload: bytes,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> object:
    loop = VirtualLoop()
    try:
        exchange = _Exchange(name, payload, status, headers or {})
        routes = market_routes("http://exchange", "http://exchange")
        clocks = {market: ExchangeClock() for market in routes}
        for clock in clocks.values():
            if name != "time":
                clock.learn(NOW_S * 1000, loop.time())
        rest = BinanceRest(exchange, routes, clocks, final_margin_s=2.0, monotonic=loop.time)
        with _declared(UpstreamError):
            return loop.run_until_complete(_within(ask(rest)))
        for market in routes:
            _check_sentence(rest.contact(market).failure or "")
        return None
    finally:
        loop.close()


async def _within(answer: Awaitable[object]) -> object:
    """A reader that retries for more than an hour of virtual time hangs."""
    async with asyncio.timeout(3600):
        return await answer


async def _history(rest: BinanceRest, series: SeriesId) -> None:
    pages = 0
    async with aclosing(rest.history(series, NOW_S - 3600, Errand(Urgency.READ))) as history:
        async for page in history:
            for candle in page.candles:
                check_candle(candle, series.timeframe)
            pages += 1
            if pages == MAX_PAGES:
                return


def _time(market: str, payload: bytes) -> None:
    _rest("time", lambda rest: rest.now_ms(market), payload)


def _klines(series: SeriesId, payload: bytes) -> None:
    _rest("klines", lambda rest: _history(rest, series), payload)


def _exchange_info(market: str, payload: bytes) -> None:
    listings = _rest("exchangeInfo", lambda rest: rest.listings(market, 0.0), payload)
    assert listings is None or isinstance(listings, Mapping)
    _check_listings(market, listings or {})


def _check_listings(market: str, listings: Mapping[str, Listing]) -> None:
    msgspec.json.encode(list(listings.values()))
    tickers = [Ticker(listing.symbol_id, 1.0, 2.0, 3.0) for listing in listings.values()]
    for items in ranked("binance", market, listings, tickers).values():
        for item in items:
            SeriesId.parse(f"binance:{market}:{item.symbol}:1m")
            assert item.symbol_id.isprintable()


def _tickers(payload: bytes) -> None:
    msgspec.json.encode(_rest("24hr", lambda rest: rest.tickers("spot"), payload))


def _rest_error(payload: bytes) -> None:
    """The first line is the status, the second one is the value of all headers that are read."""
    first, _, rest = payload.partition(b"\n")
    header, _, body = rest.partition(b"\n")
    with suppress(ValueError):
        status = int(first[:3])
        text = header.decode("utf-8", "surrogateescape")[:1000]
        headers = {"Retry-After": text, "X-MBX-USED-WEIGHT-1M": text, "Location": text}
        _rest("time", lambda client: client.now_ms("spot"), body, status, headers)


# The exchange: streams.


def _frame(payload: bytes) -> None:
    clock = ExchangeClock()
    clock.learn(NOW_S * 1000, 0.0)
    text = payload.decode("utf-8", "surrogateescape")
    for data in (payload, text):
        with _declared(BadFrame, BadCandle):
            event = parse_frame(data, STREAMS)
            if isinstance(event, KlineEvent):
                for now_s in (1.0, 2.0, 3.0, 60.0):
                    clock.heard(event.event_ms, now_s)
                    clock.estimate_ms(now_s)
                    clock.final_ms(now_s)
                    clock.is_ahead(event.candle.time * 1000, now_s)
                clock.take_news()


# Other exchanges, through ccxt, which decodes any JSON into Python values.


class _Venue:
    """An exchange object of ccxt's whose answers are all the same value."""

    def __init__(self, value: object, headers: Mapping[str, str]) -> None:
        self.value = value
        self.has = {"fetchOHLCV": True, "fetchTime": True, "watchOHLCV": True, "fetchTickers": True}
        self.timeframes = {"1m": "1m"}
        self.rateLimit = 1.0
        self.last_response_headers = headers

    async def load_markets(self, reload: bool = False) -> object:
        return self.value

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        return self.value

    async def fetch_time(self) -> object:
        return self.value

    async def fetch_ohlcv(self, *asked: object) -> object:
        return self.value

    async def fetch_tickers(self, symbols: list[str]) -> object:
        return self.value

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        return self.value

    async def close(self) -> None:
        return None


class _Inline(CcxtThread):
    """ccxt's thread, without a thread."""

    async def call(self, work: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]
        return await work  # type: ignore[misc]


def _ccxt(payload: bytes) -> None:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return  # a detail of ccxt
    date = payload.decode("utf-8", "surrogateescape")[:200]
    loop = VirtualLoop()
    try:
        loop.run_until_complete(_ask_ccxt(value, {"Date": date, "Retry-After": date}, loop.time))
    finally:
        loop.close()


async def _ask_ccxt(value: object, headers: Mapping[str, str], monotonic: Callable[[], float]) -> None:
    venue = _Venue(value, headers)
    client = CcxtClient("fake", _Inline(), monotonic=monotonic, make=lambda _: venue)  # type: ignore[arg-type,return-value]
    errand, frame = Errand(Urgency.READ), OTHER_VENUE.timeframe
    with _declared(UpstreamError):
        clock = ExchangeClock()
        clock.answered(await client.now_ms(errand), 1.0)
        clock.estimate_ms(2.0)
    with _declared(UpstreamError):
        await client.most_rows(OTHER_VENUE)
    with _declared(UpstreamError):
        for market, listings in (await client.listings(errand, again=False)).items():
            _check_names(market, listings)
    with _declared(UpstreamError):
        msgspec.json.encode(await client.tickers({"BTC/USDT": "BTCUSDT"}, errand))
    live = LiveCandles(frame, VenueMargin(2000))
    with _declared(UpstreamError):
        answer = await client.rows(OTHER_VENUE, 0, None, errand)
        now_ms = NOW_S * 1000
        page = read_page(frame, answer.rows, 0, None, final_ms=now_ms, known_ms=now_ms, margin_ms=2000)
        live.take(page)
        for bad in page.bad:
            _check_sentence(str(bad))
    with _declared(UpstreamError, BadCandle):
        live.pushed(await client.watch(OTHER_VENUE), NOW_S * 1000)


def _check_names(market: str, listings: Mapping[str, Listing]) -> None:
    for name, listing in listings.items():
        assert SeriesId.parse(f"fake:{market}:{name}:1m").symbol == name
        msgspec.json.encode(listing)


def _header(payload: bytes) -> None:
    text = payload.decode("latin-1")
    stamp_ms = date_ms(text)
    assert stamp_ms is None or isinstance(stamp_ms, int)
    _check_sentence(str(upstream_error("fetchOHLCV", ConnectionError(text), text)))


# Clients of the service.


def _client_message(payload: bytes) -> None:
    for data in (payload, payload.decode("utf-8", "surrogateescape")):
        try:
            WsMessageParser().parse(data)
        except BadMessage as error:
            _check_sentence(str(error))
            protocol.error_message(error.code, str(error), error.series_id)


@cache
def _http_app() -> FastAPI:
    router = APIRouter(route_class=StrictJsonRoute)

    @router.post("/")
    async def take(body: CandlesClosedBody) -> dict[str, int]:
        series = SeriesId.parse(body.series_id)
        for candle in body.candles:
            check_candle(candle.candle(), series.timeframe)
        return {"count": len(body.candles)}

    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(KlinesyncError, market_app._on_error)
    app.add_exception_handler(RequestValidationError, market_app._on_invalid)
    app.add_exception_handler(HTTPException, market_app._on_http)
    return app


def _http_body(payload: bytes) -> None:
    asyncio.run(_post(payload))


async def _post(payload: bytes) -> None:
    parts: list[AsgiMessage] = [{"type": "http.request", "body": payload, "more_body": False}]
    sent: list[AsgiMessage] = []

    async def receive() -> AsgiMessage:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/", "raw_path": b"/", "root_path": "", "query_string": b"", "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1), "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await _http_app()(scope, receive, send)
    assert sent[0]["status"] in (200, 422), sent


# Readers of a service's answers: our own clients.


def _service_message(payload: bytes) -> None:
    for data in (payload, payload.decode("utf-8", "surrogateescape")):
        with _declared(ServiceError):
            message = message_in(data)
            for update in _updates(message):
                _check_sentence(line(update) or "", most=10 * MAX_BYTES)
                assert as_json(update).isprintable()


def _updates(message: object) -> Iterator[ClosedCandle | Gap | System]:
    if isinstance(message, SystemMessage):
        yield System(message.event, message.message, message.data, series=BTC)
    if isinstance(message, GapMessage):
        yield Gap(message.expected_next_time, message.actual_time, message.state, series=BTC)
    for one in getattr(message, "candles", [getattr(message, "candle", None)]):
        if isinstance(one, tables.WireCandle):
            yield ClosedCandle(one.candle(), revised=False, series=BTC)


_ANSWERS: tuple[tuple[type, Callable[..., object]], ...] = (
    (tables.WirePage, tables.WirePage.table),
    (tables.WireSlices, tables.WireSlices.read),
    (tables.WireSlicesAfter, tables.WireSlicesAfter.read),
    (tables.WireDrawings, tables.WireDrawings.read),
    (tables.WireFrame, tables.WireFrame.read),
    (tables.WireCatalogue, lambda answer: answer.factors),
)


def _service_answer(payload: bytes) -> None:
    for kind, read in _ANSWERS:
        with _declared(ServiceError):
            answer_in(payload, kind, read, "http://service")
    with _declared(ServiceError):
        page_in(payload)
    refusal_in(payload)
    health_in(payload)
    text = payload.decode(errors="replace")
    service_client._detail(text)
    with _declared(service_client.ServiceError):
        service_client._decoded(text, service_client._Begun)


# Files.


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="klinesync-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _history_file(ending: str, payload: bytes) -> None:
    path = _folder() / f"file{ending}"
    path.write_bytes(payload)
    for options in (ReadOptions(), ReadOptions(unterminated=True)):
        with _declared(BadFile):
            survey(ImportFile(path, BTC), NOW_S, options)
    if ending in (".csv", ".feather", ".parquet"):
        with _declared(BadFile):
            column_names(path, ending)


def _checksum(payload: bytes) -> None:
    path = _folder() / "archive.zip"
    path.write_bytes(b"x")
    path.with_name(path.name + ".CHECKSUM").write_bytes(payload)
    with _declared(BadFile):
        verify_checksum(path)


def _whitelist_file(payload: bytes) -> None:
    path = _folder() / "whitelist.json"
    path.write_bytes(payload)
    with _declared(BadFlag):
        whitelist(RuntimeFlags(whitelist_path=path))


def _configuration(name: str, payload: bytes) -> None:
    folder = _folder() / name.replace(".", "_")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(payload)
    with _working_in(folder):
        for problem in read_configuration().problems:
            _check_sentence(str(problem))


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class _Shelf:
    """A store that has the payload as its list of symbols."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def listing(self, exchange: str, market: str) -> bytes:
        return self._payload


def _stored(payload: bytes) -> None:
    """Contents of our own files, which may be damaged."""
    lock._who(payload)
    stored_listings(_Shelf(payload), "binance", "spot")  # type: ignore[arg-type]
    with _declared(ValueError):
        unpack(payload, 0)
    # Bytes whose checksum is valid.
    with _declared(ValueError):
        unpack(checked(payload, 0), 0)


# Short texts: names, times, headers, parameters of requests.


def _text(payload: bytes) -> None:
    text = payload.decode("utf-8", "surrogateescape")
    with _declared(BadSeriesId):
        SeriesId.parse(text)
    with _declared(BadTime):
        unix_seconds(text)
    with _declared(ValueError):
        parse_time(text)
    with _declared(BadFlag):
        parse_indicators(text)
    with _declared(ValueError):
        Origin.parse(text)
    with _declared(ValueError):
        web_address(text, "http", "https")
    with _declared(BadFlag):
        Proxies({"https_proxy": text, "no_proxy": text}).proxy_for("https://exchange/")
    negotiate(text)
    address_of(text)
    freqtrade_series(text, "binance")
    archive_name(PurePath(text))
    repeat_after_s(503, "busy", text, 0)


def _request_head(payload: bytes) -> None:
    guard = Guard.of("127.0.0.1", ["http://chart.example"], "a token of some length")
    for path in ("/api/market/candles", "/api/market/ingest/candle_closed", "/ws/market"):
        scope = {
            "type": "http", "method": "POST", "path": path, "server": ("127.0.0.1", 8000),
            "headers": [(name, payload) for name in (b"host", b"origin", b"authorization", b"sec-fetch-site")],
        }  # fmt: skip
        for headers in (scope["headers"], [(b"host", b"127.0.0.1:8000"), *scope["headers"][1:]]):
            head = head_of(scope | {"headers": headers})
            refusal = guard.refuses(head)
            assert refusal is None or refusal.status in (400, 401, 403)
            guard.foreign_origin(head)


def _targets() -> Iterator[Target]:
    yield Target("text", _text)
    yield Target("request_head", _request_head)
    yield Target("rest_time_spot", partial(_time, "spot"))
    yield Target("rest_time_futures", partial(_time, "futures"))
    yield Target("rest_klines_spot", partial(_klines, BTC))
    yield Target("rest_klines_futures", partial(_klines, CONTRACT))
    yield Target("rest_klines_month", partial(_klines, BTC.with_timeframe(MONTH)))
    yield Target("rest_exchangeInfo_spot", partial(_exchange_info, "spot"))
    yield Target("rest_exchangeInfo_futures", partial(_exchange_info, "futures"))
    yield Target("rest_tickers", _tickers)
    yield Target("rest_error", _rest_error)
    yield Target("stream_frame", _frame)
    yield Target("ccxt", _ccxt)
    yield Target("header", _header)
    yield Target("client_message", _client_message)
    yield Target("http_body", _http_body)
    yield Target("service_message", _service_message)
    yield Target("service_answer", _service_answer)
    for ending in (".csv", ".json", ".json.gz", ".feather", ".parquet", ".zip"):
        yield Target("file" + ending.replace(".", "_"), partial(_history_file, ending))
    yield Target("file_checksum", _checksum)
    yield Target("file_whitelist", _whitelist_file)
    yield Target("file_toml", partial(_configuration, CONFIG_FILE))
    yield Target("file_env", partial(_configuration, ENV_FILE))
    yield Target("stored", _stored)


TARGETS = {target.name: target for target in _targets()}
