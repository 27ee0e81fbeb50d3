"""`klinesync watch`: one series, live, in the terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import TypeVar

import aiohttp
import msgspec
from rich.console import Console, Group
from rich.live import Live

from klinesync.client.asking import ServiceError, get, refusal_in, service_url, unreachable
from klinesync.client.asking import reason as why_not
from klinesync.client.board import HELD_CANDLES, Board, Health, Unanswered, notice
from klinesync.client.figures import clock, number
from klinesync.client.follow import follow
from klinesync.client.progress import EVERYTHING, What
from klinesync.client.session import open_session
from klinesync.client.tables import WireTime
from klinesync.client.updates import (
    CaughtUp,
    ClosedCandle,
    Connected,
    Disconnected,
    FormingCandle,
    Gap,
    System,
    Update,
)
from klinesync.core.candle import Candle
from klinesync.core.decoding import Undecodable, decode_json
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId

# Stored candles that are printed first where there is no board.
SHOWN_CANDLES = 15
FETCH_TIMEOUT_S = 10.0
HEALTH_INTERVAL_S = 3.0
# Shortest interval between two drawings of the board, in seconds, however many updates come.
DRAW_INTERVAL_S = 0.1
# Longest interval between two drawings, in seconds, because the shown age of the data grows.
AGE_INTERVAL_S = 1.0

T = TypeVar("T")


class _Page(msgspec.Struct):
    server_head_time: WireTime | None


class _Backfill(msgspec.Struct):
    state: str
    progress_pct: float | None = None


class _Stream(msgspec.Struct):
    state: str
    detail: str | None = None
    since: float | None = None
    last_frame_at: float | None = None


class _Health(msgspec.Struct):
    now_time: WireTime
    status: str
    status_reason: str
    backfill: _Backfill
    stream: _Stream


def line(update: Update) -> str | None:
    """An update as a line of a log; None for forming candles and for a new connection."""
    match update:
        case ClosedCandle(candle, revised):
            values = " ".join(number(value) for value in candle.ohlcv[1:])
            return f"{clock(candle.time)} {'revised' if revised else 'closed'} {values}"
        case Gap(expected, actual):
            return f"{clock(expected)} gap until {clock(actual)}"
        case System():
            return notice(update)
        case Disconnected(reason):
            return f"not connected: {printable(reason)}"
        case FormingCandle() | Connected() | CaughtUp():
            return None


def as_json(update: Update, *, full: bool = False) -> str:
    """An update as a JSON object in one line; `full`: candles with their order flow, null where it is not known."""
    match update:
        case ClosedCandle(candle, revised):
            body: object = {"type": "closed", "revised": revised, **_values(candle, full)}
        case FormingCandle(candle):
            body = {"type": "forming", **_values(candle, full)}
        case Gap(expected, actual, state):
            body = {"type": "gap", "expected": expected, "actual": actual, "state": state}
        case System(event, message, data):
            body = {"type": "system", "event": event, "message": message, "data": data}
        case Connected(head, stream):
            body = {"type": "connected", "head_time": head, "stream": stream}
        case CaughtUp(head):
            body = {"type": "caught_up", "head_time": head}
        case Disconnected(reason):
            body = {"type": "disconnected", "reason": reason}
    # ASCII only: JSON escapes all other characters, among them the control characters of terminals.
    return json.dumps(body, separators=(",", ":"))


def _values(candle: Candle, full: bool) -> dict[str, float | None]:
    return dict(zip(Candle._fields, candle if full else candle.ohlcv, strict=False))


async def watch(url: str, series_id: str, *, as_json_lines: bool, full: bool = False) -> int:
    """Show a series until cancelled, or until the reader of the lines is gone.

    url: address of the service, http://host:port
    series_id: the series
    as_json_lines: whether each update is printed as JSON; otherwise a terminal gets a board, and a pipe a line an
        update
    full: whether candles in JSON have their order flow; False by default

    Returns the exit code. Raises `ServiceError`, `BadSeriesId`, `BadUrl`.
    """
    series = SeriesId.parse(series_id)
    url = service_url(url)
    console = Console()
    # Rich may take a file for a terminal because of environment variables: ask the descriptor too.
    board = None
    if not as_json_lines and sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
        board = Board(series)
    async with open_session(FETCH_TIMEOUT_S) as session:
        since = await _since(session, url, series, SHOWN_CANDLES if board is None else HELD_CANDLES)
        what: tuple[What, ...] = EVERYTHING if board is not None or as_json_lines else ("closed", "corrections")
        async with aclosing(follow(url, series, since, what=what, full=full, wait_out_refusals=True)) as updates:
            if board is None:
                await _print(updates, partial(as_json, full=full) if as_json_lines else line)
            else:
                with Live(console=console, screen=True, auto_refresh=False) as live:
                    await _show(board, updates, lambda: _health(session, url, series), live)
    return 0


async def _print(updates: AsyncGenerator[Update], text_of: Callable[[Update], str | None]) -> None:
    async for update in updates:
        text = text_of(update)
        if text is None:
            continue
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # The reader is gone. Python flushes standard output at its end: let that go to the null device.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


async def _show(
    board: Board, updates: AsyncGenerator[Update], ask: Callable[[], Awaitable[Health | Unanswered | None]], live: Live
) -> None:
    changed = asyncio.Event()
    changed.set()
    clock_s = asyncio.get_running_loop().time

    async def receive() -> None:
        async for update in updates:
            board.take(update, clock_s())
            changed.set()

    async def ask_for_health() -> None:
        while True:
            board.judge(await ask(), clock_s())
            changed.set()
            await asyncio.sleep(HEALTH_INTERVAL_S)

    async def draw() -> None:
        while True:
            with suppress(TimeoutError):  # draw anyway: the shown age of the data grows
                await asyncio.wait_for(changed.wait(), AGE_INTERVAL_S)
            changed.clear()
            width, height = live.console.size
            ascii_only = live.console.options.ascii_only
            live.update(Group(*board.lines(width, height, clock_s(), ascii_only=ascii_only)), refresh=True)
            await asyncio.sleep(DRAW_INTERVAL_S)

    with _on_new_size(changed.set):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(receive(), name="follow")
            tasks.create_task(ask_for_health(), name="health")
            tasks.create_task(draw(), name="draw")


@contextmanager
def _on_new_size(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` when the terminal is resized, or the process continues after a stop."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGWINCH, signal.SIGCONT)
    for number_ in numbers:
        loop.add_signal_handler(number_, call)
    try:
        yield
    finally:
        for number_ in numbers:
            loop.remove_signal_handler(number_)


async def _health(session: aiohttp.ClientSession, url: str, series: SeriesId) -> Health | Unanswered | None:
    """The health of the series; None when the service has no health of it."""
    try:
        status, body = await _get(session, f"{url}/api/market/health", {"series_id": str(series)})
        if status == 404:  # the flag enable_kline_health_v2 is off, or the series is not stored
            return None
        if status != 200:
            return Unanswered(f"it answers {status}")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Unanswered(printable(why_not(error)))
    return health_in(body)


def health_in(body: bytes) -> Health | Unanswered:
    """The health in the body of an answer."""
    answer = _decoded(body, _Health)
    if answer is None:
        return Unanswered("its answer is not understood")
    stream = answer.stream
    return Health(
        printable(answer.status),
        printable(answer.status_reason),
        printable(stream.state),
        printable(stream.detail or ""),
        None if stream.since is None else max(answer.now_time - stream.since, 0.0),
        None if stream.last_frame_at is None else max(answer.now_time - stream.last_frame_at, 0.0),
        printable(answer.backfill.state),
        answer.backfill.progress_pct,
    )


async def _since(session: aiohttp.ClientSession, url: str, series: SeriesId, shown: int) -> int | None:
    """The `since` of the newest `shown` candles; None when nothing is stored. Raises `ServiceError`."""
    try:
        status, body = await get(session, f"{url}/api/market/candles", {"series_id": str(series), "limit": "1"})
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ServiceError("unreachable", unreachable(url, error)) from None
    if status != 200:
        refusal = refusal_in(body)
        reason = f"the program at {url} answers {status}; is it klinesync?" if refusal is None else refusal.detail
        raise ServiceError(str(status), printable(reason))
    page = _decoded(body, _Page)
    if page is None:
        raise ServiceError("bad_message", f"the program at {url} is not klinesync")
    head = page.server_head_time
    return None if head is None else max(series.timeframe.shift(head, -shown), 0)


def _decoded(body: bytes, kind: type[T]) -> T | None:
    try:
        return decode_json(body, kind)
    except Undecodable:
        return None


async def _get(session: aiohttp.ClientSession, address: str, params: dict[str, str]) -> tuple[int, bytes]:
    async with session.get(address, params=params) as response:
        return response.status, await response.read()
