"""ExchangeRegistry: which entry makes an exchange, which exchange answers for a series, and the end."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from klinesync.core.errors import UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.exchange import Emptiness, Exchange
from klinesync.exchanges.registry import BadExchange, ExchangeContext, ExchangeRegistry, load_entries
from klinesync.market_data.exchange_time import CLOCK_AGE_S, ExchangeTime
from klinesync.runtime.exchange_clock import ExchangeClock
from support.clocks import ManualClock
from support.fake_exchange import FakeExchange, Given, context, registry_of

MINUTE = Timeframe.parse("1m")


def series(exchange: str, market: str = "spot") -> SeriesId:
    return SeriesId.parse(f"{exchange}:{market}:BTC/USDT:1m")


class Named(FakeExchange):
    """An exchange of any name, whose clock tells the name."""

    def __init__(self, name: str, *markets: str) -> None:
        super().__init__()
        self.name = name
        self.clocks = {market: ExchangeClock() for market in markets or ("spot", "futures")}
        self.why: str | None = None

    async def now_ms(self, market: str) -> int:
        return len(self.name) * 1000

    async def refusal(self, series: SeriesId) -> str | None:
        return self.why

    def load(self, series: SeriesId) -> float:
        return 0.4


class Lacking(Named):
    """An exchange that has one timeframe."""

    def timeframe_refusal(self, timeframe: Timeframe) -> str | None:
        return None if timeframe == MINUTE else f"{self.name} has no {timeframe} candles"

    async def refusal(self, series: SeriesId) -> str | None:
        raise AssertionError("the exchange was asked")


class Anything(Given):
    """An entry without a list of names: makes any exchange but `nope`."""

    def __init__(self) -> None:
        self.names = frozenset()
        self.made: list[str] = []
        self.closed = False

    def refusal(self, name: str) -> str | None:
        return "nobody has it" if name == "nope" else None

    def make(self, name: str, context: ExchangeContext) -> Exchange:
        self.made.append(name)
        return Named(name)

    async def close(self) -> None:
        self.closed = True


def test_an_entry_that_names_an_exchange_comes_before_one_that_could_make_it_too() -> None:
    own, anything = Named("binance"), Anything()
    registry = ExchangeRegistry([anything, Given(own)], context())
    assert registry.exchange("binance") is own
    assert registry.exchange("okx") is registry.exchange("okx")
    assert anything.made == ["okx"], "each exchange is made once, when it is asked for"
    assert list(registry.made()) == ["binance", "okx"]
    assert set(registry.clocks) == {(name, market) for name in ("binance", "okx") for market in ("spot", "futures")}


def test_what_no_entry_has_is_refused_with_the_sentence_of_the_last_one() -> None:
    registry = ExchangeRegistry([Given(Named("binance")), Anything()], context())
    assert registry.refusal("nope") == "nobody has it"
    with pytest.raises(UpstreamError, match="nobody has it"):
        registry.exchange("nope")
    assert registry_of(Named("one")).refusal("nope") == "there is no exchange nope"


async def test_every_question_goes_to_the_exchange_of_the_series() -> None:
    """The time of a series was that of Binance, whatever its exchange."""
    registry = registry_of(Named("abc"), Named("abcdef"))
    assert [await registry.now_ms(series(name)) for name in ("abc", "abcdef")] == [3000, 6000]


async def test_a_market_that_an_exchange_does_not_have_and_a_symbol_that_it_does_not_list_are_unknown() -> None:
    exchange = Named("abc", "spot")
    registry = registry_of(exchange)
    assert await registry.known(series("abc"))
    assert registry.covers(series("abc"))
    with pytest.raises(UnknownSeries, match="abc has no market futures"):
        await registry.known(series("abc", "futures"))
    assert not await registry.knows(series("abc", "futures"))
    assert not registry.covers(series("abc", "futures"))
    exchange.why = "abc lists no BTC/USDT"
    with pytest.raises(UnknownSeries, match="abc lists no BTC/USDT"):
        await registry.known(series("abc"))


async def test_a_timeframe_that_an_exchange_lacks_is_unknown_at_once_and_asks_nobody() -> None:
    exchange = Lacking("abc")
    registry = registry_of(exchange)
    other = series("abc").with_timeframe(Timeframe.parse("45m"))
    assert registry.timeframe_refusal(other) is None, "nobody has used the exchange yet"
    assert registry.series_refusal(other) == "abc has no 45m candles"
    assert registry.timeframe_refusal(other) == "abc has no 45m candles"
    assert not registry.covers(other)
    assert not await registry.knows(other)
    with pytest.raises(UnknownSeries, match="abc has no 45m candles"):
        await registry.known(other)
    assert registry.covers(series("abc"))


async def test_binance_has_the_fifteen_timeframes() -> None:
    binance = BinanceEntry(market_routes("http://127.0.0.1:1", "http://127.0.0.1:1"), {}).make("binance", context())
    has = {frame for frame in Timeframe.admitted.values() if binance.timeframe_refusal(frame) is None}
    await binance.close()
    assert has == set(Timeframe.known.values())


def test_an_old_stamp_is_no_time_to_read_a_tail_by_whatever_the_exchange() -> None:
    """The time of an exchange through ccxt was that of its last answer, however old."""
    clock = ManualClock(1000.0)
    registry = registry_of(Named("abc"), clock=clock)
    time = ExchangeTime(registry.clocks, clock)
    registry.exchange("abc").clocks["spot"].learn(60_000, clock.monotonic_s())
    assert time.fresh_s(series("abc")) == 60.0
    clock.now_s += CLOCK_AGE_S + 1.0
    assert (time.known_s(series("abc")), time.fresh_s(series("abc"))) == (66.0, None)
    assert time.known_s(series("abc", "futures")) is None


def test_series_that_do_not_fit_are_told_for_each_exchange() -> None:
    registry = registry_of(Named("abc"), Named("xyz"))
    assert registry.excess([series("abc"), series("xyz"), series("xyz", "futures")]) == []
    (sentence,) = registry.excess([series("xyz")] * 3 + [series("abc")])
    assert sentence == "xyz has no room for 3 series"


def test_whoever_follows_is_told_of_each_exchange_once() -> None:
    registry, told = registry_of(Named("abc"), Named("xyz")), list[str]()
    registry.exchange("abc")
    registry.on_made(lambda exchange: told.append(exchange.name))
    for name in ("abc", "xyz", "xyz"):
        registry.exchange(name)
    assert told == ["abc", "xyz"]


async def test_all_are_closed_though_one_of_them_breaks() -> None:
    class Broken(Named):
        async def close(self) -> None:
            raise RuntimeError("it broke")

    broken, well, anything = Broken("abc"), Named("xyz"), Anything()
    registry = ExchangeRegistry([Given(broken), Given(well), anything], context())
    registry.exchange("abc")
    registry.exchange("xyz")
    await registry.close()
    assert (well.closed, anything.closed) == (True, True)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("no_such_module:entry", "cannot be used: ModuleNotFoundError"),
        ("builtins:dict", "gives a dict, which is no ExchangeEntry"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused_with_its_name(value: str, sentence: str) -> None:
    with pytest.raises(BadExchange, match=f"exchange mine: {value} .*{sentence}"):
        load_entries([EntryPoint("mine", value, "klinesync.exchanges")])


# --- the proof that there is no candle


def test_two_neighbours_in_one_answer_prove_a_hole_where_no_candle_comes_late() -> None:
    assert Emptiness().proven(MINUTE, [0, 60, 180, 360], None) == [(120, 180), (240, 360)]
    assert Emptiness().proven(MINUTE, [], None) == []


def test_where_candles_come_late_a_hole_is_proven_only_once_they_would_have_come() -> None:
    late, shown = Emptiness(late_s=100.0), [0, 180, 360]
    assert late.proven(MINUTE, shown, None) == [], "it is not known what time it is"
    for now_s, spans in (
        (99, []),
        (160, []),
        (220, [(60, 120)]),
        (279, [(60, 120)]),
        (280, [(60, 180)]),
        (400, [(60, 180), (240, 300)]),
        (460, [(60, 180), (240, 360)]),
    ):
        assert late.proven(MINUTE, shown, now_s * 1000) == spans, now_s
