"""/ws/market: for any message each answer is valid, the connection stays, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service
from support.thorough import examples
from support.waiting import until

BTC, ETH = "binance:spot:BTC/USDT:1m", "binance:futures:ETH/USDT:5m"
MOST_MESSAGES = 15  # well below the limit of their rate
CODES = {"bad_request", "unknown_series", "capacity", "too_many_subscriptions"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
series_ids = st.sampled_from(
    [
        BTC,
        ETH,
        "binance:spot:BTC/USDT:7m",
        "nowhere:spot:BTC/USDT:1m",
        "binance:spot:NOSUCH/USDT:1m",
        "",
        ":::",
        "x" * 200,
    ]
)


def mostly(usual: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return usual | usual | usual | json_values


requests = st.fixed_dictionaries(
    {"type": mostly(st.sampled_from(["subscribe", "subscribe", "unsubscribe", "ping", "pong", "Subscribe"]))},
    optional={
        "series_id": mostly(series_ids),
        "since": mostly(st.none() | st.integers(-1, 2**40) | st.integers()),
        "supports_batch": mostly(st.booleans()),
        "ack": mostly(st.booleans()),
        "more": json_values,
    },
)
texts = st.one_of(
    requests.map(json.dumps),
    json_values.map(json.dumps),
    st.tuples(requests.map(json.dumps), st.integers(0, 60)).map(lambda cut: cut[0][: cut[1]]),
    st.text(max_size=100),
    st.sampled_from(['{"type":"ping","type":"pong"}', "\ufeff{}", " " * 60_000]),
)
messages = st.lists(texts | texts.map(str.encode) | st.binary(max_size=100), min_size=1, max_size=MOST_MESSAGES)


def one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: value in values


def is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_candle(value: object) -> bool:
    return isinstance(value, dict) and list(value) == ["candle_time", "open", "high", "low", "close", "volume"]


def is_candles(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_candle, value))


# By type the fields that an answer has, and those that it may have.
PROTOCOL: Mapping[str, tuple[Mapping[str, Callable[[object], bool]], Mapping[str, Callable[[object], bool]]]] = {
    "pong": ({}, {}),
    "subscribed": ({"series_id": is_text, "head_time": lambda v: v is None or is_time(v), "stream": is_text}, {}),
    "caught_up": ({"series_id": is_text, "head_time": lambda v: v is None or is_time(v)}, {}),
    "candles_batch": ({"series_id": is_text, "candles": is_candles}, {"revised": one_of(True)}),
    "candle_closed": ({"series_id": is_text, "candle": is_candle}, {"revised": one_of(True)}),
    "candle_forming": ({"series_id": is_text, "candle": is_candle}, {}),
    "gap": (
        {
            "series_id": is_text,
            "expected_next_time": is_time,
            "actual_time": is_time,
            "reason": one_of("missing", "truncated"),
            "state": one_of("unknown", "healing", "confirmed_empty", "lost"),
        },
        {},
    ),
    "system": ({"series_id": is_text, "event": is_text, "message": is_text, "data": lambda v: isinstance(v, dict)}, {}),
    "error": ({"code": one_of(*CODES), "message": is_text}, {"series_id": is_text}),
}


def check_answer(text: str) -> str:
    """The type of a valid answer."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON: {text[:200]}")

    answer = json.loads(text, parse_constant=refuse)
    kind: str = answer.pop("type")
    needed, possible = PROTOCOL[kind]
    assert needed.keys() <= answer.keys() <= needed.keys() | possible.keys(), text[:200]
    for name, value in answer.items():
        assert (needed.get(name) or possible[name])(value), text[:200]
    return kind


def is_ping(message: str | bytes) -> bool:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("type") == "ping"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Service]]:
    """A service that follows a simulated exchange, and its event loop."""

    async def start(stack: AsyncExitStack, store: Path) -> Service:
        exchange = await stack.enter_async_context(SimServer(SimConfig(speed=60, symbols=2)))
        return await stack.enter_async_context(running_service(store, exchange, whitelist=BTC))

    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        started = runner.run(start(stack, tmp_path_factory.mktemp("fuzz") / "store.sqlite"))
        yield runner, started
        runner.run(stack.aclose())


@settings(
    max_examples=examples(100), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@example(sent=[json.dumps({"type": "subscribe", "series_id": one, "since": 0, "ack": True}) for one in (BTC, ETH)])
@given(sent=messages)
def test_every_answer_is_the_protocols_and_the_connection_stays(
    service: tuple[asyncio.Runner, Service], sent: Sequence[str | bytes]
) -> None:
    runner, running = service
    runner.run(talk(running, sent))


async def talk(service: Service, sent: Sequence[str | bytes]) -> None:
    """Send all messages, then a ping, whose answer comes last."""
    async with service.http.ws_connect(service.url + "/ws/market", max_msg_size=0) as socket:
        for message in (*sent, '{"type":"ping"}'):
            if isinstance(message, str):
                await socket.send_str(message)
            else:
                await socket.send_bytes(message)
        pongs = 1 + sum(map(is_ping, sent))
        async with asyncio.timeout(60):
            while pongs:
                answer = await socket.receive()
                assert answer.type is aiohttp.WSMsgType.TEXT, answer
                pongs -= check_answer(answer.data) == "pong"
    runtime = service.runtime
    await until(lambda: runtime.hub.clients == 0, "the client is gone")
    assert runtime.hub.status.subscriptions == 0
    assert runtime.market_data.subscriptions._held == {}
    assert all(job.refcount == 0 for job in runtime.supervisors.jobs_state())


@pytest.mark.parametrize("sent", ["[" * 2_000, '{"type":' * 2_000])
def test_a_message_that_is_nested_deeply_is_no_json_either(service: tuple[asyncio.Runner, Service], sent: str) -> None:
    runner, running = service
    runner.run(talk(running, [sent]))
