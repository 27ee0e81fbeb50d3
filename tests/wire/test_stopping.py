"""How the service stops: within a bounded time for any clients, with an answer to every waiting request, and without
leftovers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from klinesync.market import stopping
from support.processes import environment, running, serve_arguments
from support.running_service import running_service

BTC = "binance:spot:BTC/USDT:1m"
NOBODY = "http://127.0.0.1:9"
BODY = (
    b"POST /api/market/ingest/candles_closed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n{"
)
HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: loc"
UPGRADE = (
    b"GET /ws/market HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
DOCUMENTS = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
STATUS_STREAM = b"GET /api/market/status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connected(url: str, sent: bytes) -> socket.socket:
    """A connection that sends, and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    client.sendall(sent)
    return client


def answered(client: socket.socket) -> tuple[int, dict[str, object]]:
    client.settimeout(10)
    with client.makefile("rb") as reader:
        head, _, body = reader.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_the_parts_of_a_stop_leave_half_of_its_time_to_the_store() -> None:
    assert stopping.CLIENTS_END_S + stopping.REFUSALS_SENT_S <= 2.5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_ends_the_service_despite_hostile_clients(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    async with running(*serve_arguments(NOBODY, tmp_path / "store.sqlite"), log=log) as service:
        url = await service.address("serves")
        clients = [connected(url, sent) for sent in (BODY, HALF_A_HEAD, UPGRADE, DOCUMENTS, STATUS_STREAM, b"")]
        async with aiohttp.ClientSession() as http, http.get(url + "/readyz") as response:
            assert response.status == 200
        service.process.send_signal(number)
        # The limit is 5 s; a loaded machine ends processes slowly.
        assert await asyncio.wait_for(service.process.wait(), 9) == 0
        status, answer = await asyncio.to_thread(answered, clients[0])
        for client in clients:
            client.close()
    assert (status, answer["code"]) == (503, "shutting_down")
    assert "Traceback" not in log.read_text()
    assert "ERROR" not in log.read_text()


async def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        async with running(*serve_arguments(NOBODY, tmp_path / "store.sqlite"), log=tmp_path / "log") as service:
            url = await service.address("serves")
            service.process.send_signal(signal.SIGHUP)
            async with aiohttp.ClientSession() as http, http.get(url + "/healthz") as response:
                assert response.status == 200
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("opened", ["klinesync/cli/program.py", "klinesync/market/app.py", "store.sqlite"])
async def test_a_signal_in_the_first_moments_is_quiet(tmp_path: Path, number: signal.Signals, opened: str) -> None:
    """The signal comes from an audit hook within the process, as soon as the file is opened."""
    program = (
        "import os, signal, sys\n"
        f"struck = []\n"
        "def hook(event, arguments):\n"
        f"    if event in ('open', 'import') and not struck and {opened.rpartition('/')[2].partition('.')[0]!r} "
        "in str(arguments[0]):\n"
        "        struck.append(1)\n"
        f"        os.kill(os.getpid(), {number.value})\n"
        "from klinesync.__main__ import main\n"
        "sys.addaudithook(hook)\n"
        "raise SystemExit(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *serve_arguments(NOBODY, tmp_path / "store.sqlite"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment(),
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 120)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0
    assert b"Traceback" not in out


async def test_pending_and_new_reads_are_refused_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    async def wait_for_ever(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with running_service(tmp_path / "store.sqlite") as service:
        monkeypatch.setattr(service.runtime.market_data.reader, "page", wait_for_ever)
        waiting = asyncio.create_task(service.get("/api/market/candles", series_id=BTC))
        await asyncio.wait_for(asked.wait(), 30)
        service.runtime.front.requests.end()
        status, answer = await waiting
        assert (status, answer["code"]) == (503, "shutting_down")
        status, answer = await service.get("/healthz")
        assert (status, answer["code"]) == (503, "shutting_down")
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await service.http.ws_connect(service.url + "/ws/market")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
