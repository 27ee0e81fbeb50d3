"""`klinesync watch`: one series, live, in the terminal."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import aclosing
from datetime import UTC, datetime

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from klinesync.client.follow import ClosedCandle, Disconnected, FormingCandle, Gap, ServiceError, System, Update, follow
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

SHOWN_CANDLES = 15
FETCH_TIMEOUT_S = 10.0


class _Page(msgspec.Struct):
    server_head_time: int | None


class Board:
    """What is on the screen: the newest closed candles, the forming one, and the state of the connection."""

    def __init__(self, series: SeriesId) -> None:
        self.series = series
        self.closed: OrderedDict[int, Candle] = OrderedDict()
        self.forming: Candle | None = None
        self.state = "connecting"
        self.missing = 0
        self.notices: dict[str, str] = {}

    def take(self, update: Update) -> None:
        """Bring the board up to date."""
        self.state = "live"
        match update:
            case System():
                kind = update.event.partition(".")[0]
                self.notices.pop(kind, None)
                if update.event not in ("stream.live", "resync") and update.data.get("state") != "succeeded":
                    self.notices[kind] = _notice(update)  # until the next of its kind
            case ClosedCandle(candle):
                self.closed[candle.time] = candle
                while len(self.closed) > SHOWN_CANDLES:
                    del self.closed[min(self.closed)]
                if self.forming is not None and self.forming.time <= candle.time:
                    self.forming = None
            case FormingCandle(candle):
                self.forming = candle
            case Gap(expected, actual):
                self.missing += self.series.timeframe.count(expected, actual)
            case Disconnected(reason):
                self.state = f"not connected: {reason}"
                self.notices.clear()

    def table(self) -> Table:
        """The board as a table."""
        title = Text(str(self.series), style="bold")
        missing = f"{self.missing} candles missing" if self.missing else ""
        caption = " · ".join(part for part in (self.state, missing, *self.notices.values()) if part)
        table = Table(title=title, caption=caption, caption_style="green" if self.state == "live" else "red")
        table.add_column("UTC")
        for name in ("open", "high", "low", "close", "volume"):
            table.add_column(name, justify="right")
        table.add_column("")
        for time in sorted(self.closed):
            _add_row(table, self.closed[time], "closed")
        if self.forming is not None:
            _add_row(table, self.forming, "forming")
        return table


def _add_row(table: Table, candle: Candle, kind: str) -> None:
    rising = candle.close >= candle.open
    style = "dim" if kind == "forming" else ""
    close = Text(number(candle.close), style="green" if rising else "red")
    values = [number(value) for value in (candle.open, candle.high, candle.low)]
    table.add_row(clock(candle.time), *values, close, number(candle.volume), kind, style=style)


def number(value: float) -> str:
    """Without exponent, without needless zeros: 1e-05 is 0.00001."""
    text = f"{value:.8f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def clock(time: int) -> str:
    """`2026-11-22 18:04`."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def _notice(system: System) -> str:
    return f"{system.event}: {system.message}" if system.message else system.event


def line(update: Update) -> str | None:
    """An update as a line of a log; forming candles have none."""
    match update:
        case ClosedCandle(candle, revised):
            values = " ".join(number(value) for value in candle[1:])
            return f"{clock(candle.time)} {'revised' if revised else 'closed'} {values}"
        case Gap(expected, actual):
            return f"{clock(expected)} gap until {clock(actual)}"
        case System():
            return _notice(update)
        case Disconnected(reason):
            return f"not connected: {reason}"
        case FormingCandle():
            return None


def _as_json(update: Update) -> str:
    match update:
        case ClosedCandle(candle, revised):
            body: object = {"type": "closed", "revised": revised, **candle._asdict()}
        case FormingCandle(candle):
            body = {"type": "forming", **candle._asdict()}
        case Gap(expected, actual):
            body = {"type": "gap", "expected": expected, "actual": actual}
        case System(event, message, data):
            body = {"type": "system", "event": event, "message": message, "data": data}
        case Disconnected(reason):
            body = {"type": "disconnected", "reason": reason}
    return msgspec.json.encode(body).decode()


async def watch(url: str, series_id: str, *, as_json: bool) -> int:
    """Show a series of the service at `url` until interrupted. Raises `ServiceError`, `BadSeriesId`."""
    series = SeriesId.parse(series_id)
    since = await _since(url, series)
    console = Console()
    async with aclosing(follow(url, series, since)) as updates:
        if console.is_terminal and not as_json:
            board = Board(series)
            with Live(board.table(), console=console, auto_refresh=False) as live:
                async for update in updates:
                    board.take(update)
                    live.update(board.table(), refresh=True)
        async for update in updates:
            text = _as_json(update) if as_json else line(update)
            if text is not None:
                print(text, flush=True)
    return 0


async def _since(url: str, series: SeriesId) -> int | None:
    """The time behind which the newest `SHOWN_CANDLES` lie. Raises `ServiceError`."""
    params = {"series_id": str(series), "limit": "1"}
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/api/market/candles", params=params) as response,
        ):
            body = await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        raise ServiceError("unreachable", f"no klinesync answers at {url}; is it running?") from None
    if response.status != 200:
        raise ServiceError(str(response.status), body.decode(errors="replace")[:500])
    head = msgspec.json.decode(body, type=_Page).server_head_time
    return None if head is None else series.timeframe.shift(head, -SHOWN_CANDLES)
