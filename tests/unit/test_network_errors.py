"""Network errors as sentences: address and reason, whatever wraps them."""

from __future__ import annotations

import asyncio
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from klinesync.core.network_errors import address_of, unreachable

KEY = ConnectionKey(
    "fapi.binance.com", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "cannot be found: no such name"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "cannot be found: the name server does not answer"),
        (ConnectionRefusedError(111, "Connect call failed ('1.2.3.4', 443)"), "cannot be reached: connection refused"),
        (OSError(113, "Connect call failed"), "cannot be reached: no route to host"),
        (ConnectionResetError(104, "reset"), "broke the connection off"),
        (aiohttp.ServerDisconnectedError(), "broke the connection off"),
        (TimeoutError(), "does not answer in time"),
        (aiohttp.ConnectionTimeoutError(), "does not answer in time"),
        (OSError(), "cannot be reached: OSError"),
        (ssl.SSLError(1, "wrong version"), "cannot be talked to securely: wrong version"),
        (ssl.SSLCertVerificationError("no match"), "is not trusted: ('no match',)"),
    ],
)
def test_the_sentence_names_the_address_and_the_reason(error: Exception, sentence: str) -> None:
    assert unreachable("https://fapi.binance.com/fapi/v1/time", error) == f"fapi.binance.com {sentence}"
    if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError) and error.args:
        assert unreachable("wss://fapi.binance.com/ws", aiohttp.ClientConnectorError(KEY, error)) == (
            f"fapi.binance.com {sentence}"
        )


async def test_what_aiohttp_really_raises_for_a_name_that_is_none_and_a_port_that_nobody_has() -> None:
    async def failed(url: str) -> Exception:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientError) as failure:
                await http.get(url)
            return failure.value

    nowhere = "http://does-not-exist.invalid/x"
    found = unreachable(nowhere, await failed(nowhere))
    assert found.startswith("does-not-exist.invalid cannot be found: ")
    closed = "http://user:hunter2@127.0.0.1:9/x?a=1"
    assert unreachable(closed, await failed(closed)) == "127.0.0.1:9 cannot be reached: connection refused"


async def test_a_certificate_that_is_not_trusted_is_told_as_that() -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.verify_message = "self-signed certificate"
    wrapped = aiohttp.ClientConnectorCertificateError(KEY, error)
    assert unreachable("https://x", wrapped) == "x is not trusted: self-signed certificate"


@pytest.mark.parametrize(
    ("url", "address"),
    [("https://u:p@h:1/x", "h:1"), ("ws://[::1]:9/x", "[::1]:9"), ("nonsense", "nonsense"), ("http://[", "http://[")],
)
def test_the_address_is_host_and_port_alone(url: str, address: str) -> None:
    assert address_of(url) == address


async def test_a_timeout_of_asyncio_is_told_as_one() -> None:
    with pytest.raises(TimeoutError) as late:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)
    assert unreachable("http://x", late.value) == "x does not answer in time"
