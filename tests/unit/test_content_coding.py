"""Content codings: the negotiated coding, and that decompression restores the body."""

import asyncio
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from klinesync.market.compression import MAX_SEEN, MIN_BYTES, CompressedBodies, Compression
from klinesync.market.content_coding import PREFERRED, Coding, compress, decompress, negotiate

codings = st.sampled_from(PREFERRED)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip, deflate", "gzip"),
        ("x-gzip", "gzip"),
        ("GZip;Q=0.5", "gzip"),
        ("deflate", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *", "br"),
        ("br;q=0.5, gzip;q=0.8", "gzip"),
        ("gzip;q=1.0, br;q=1.000", "br"),
        ("gzip;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("gzip;q=much", None),
        ("gzip;q=nan, br", None),
        ("gzip;level=9", None),
        ("br" * 5000, None),
    ],
)
def test_the_coding_is_the_best_that_the_client_accepts(header: str, coding: Coding | None) -> None:
    assert negotiate(header) == coding


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["gzip", "br", "zstd", "*", "q=0", ";", ",", "q=1.5", " "])).map("".join)
)
def test_any_header_is_parsed_without_an_exception(header: str) -> None:
    assert negotiate(header) in (*PREFERRED, None)


@given(st.binary(max_size=3000), codings, st.booleans())
def test_decompression_restores_the_body(body: bytes, coding: Coding, kept: bool) -> None:
    assert decompress(compress(body, coding, kept=kept), coding) == body


@given(st.lists(st.tuples(codings, st.binary(min_size=1, max_size=40)), max_size=60))
def test_cached_bodies_are_bounded_and_correct(asked: list[tuple[Coding, bytes]]) -> None:
    bodies = CompressedBodies(max_bytes=200)
    for coding, body in asked:
        found = bodies.get(coding, body)
        assert found is None or decompress(found, coding) == body
        bodies.put(coding, body, compress(body, coding))
        assert 0 <= bodies.size <= 200


def test_a_body_is_cached_when_it_is_sent_again_and_hashes_are_bounded() -> None:
    bodies = CompressedBodies()
    assert [bodies.again(b"page"), bodies.again(b"page")] == [False, True]
    for number in range(MAX_SEEN + 1):
        bodies.again(str(number).encode())
    assert not bodies.again(b"page")


def answer(
    accept: str, headers: dict[str, str], parts: list[bytes], status: int = 200, method: str = "GET"
) -> tuple[dict[str, str], list[bytes]]:
    """The messages that a client gets when an application sends `parts`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for number, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts) - 1})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {"type": "http", "method": method, "headers": [(b"accept-encoding", accept.encode())]}
    asyncio.run(Compression(app)(scope, receive, send))
    start, *rest = sent
    return {name.decode(): value.decode() for name, value in start["headers"]}, [one["body"] for one in rest]


BODY = b"candle" * MIN_BYTES


@pytest.mark.parametrize("coding", PREFERRED)
@pytest.mark.parametrize("parts", [[BODY], [BODY[:100], BODY[100:], b""], [BODY * 20]])
def test_an_answer_is_compressed_as_a_whole(coding: Coding, parts: list[bytes]) -> None:
    whole = b"".join(parts)
    given_headers = {"content-type": "application/json", "content-length": str(len(whole)), "etag": '"a"'}
    headers, bodies = answer(coding, given_headers, parts)
    assert headers == {
        "content-type": "application/json",
        "content-length": str(len(bodies[0])),
        "content-encoding": coding,
        "vary": "Accept-Encoding",
        "etag": 'W/"a"',
    }
    assert len(bodies) == 1
    assert decompress(bodies[0], coding) == whole


@pytest.mark.parametrize(
    ("changes", "status", "method"),
    [
        ({"content-type": "text/event-stream"}, 200, "GET"),
        ({"content-type": "font/woff2"}, 200, "GET"),
        ({"content-encoding": "br"}, 200, "GET"),
        ({"content-range": "bytes 0-5999/9000"}, 206, "GET"),
        ({}, 206, "GET"),
        ({}, 500, "GET"),
        ({}, 200, "HEAD"),
        ({"content-length": "999"}, 200, "GET"),
        ({"content-length": str(1 << 30)}, 200, "GET"),
        ({"content-length": ""}, 200, "GET"),
    ],
)
def test_other_answers_are_sent_unchanged_in_parts(changes: dict[str, str], status: int, method: str) -> None:
    given_headers = {"content-type": "application/json", "content-length": str(len(BODY))} | changes
    headers, bodies = answer("gzip", given_headers, [BODY[:7], BODY[7:]], status, method)
    assert headers | {"vary": ""} == given_headers | {"vary": ""}
    assert bodies == [BODY[:7], BODY[7:]]


def test_answers_have_vary_also_for_clients_without_codings() -> None:
    headers, bodies = answer("identity", {"content-type": "application/json", "content-length": str(len(BODY))}, [BODY])
    assert headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in headers
    assert bodies == [BODY]


def test_a_body_that_compression_makes_larger_is_sent_unchanged() -> None:
    noise = b"".join(sha256(bytes([number])).digest() for number in range(64))
    headers, bodies = answer("gzip", {"content-type": "text/plain", "content-length": str(len(noise))}, [noise])
    assert "content-encoding" not in headers
    assert bodies == [noise]
