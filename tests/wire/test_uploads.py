"""Uploads over real sockets: truncated, slow, or too many at once."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest

from klinesync.market import bodies
from klinesync.market.limits import BodyLimits
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from support.running_service import Service, running_service
from support.waiting import until

BTC = "binance:spot:BTC/USDT:1m"
PATH = b"/api/market/ingest/candles_closed"
MIB = 1 << 20


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite") as running:
        yield running


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


async def connected(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))


def head(length: int) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        PATH,
        length,
    )


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and body of one answer."""
    async with asyncio.timeout(60):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return int(lines[0].split()[1]), headers, body


async def cut(service: Service, sent: int) -> None:
    """Send `sent` bytes of a longer body, and reset the connection."""
    _, writer = await connected(service)
    writer.write(head(7 * MIB) + b" " * sent)
    await writer.drain()
    await until(lambda: service.runtime.front.bodies.size >= sent, "the body arrives")
    writer.transport.abort()
    await until(lambda: service.runtime.front.bodies.size == 0, "the body is given back")


async def test_bodies_that_are_cut_off_leave_nothing_for_the_garbage_collector(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await cut(service, MIB)
    with no_garbage_collection():
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            await cut(service, MIB)
        after, _ = tracemalloc.get_traced_memory()
    assert after - before < MIB
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(("body", "status"), [(b" " * MIB + b"{", 422), (b"[" * MIB, 422), (b"\xff" * MIB, 422)])
async def test_bodies_that_are_refused_leave_nothing_for_the_garbage_collector(
    service: Service, body: bytes, status: int
) -> None:
    reader, writer = await connected(service)

    async def post() -> None:
        writer.write(head(len(body)) + body)
        assert (await answer(reader))[0] == status

    await post()
    with no_garbage_collection():
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            await post()
        after, _ = tracemalloc.get_traced_memory()
    writer.close()
    assert after - before < 2 * MIB


def limited(tmp_path: Path, limits: BodyLimits) -> AbstractAsyncContextManager[Service]:
    """A service with these limits of bodies."""
    return running_service(tmp_path / "store.sqlite", None, None, Surroundings(tuning=Tuning(bodies=limits)))


async def test_a_body_that_stalls_is_ended(tmp_path: Path) -> None:
    async with limited(tmp_path, BodyLimits(stall_timeout_s=0.1)) as service:
        for begin in (b"", b'{"series_id":'):
            reader, writer = await connected(service)
            writer.write(head(1000) + begin)
            status, headers, told = await answer(reader)
            assert (status, told["code"], headers["connection"]) == (408, "too_slow", "close")
            writer.close()


async def test_a_drip_is_ended_although_bytes_come(tmp_path: Path) -> None:
    async with limited(tmp_path, BodyLimits(speed_window_s=0.2)) as service:
        reader, writer = await connected(service)
        writer.write(head(1 << 20))
        answered = asyncio.create_task(answer(reader))
        async with asyncio.timeout(60):
            while not answered.done():
                writer.write(b" ")
                await asyncio.sleep(0.01)
        assert answered.result()[0] == 408
        writer.close()


@pytest.fixture
async def small_budget(tmp_path: Path) -> AsyncIterator[Service]:
    """A service that holds 3 MiB of bodies, and refuses slow ones at any age."""
    async with limited(tmp_path, BodyLimits(bytes_in_flight=3 * MIB, patience_s=0.0)) as running:
        yield running


async def test_a_full_budget_refuses_new_bodies_and_ends_the_slowest(small_budget: Service) -> None:
    service = small_budget
    slow, slow_writer = await connected(service)
    slow_writer.write(head(3 * MIB) + b" " * (2 * MIB))
    await until(lambda: service.runtime.front.bodies.size == 2 * MIB, "the slow body arrives")
    reader, writer = await connected(service)
    writer.write(head(2 * MIB))
    status, headers, told = await answer(reader)
    assert (status, told["code"], headers["retry-after"]) == (503, "busy", str(bodies.RETRY_AFTER_S))
    assert (await answer(slow))[2]["code"] == "busy"
    # The refused body is read to its end, and its connection takes the same request again.
    writer.write(b" " * (2 * MIB) + head(2 * MIB) + b" " * (2 * MIB))
    assert (await answer(reader))[0] == 422
    slow_writer.close()
    writer.close()


async def test_the_bytes_of_a_body_are_released_with_its_answer(service: Service) -> None:
    candle = {"candle_time": 1_700_000_040, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
    status, _ = await service.post(PATH.decode(), {"series_id": BTC, "candles": [candle]})
    assert (status, service.runtime.front.bodies.size) == (200, 0)
