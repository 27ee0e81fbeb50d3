"""CcxtClient over an exchange object of our own: its errors, its turns, its end. No ccxt is needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt import installed as ccxt_installed
from klinesync.exchanges.ccxt.client import CcxtClient
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.installed import Ccxt
from klinesync.exchanges.ccxt.rows import Row
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.exchange import Errand, Listing, Urgency

SERIES = SeriesId.parse("fake:futures:BTC/USDT:1m")
WAIT_S = 30.0


class BaseError(Exception):
    """Like ccxt's."""


class RateLimitExceeded(BaseError):
    """Like ccxt's."""


class Fake:
    """An exchange object like ccxt's: `answer` is called for rows."""

    def __init__(self, answer: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        self.has: Mapping[str, object] = {"fetchOHLCV": True, "fetchTime": True, "watchOHLCV": None}
        self.timeframes: Mapping[str, object] | None = {"1m": "1m", "1h": "60"}
        self.rateLimit = 50.0
        self.last_response_headers: Mapping[str, str] | None = None
        self.answer = answer
        self.thread: int | None = None
        self.asked: list[str] = []
        self.closed = 0

    async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
        def market(symbol: str, **facts: object) -> Mapping[str, object]:
            return {"symbol": symbol, "id": symbol, "base": "BTC", "spot": False, "swap": False} | facts

        return {
            "BTC/USDT": market("BTC/USDT", quote="USDT", spot=True, active=None),
            "BTC/USDT:USDT": market("X", quote="USDT", settle="USDT", swap=True, created=1_600_000_000_500),
            "BTC/USD:BTC": market("Y", quote="USD", settle="BTC", swap=True, active=False),
            "BTC/USDT:USDT-261225": market("Z", quote="USDT", settle="USDT", future=True),
        }

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        return 300

    async def fetch_time(self) -> int | None:
        return None

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str, since: int | None = None, limit: int | None = None
    ) -> Sequence[Row]:
        self.thread = threading.get_ident()
        self.asked.append(symbol)
        return await self.answer()

    async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
        return {
            "BTC/USDT": {"last": 1.0, "quoteVolume": 2, "percentage": -3.5},
            "ETH/USDT": {"last": 1.0, "quoteVolume": None, "percentage": 0.0},
        }

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
        raise asyncio.CancelledError

    async def un_watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        return True

    async def close(self) -> None:
        self.closed += 1


def answering(*answers: Sequence[Row] | Exception) -> Callable[[], Awaitable[Sequence[Row]]]:
    remaining = list(answers)

    async def answer() -> Sequence[Row]:
        value = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(value, Exception):
            raise value
        return value

    return answer


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def client(exchange: Ccxt, monotonic: Callable[[], float] = Clock()) -> AsyncIterator[CcxtClient]:  # noqa: B008
    thread = CcxtThread()
    ccxt = CcxtClient("fake", thread, monotonic=monotonic, make=lambda _: exchange)
    try:
        yield ccxt
    finally:
        await ccxt.close()
        await thread.stop()


async def test_rows_are_asked_by_ccxts_name_on_another_thread() -> None:
    exchange = Fake(answering([(60_000, 1.0, 1.0, 1.0, 1.0, 1.0)]))
    async with client(exchange) as ccxt:
        answer = await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))
        assert answer.rows == [(60_000, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert exchange.asked == ["BTC/USDT:USDT"]
    assert exchange.thread not in (None, threading.get_ident())
    assert exchange.closed == 1


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (BaseError("down"), "fake: fetchOHLCV of fake:futures:BTC/USDT:1m: BaseError down"),
        (KeyError("data"), "cannot be understood"),
        (TypeError("'NoneType' object is not subscriptable"), "cannot be understood"),
        (ConnectionResetError("reset"), "ConnectionResetError"),
    ],
)
async def test_whatever_ccxt_raises_is_an_upstream_error(raised: Exception, said: str) -> None:
    async with client(Fake(answering(raised))) as ccxt:
        with pytest.raises(UpstreamError, match=said):
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.DEEP))


@pytest.mark.parametrize(
    ("answer", "not_empty", "said"),
    [([], True, "lacks rows"), ([[None, None], [None]], False, "cannot be understood"), ([[]], True, "understood")],
)
async def test_an_answer_that_has_no_rows_where_there_are_some_is_an_upstream_error(
    answer: Sequence[Row], not_empty: bool, said: str
) -> None:
    async with client(Fake(answering(answer))) as ccxt:
        with pytest.raises(UpstreamError, match=said):
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ), not_empty=not_empty)


async def test_an_answer_without_rows_may_be_true() -> None:
    async with client(Fake(answering([]))) as ccxt:
        assert (await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))).rows == []


async def test_requests_that_are_held_back_say_for_what() -> None:
    async with client(Fake(answering(BaseError("down")))) as ccxt:
        for _ in range(2):
            with pytest.raises(UpstreamError, match="down"):
                await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))
        with pytest.raises(UpstreamError, match=r"fake is in trouble and is asked again in 1 s: .*BaseError down"):
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))


async def test_a_connection_that_ccxt_cancels_is_an_upstream_error_and_cancels_nobody() -> None:
    async with client(Fake(answering([]))) as ccxt:
        with pytest.raises(UpstreamError, match="the connection was ended"):
            await ccxt.watch(SERIES)


async def test_an_answer_without_a_time_is_an_upstream_error() -> None:
    async with client(Fake(answering([]))) as ccxt:
        with pytest.raises(UpstreamError, match="has no time"):
            await ccxt.now_ms(Errand(Urgency.READ))


async def test_after_too_many_requests_users_are_told_and_the_others_wait() -> None:
    clock = Clock()
    exchange = Fake(answering(RateLimitExceeded("too many"), []))
    exchange.last_response_headers = {"Retry-After": "0.05"}
    async with client(exchange, clock) as ccxt:
        with pytest.raises(UpstreamError) as caught:
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.REPAIR))
        assert caught.value.status == 429
        assert caught.value.retry_after_s == pytest.approx(0.05)
        with pytest.raises(UpstreamError, match="in cooldown") as caught:
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))
        assert caught.value.retry_after_s == pytest.approx(0.05)
        assert len(exchange.asked) == 1
        waits = asyncio.create_task(ccxt.rows(SERIES, 60, 10, Errand(Urgency.REPAIR)))
        async with asyncio.timeout(WAIT_S):
            while not ccxt.turns.waiting:
                await asyncio.sleep(0)
            assert len(exchange.asked) == 1
            clock.now_s += 1.0
            await waits
    assert len(exchange.asked) == 2


async def test_listings_have_our_names_and_only_pairs_and_swaps() -> None:
    async with client(Fake(answering([]))) as ccxt:
        lists = await ccxt.listings(Errand(Urgency.READ), again=False)
    spot, futures = lists["spot"], lists["futures"]
    assert list(spot) == ["BTC/USDT"]
    assert spot["BTC/USDT"].trading
    assert list(futures) == ["BTC/USDT", "BTC/USD:BTC"]
    assert futures["BTC/USDT"].onboard_s == 1_600_000_000
    assert not futures["BTC/USD:BTC"].trading


async def test_a_listing_that_no_series_id_can_name_or_that_is_none_costs_itself_alone() -> None:
    class Odd(Fake):
        async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
            good = {"id": "BTCUSDT", "base": "BTC", "quote": "USDT", "spot": True}
            odd: list[object] = [
                None,
                [],
                good | {"base": "$A B"},
                good | {"base": ""},
                good | {"base": "x" * 200},
                good | {"id": "a\x1b[31m"},
                good | {"id": 7},
                good | {"base": None},
            ]
            listed: dict[str, object] = {str(number): item for number, item in enumerate(odd)}
            listed["late"] = good | {"base": "ETH", "created": 10**400}
            return listed | {"good": good}  # type: ignore[return-value]

    async with client(Odd(answering([]))) as ccxt:
        spot = (await ccxt.listings(Errand(Urgency.READ), again=False))["spot"]
    assert list(spot) == ["ETH/USDT", "BTC/USDT"]
    assert spot["ETH/USDT"].onboard_s is None


@pytest.mark.parametrize("stamp_ms", [10**19, 10**400, -1, 0, None])
async def test_a_time_of_more_than_64_bits_is_no_time(stamp_ms: int | None) -> None:
    class Late(Fake):
        async def fetch_time(self) -> int | None:
            return stamp_ms

    async with client(Late(answering([]))) as ccxt:
        with pytest.raises(UpstreamError, match="has no time"):
            await ccxt.now_ms(Errand(Urgency.READ))


async def test_odd_values_of_rows_and_tickers_cost_themselves_alone() -> None:
    class Odd(Fake):
        async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
            good: Mapping[str, object] = {"last": 1.0, "quoteVolume": 2, "percentage": -3.5}
            odd: dict[str, object] = {
                "A": None,
                "B": [],
                "C": {**good, "last": 10**400},
                "D": {**good, "percentage": float("nan")},
            }
            return {**odd, "BTC/USDT": good}  # type: ignore[dict-item]

    rows: list[object] = [(60_000, 1.0, 2.0, 0.5, 1.5, 10.0), None, 7, (), [10**400, "1", True, {}, 1.5, 2.0]]
    async with client(Odd(answering(rows))) as ccxt:  # type: ignore[arg-type]
        answer = await ccxt.rows(SERIES, 0, None, Errand(Urgency.READ))
        tickers = await ccxt.tickers({name: name for name in ["A", "B", "C", "D", "BTC/USDT"]}, Errand(Urgency.READ))
    assert answer.rows == [rows[0], (), (), (), (None, None, None, None, 1.5, 2.0)]
    assert [ticker.symbol_id for ticker in tickers] == ["BTC/USDT"]


async def test_an_answer_that_lists_nothing_is_no_list() -> None:
    class Empty(Fake):
        async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
            return {}

    async with client(Empty(answering([]))) as ccxt:
        with pytest.raises(UpstreamError, match="lists nothing"):
            await ccxt.listings(Errand(Urgency.SWEEP), again=False)


async def test_ccxt_goes_on_with_what_it_knew_of_a_market_of_which_an_answer_is_no_whole_list() -> None:
    class Keeping(Fake):
        """Caches its markets as ccxt does."""

        markets: Mapping[str, Mapping[str, object]] | None = None
        told: Mapping[str, Mapping[str, object]] = {}

        async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
            self.set_markets(self.told if self.told else await super().load_markets())
            return self.markets or {}

        def set_markets(self, markets: Mapping[str, Mapping[str, object]]) -> object:
            self.markets = markets
            return markets

    def judge(market: str, listings: Mapping[str, Listing], _expected: bool) -> str | None:
        return None if listings else "lists nothing"

    exchange = Keeping(answering([]))
    async with client(exchange) as ccxt:
        whole = await ccxt.listings(Errand(Urgency.READ), again=False, judge=judge)
        before = dict(exchange.markets or {})
        exchange.told = {"ETH/USDT": {"id": "ETHUSDT", "base": "ETH", "quote": "USDT", "spot": True}}
        lists = await ccxt.listings(Errand(Urgency.READ), again=True, judge=judge)
    assert (set(whole), set(lists), set(lists["spot"])) == ({"spot", "futures"}, {"spot"}, {"ETH/USDT"})
    assert exchange.markets is not None
    assert set(exchange.markets) == {"ETH/USDT", *(name for name in before if ":" in name)}


async def test_tickers_without_numbers_are_left_out() -> None:
    async with client(Fake(answering([]))) as ccxt:
        tickers = await ccxt.tickers({"BTC/USDT": "BTCUSDT", "ETH/USDT": "ETHUSDT"}, Errand(Urgency.READ))
    assert [(ticker.symbol_id, ticker.price_change_percent) for ticker in tickers] == [("BTCUSDT", -3.5)]


async def test_a_closed_client_asks_nothing_more() -> None:
    exchange = Fake(answering([]))
    async with client(exchange) as ccxt:
        await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))
        await ccxt.close()
        with pytest.raises(UpstreamError, match="closed"):
            await ccxt.rows(SERIES, 60, 10, Errand(Urgency.READ))
    assert len(exchange.asked) == 1


async def test_the_thread_ends_also_when_something_still_waits_on_it() -> None:
    thread = CcxtThread()
    waits = asyncio.create_task(thread.call(asyncio.sleep(3600)))
    await thread.call(asyncio.sleep(0))
    await thread.stop()
    with pytest.raises(UpstreamError, match="the thread of ccxt has ended"):
        await waits
    assert "ccxt" not in {ccxt.name for ccxt in threading.enumerate()}


# --- which exchanges there are


def exchanges() -> CcxtEntry:
    return CcxtEntry()


def test_without_ccxt_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ccxt_installed, "find_spec", lambda _: None)
    assert "pip install 'klinesync[ccxt]'" in str(exchanges().refusal("okx"))


def test_a_name_that_ccxt_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "async_support"
    folder.mkdir()
    (folder / "okx.py").touch()
    spec = ModuleSpec("ccxt", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(ccxt_installed, "find_spec", lambda _: spec)
    assert exchanges().refusal("okx") is None
    assert exchanges().refusal("nope") == "ccxt has no exchange nope"


@pytest.mark.parametrize(("told", "refused"), [("True", False), ("False", True), ("None", True), ("'emulated'", True)])
def test_an_exchange_of_which_ccxt_has_no_candles_is_refused_as_its_file_says_or_that_of_the_one_it_extends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, refused: bool
) -> None:
    folder = tmp_path / "async_support"
    folder.mkdir()
    (folder / "plain.py").write_text(f"class plain(Exchange, ImplicitAPI):\n            'fetchOHLCV': {told},\n")
    (folder / "extended.py").write_text("class extended(plain, ImplicitAPI):\n            'fetchTime': True,\n")
    spec = ModuleSpec("ccxt", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(ccxt_installed, "find_spec", lambda _: spec)
    for name in ("plain", "extended"):
        assert exchanges().refusal(name) == (f"ccxt has no OHLCV of {name}" if refused else None)
