"""The status of the whole service, from values."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.dates import date_text
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import MarketContact, StreamStatus
from klinesync.market_data.health import Status
from klinesync.market_data.status import (
    RESTART_COUNTS_S,
    STATUS,
    MarketFacts,
    Restart,
    RestFacts,
    StatusFacts,
    StatusReason,
    StoreFacts,
    status,
)

NOW = 1_700_000_000


def stream(state: str, since: int = NOW - 100) -> StreamStatus:
    return StreamStatus(StreamState(state), since, NOW - 1 if state == "live" else None)


GOOD = MarketContact("spot", (stream("live"), stream("live", NOW - 50)), connected=True, silent_s=0.2, answers=True)


def facts(*markets: MarketFacts, **changes: object) -> StatusFacts:
    plain = StatusFacts(
        now_time=NOW, version="1.2.3", ingest=True, markets=markets, series=["green", "green"], store=StoreFacts()
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # fields by name


def market(**changes: object) -> MarketFacts:
    return MarketFacts("binance", replace(GOOD, **changes))  # type: ignore[arg-type]  # fields by name


def test_all_is_well() -> None:
    answer = status(facts(MarketFacts("binance", GOOD, RestFacts(12, 6000))))
    assert (answer.status, answer.status_reason) == ("green", "live")
    (exchange,) = answer.exchanges
    assert (exchange.state, exchange.since, exchange.last_frame_at) == ("live", NOW - 50, NOW - 1)
    assert exchange.streams.live == 2
    assert (exchange.rest.weight_used, exchange.rest.weight_limit, exchange.rest.banned_until) == (12, 6000, None)
    assert (answer.series.followed, answer.series.green) == (2, 2)
    assert answer.store.ok


def test_a_quiet_market_is_not_reported_as_unreachable() -> None:
    quiet = market(streams=(stream("subscribed"),), silent_s=None)
    answer = status(facts(quiet))
    assert (answer.status, answer.exchanges[0].state) == ("green", "live")
    assert "quiet" in str(answer.exchanges[0].detail)


@pytest.mark.parametrize(
    ("changes", "reason", "state"),
    [
        ({"unreachable": True, "unreachable_since": NOW - 9}, "exchange_unreachable", "unreachable"),
        ({"refused": "answered 451"}, "exchange_refuses", "degraded"),
        ({"refused": "answered 451", "streams": (stream("reconnecting"),)}, "exchange_refuses", "unreachable"),
        ({"streams": (stream("stale"), stream("live"))}, "stream_stale", "degraded"),
        ({"streams": (stream("rest_fallback"), stream("live"))}, "stream_rest_fallback", "degraded"),
        ({"streams": (stream("reconnecting"), stream("live"))}, "stream_reconnecting", "degraded"),
        (
            {"streams": (stream("reconnecting"),), "connected": False, "silent_s": 9.0},
            "handshakes_fail",
            "degraded",
        ),
        ({"streams": (stream("delisted"),)}, "live", "idle"),
        ({"streams": ()}, "idle", "idle"),
    ],
)
def test_each_trouble_of_an_exchange_has_its_reason(
    changes: dict[str, object], reason: StatusReason, state: str
) -> None:
    answer = status(facts(market(**changes)))
    assert answer.status_reason == reason
    assert answer.status == STATUS[reason]
    (exchange,) = answer.exchanges
    assert exchange.state == state
    if changes.get("unreachable"):
        assert exchange.since == NOW - 9
    if state == "degraded" and "streams" in changes:
        assert exchange.since == NOW - 100, "since the first stream that failed"


def test_the_end_of_a_ban_is_shown_even_if_weight_is_not_counted() -> None:
    contact = MarketContact("spot", (stream("reconnecting"),), unreachable=True, failure="429", cooldown_s=239.2)
    answer = status(facts(MarketFacts("okx", contact)))
    assert answer.exchanges[0].rest.banned_until == NOW + 240
    assert answer.detail == (
        f"okx spot: neither frames nor answers come: 429; REST is not asked before {date_text(NOW + 240)}"
    )


def test_the_reason_of_a_rest_fallback_is_shown() -> None:
    refused = replace(stream("rest_fallback"), detail="the handshake is refused")
    answer = status(facts(market(streams=(stream("live"), refused))))
    assert answer.detail == "binance spot: REST stands in for 1 of 2 streams: the handshake is refused"


def test_each_trouble_of_other_parts_has_its_reason() -> None:
    good = MarketFacts("binance", GOOD)
    answer = status(facts(good, store=StoreFacts("the store cannot be written: disk full", None, 7)))
    assert (answer.status, answer.status_reason) == ("red", "store_unavailable")
    assert (answer.store.ok, answer.store.detail, answer.store.queued_candles) == (
        False,
        "the store cannot be written: disk full",
        7,
    )
    answer = status(facts(good, store=StoreFacts(damaged="binance:spot:BTC/USDT:1m: 3 chunks are damaged")))
    assert (answer.status, answer.status_reason, answer.store.ok) == ("red", "store_damaged", False)
    answer = status(facts(replace(good, clocks_differ="they differ by 3 s")))
    assert (answer.status, answer.status_reason, answer.exchanges[0].state) == ("yellow", "clocks_differ", "degraded")
    answer = status(facts(good, restarts=[Restart("connection 1 spot", RESTART_COUNTS_S - 1)]))
    assert (answer.status, answer.status_reason) == ("yellow", "part_restarted")
    assert status(facts(good, restarts=[Restart("connection 1 spot", RESTART_COUNTS_S)])).status == "green"
    answer = status(facts(good, series=["green", "yellow"]))
    assert (answer.status, answer.status_reason) == ("yellow", "series_yellow")
    answer = status(facts(good, series=["red", "yellow"]))
    assert (answer.status, answer.status_reason) == ("red", "series_red")
    assert (answer.series.green, answer.series.yellow, answer.series.red) == (0, 1, 1)


def test_an_idle_service_is_green_and_says_why() -> None:
    idle = market(streams=())
    assert status(facts(idle, series=[])).status_reason == "idle"
    assert status(facts(idle, series=[], ingest=False)).status_reason == "ingest_off"


def test_an_unreachable_exchange_without_followed_series_is_idle() -> None:
    dead = MarketFacts("binance", MarketContact("futures", refused="451", unreachable=True))
    answer = status(facts(MarketFacts("binance", GOOD), dead))
    assert answer.status == "green"
    assert answer.exchanges[1].state == "idle"


states = st.sampled_from(["live", "subscribed", "stale", "rest_fallback", "reconnecting", "delisted"])
contacts = st.builds(
    MarketContact,
    st.sampled_from(["spot", "futures"]),
    streams=st.lists(st.builds(stream, states, st.integers(NOW - 1000, NOW)), max_size=4).map(tuple),
    connected=st.booleans(),
    unreachable=st.booleans(),
    silent_s=st.none() | st.floats(0, 100),
    answers=st.booleans(),
    refused=st.none() | st.just("403"),
)
colours: st.SearchStrategy[Status] = st.sampled_from(["green", "yellow", "red"])


@given(
    st.lists(st.builds(MarketFacts, st.just("binance"), contacts), max_size=3),
    st.lists(colours, max_size=4),
    st.builds(StoreFacts, st.none() | st.just("full"), st.none() | st.just("damaged")),
)
def test_the_colour_is_that_of_the_worst_part(
    markets: list[MarketFacts], series: list[Status], store: StoreFacts
) -> None:
    answer = status(facts(*markets, series=series, store=store))
    traded = [market for market in markets if any(each.state != "delisted" for each in market.contact.streams)]
    red = (
        bool(store.error or store.damaged)
        or "red" in series
        or any(market.contact.unreachable or market.contact.refused for market in traded)
    )
    bad = {"stale", "rest_fallback", "reconnecting"}
    yellow = "yellow" in series or any(each.state in bad for market in traded for each in market.contact.streams)
    assert answer.status == ("red" if red else "yellow" if yellow else "green")
    assert answer.status == STATUS[answer.status_reason]
    assert answer.detail
    for market, told in zip(markets, answer.exchanges, strict=True):
        counts = told.streams
        total = counts.live + counts.subscribed + counts.stale + counts.rest_fallback
        assert total + counts.reconnecting + counts.delisted == len(market.contact.streams)
