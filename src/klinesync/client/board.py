"""The board of `klinesync watch` on a terminal: updates in, lines of text out. Pure: the size is an argument."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from klinesync.client.figures import BLOCKS, change, duration, moment, places, sparkline
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
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState

# Closed candles in memory: enough for the sparkline of a wide terminal, and the rows of a tall one.
HELD_CANDLES = 240
# Fewest rows of the table; the sparkline is left out where it would leave fewer.
FEWEST_ROWS = 4
# Most lines of one message.
MESSAGE_LINES = 2
COLOURS = {"green": "green", "yellow": "yellow", "red": "red"}
# How long a message without an end of its own stays, in seconds.
NOTICE_S = 15.0
# Text and colour by state of the stream; an empty state comes from a service that sends none.
STATES: dict[str, tuple[str, str]] = {
    StreamState.LIVE: ("live", "green"),
    StreamState.SUBSCRIBED: ("subscribed, no frame yet", "yellow"),
    StreamState.STALE: ("stale", "yellow"),
    StreamState.REST_FALLBACK: ("stale, read over REST", "yellow"),
    StreamState.RECONNECTING: ("reconnecting", "yellow"),
    StreamState.DELISTED: ("delisted", "yellow"),
    StreamState.OFF: ("not followed", "default"),
    "": ("connected", "default"),
}


@dataclass(frozen=True, slots=True)
class Health:
    """The health of the series by the service: one status with one reason, its stream, and its backfill.

    status: green, yellow or red
    reason: the reason's code
    stream: state of the stream
    detail: why the stream is in that state; may be empty
    state_s: for how long, in seconds of the exchange; None: unknown
    silent_s: time since the stream's last frame, in seconds of the exchange; None: no frame yet
    backfill: state of the backfill
    backfill_pct: its progress in percent, while it runs; None: unknown
    """

    status: str
    reason: str
    stream: str
    detail: str = ""
    state_s: float | None = None
    silent_s: float | None = None
    backfill: str = "idle"
    backfill_pct: float | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The service did not answer the request for the health of the series. `reason`: why, as a text."""

    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A message on the board. `until_s`: when the message is removed, in monotonic seconds; None: when its cause
    ends."""

    text: str
    until_s: float | None


class Board:
    """A series: the newest closed candles, the forming candle, the state and age of the data, and the health. `now_s`:
    our monotonic clock, in seconds, in all methods."""

    def __init__(self, series: SeriesId) -> None:
        self.series = series
        self.closed: dict[int, Candle] = {}
        self.revised: set[int] = set()
        self.forming: Candle | None = None
        self.connected = False
        self.trouble = ""
        self.health: Health | Unanswered | None = None
        self.notices: dict[str, Notice] = {}
        self._stream = ""  # the newest known state of the stream
        self._state_at_s: float | None = None  # when that state began, in monotonic seconds
        self._live = False  # whether this connection has caught up
        self._fresh_at_s: float | None = None  # when the newest live data came, in monotonic seconds
        self._gaps: dict[int, str] = {}  # by open time of a candle, the state of the hole before it
        # Decimal places of prices and volumes; they only grow, so that columns do not jump.
        self._price_places = 0
        self._volume_places = 0

    def take(self, update: Update, now_s: float) -> None:
        """Bring the board up to date."""
        if isinstance(update, Disconnected):
            self.connected, self.trouble = False, printable(update.reason)
            self.health = None
            self.notices.clear()
            self._stream, self._state_at_s, self._live = "", None, False
            return
        self.connected, self.trouble = True, ""
        match update:
            case Connected(_, stream):
                self._set_stream(printable(stream), None)
            case CaughtUp():
                self._live = True
            case ClosedCandle(candle, revised):
                self._close(candle, revised=revised)
                if self._live and not revised:
                    self._refresh(now_s)
            case FormingCandle(candle):
                self._refresh(now_s)
                if candle.time > max(self.closed, default=-1):
                    self.forming = candle
                    self._measure(candle)
            case Gap(_, actual, state):
                self._gaps[actual] = printable(state)
            case System():
                self._notice(update, now_s)

    def judge(self, health: Health | Unanswered | None, now_s: float) -> None:
        """Take the health of the series by the service. None: the service has no health route."""
        self.health = health
        if not isinstance(health, Health):
            return
        state_at_s = None if health.state_s is None else now_s - health.state_s
        self._set_stream(health.stream, state_at_s)
        if self._fresh_at_s is None and health.silent_s is not None:
            self._fresh_at_s = now_s - health.silent_s
        if health.stream == StreamState.LIVE:
            self.notices.pop("stream", None)
        if health.backfill != "running":
            self.notices.pop("backfill", None)

    def _refresh(self, now_s: float) -> None:
        """Live data have come."""
        self._live, self._fresh_at_s = True, now_s
        if self._stream == StreamState.SUBSCRIBED:
            self._set_stream(StreamState.LIVE, now_s)

    def _set_stream(self, state: str, at_s: float | None) -> None:
        self._stream, self._state_at_s = state, at_s

    def _notice(self, system: System, now_s: float) -> None:
        """Show a message while its cause lasts, or for `NOTICE_S` when the cause has no end of its own."""
        kind, _, state = system.event.partition(".")
        running = system.data.get("state") == "running"
        if kind == "stream":
            self._set_stream(printable(state), now_s)
            lasts, over = state != StreamState.LIVE, state == StreamState.LIVE
        elif system.event == "backfill.progress":
            lasts, over = running, not running
        else:
            lasts, over = running, False
        if over:
            self.notices.pop(kind, None)
        else:
            self.notices[kind] = Notice(notice(system), None if lasts else now_s + NOTICE_S)

    def _close(self, candle: Candle, *, revised: bool) -> None:
        self.closed[candle.time] = candle
        if revised:
            self.revised.add(candle.time)
        self._measure(candle)
        while len(self.closed) > HELD_CANDLES:
            oldest = min(self.closed)
            del self.closed[oldest]
            self.revised.discard(oldest)
        if self._gaps:
            oldest = min(self.closed)
            self._gaps = {time: state for time, state in self._gaps.items() if time >= oldest}
        if self.forming is not None and self.forming.time <= candle.time:
            self.forming = None

    def _measure(self, candle: Candle) -> None:
        self._price_places = max(self._price_places, *(places(price) for price in candle.ohlcv[1:5]))
        self._volume_places = max(self._volume_places, places(candle.volume))

    def lines(self, width: int, height: int, now_s: float, *, ascii_only: bool = False) -> list[Text]:
        """The board as text.

        width: most cells of a line
        height: most lines
        now_s: our monotonic clock
        ascii_only: whether the terminal shows ASCII alone; False by default
        """
        self.notices = {
            kind: notice for kind, notice in self.notices.items() if notice.until_s is None or notice.until_s > now_s
        }
        head = [self._title(now_s), *self._messages(width, ascii_only=ascii_only)]
        between = [*([] if ascii_only else self._sparkline(width)), Text()]
        room = height - len(head) - len(between) - 1  # the names of the columns
        if room < FEWEST_ROWS:
            room += len(between)
            between = []
        shown = [*head, *between, *self._table(width, max(room, 0))][:height]
        for line in shown:
            line.no_wrap, line.overflow = True, "crop"
            line.truncate(width, overflow="crop")
        return shown

    def _title(self, now_s: float) -> Text:
        """The series, the state of its data, and their age. An open connection does not count as live data."""
        title = Text(str(self.series), style="bold")
        state, colour = self._state(now_s)
        title.append(f"  {state}", f"not bold {colour}")
        if self._fresh_at_s is not None:
            title.append(f", data {duration(now_s - self._fresh_at_s)} old", f"not bold {colour}")
        return title

    def _state(self, now_s: float) -> tuple[str, str]:
        if not self.connected:
            return ("not connected, trying again", "red") if self.trouble else ("connecting", "yellow")
        if isinstance(self.health, Unanswered):
            return "state unknown", "yellow"
        words, colour = STATES.get(self._stream, (self._stream.replace("_", " "), "yellow"))
        if self._state_at_s is not None and self._stream != StreamState.LIVE:
            words += f" for {duration(now_s - self._state_at_s)}"
        return words, colour

    def _messages(self, width: int, *, ascii_only: bool) -> list[Text]:
        """The reason of a lost connection, the health of the series, and the notices."""
        lines = _wrapped(self.trouble, width, "red")
        health = self.health if self.connected else None
        if isinstance(health, Unanswered):
            lines += _wrapped(f"the health of the series is unknown: {health.reason}", width, "yellow")
        elif health is not None:
            colour = COLOURS.get(health.status, "")
            line = Text("* " if ascii_only else "● ", style=colour)
            line.append(f"{health.status}: {health.reason.replace('_', ' ')}")
            if health.backfill == "running" and health.backfill_pct is not None:
                line.append(f", {health.backfill_pct:.0f} %")
            lines.append(line)
            if health.detail and "stream" not in self.notices:
                lines += _wrapped(health.detail, width, "dim")
        for notice in self.notices.values():
            lines += _wrapped(notice.text, width, "yellow")
        return lines

    def _sparkline(self, width: int) -> list[Text]:
        closes = [candle.close for candle in self._newest_first()]
        if len(closes) < 2:
            return []
        room = width - len(self._range(closes))
        if room < len(BLOCKS):
            return [Text(sparkline(closes[:width][::-1]), style="cyan")]
        shown = closes[:room][::-1]
        return [Text.assemble((sparkline(shown), "cyan"), (self._range(shown), "dim"))]

    def _range(self, closes: Sequence[float]) -> str:
        return f"  {self._price(min(closes))} to {self._price(max(closes))}"

    def _newest_first(self) -> list[Candle]:
        closed = [self.closed[time] for time in sorted(self.closed, reverse=True)]
        return closed if self.forming is None else [self.forming, *closed]

    def _price(self, value: float) -> str:
        return f"{value:.{self._price_places}f}"

    def _table(self, width: int, most: int) -> list[Text]:
        candles = self._newest_first()[:most]
        columns = fitting(self._columns(candles), width)
        lines = [_row(columns, 0, "bold dim")]
        for row, candle in enumerate(candles):
            lines.append(_row(columns, row + 1, "italic" if candle is self.forming else ""))
            hole = self._hole_before(candle, candles[row + 1 :])
            if hole:
                lines.append(Text(hole, style="yellow"))
        return lines[: most + 1]

    def _hole_before(self, candle: Candle, older: Sequence[Candle]) -> str:
        if not older:
            return ""
        frame = self.series.timeframe
        missing = frame.count(frame.next(older[0].time), candle.time)
        if not missing:
            return ""
        state = self._gaps.get(candle.time, "").replace("_", " ")
        return f"  {missing} {'candle' if missing == 1 else 'candles'} missing" + (f" ({state})" if state else "")

    def _columns(self, candles: Sequence[Candle]) -> list[Column]:
        prices = [[self._price(candle.ohlcv[at]) for candle in candles] for at in (1, 2, 3, 4)]
        volumes = [f"{candle.volume:.{self._volume_places}f}" for candle in candles]
        colours = ["green" if candle.close >= candle.open else "red" for candle in candles]
        times = [moment(candle.time, self.series) for candle in candles]
        kinds = [self._kind(candle) for candle in candles]
        # The marker repeats the last column, which narrow terminals leave out.
        return [
            Column("", [">" if kind == "forming" else " " for kind in kinds]),
            Column("UTC", times, short=[text[-5:] for text in times]),
            *(Column(name, cells) for name, cells in zip(("open", "high", "low"), prices[:3], strict=True)),
            Column("close", prices[3], colours),
            Column("volume", volumes),
            Column("change", [change(candle) for candle in candles], colours),
            Column("", kinds, left=True),
        ]

    def _kind(self, candle: Candle) -> str:
        if candle is self.forming:
            return "forming"
        return "revised" if candle.time in self.revised else ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    name: at the top of the column.
    cells: texts, one a row.
    styles: of the cells; none by default.
    short: shorter cells for a narrow terminal; none by default.
    left: whether cells are aligned to the left; False by default.
    """

    name: str
    cells: Sequence[str]
    styles: Sequence[str] = ()
    short: Sequence[str] = ()
    left: bool = False

    @property
    def width(self) -> int:
        return max(len(text) for text in (self.name, *self.cells))


# Columns that a narrow terminal leaves out, in this order, after the date; marker, time and close stay.
EXPENDABLE = ((8,), (2,), (6,), (3, 4), (7,))


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns of the table that fit into `width` cells."""
    remaining = dict(enumerate(columns))
    if _total(remaining.values()) > width and columns[1].short:
        remaining[1] = Column(columns[1].name, columns[1].short)
    for group in EXPENDABLE:
        if _total(remaining.values()) > width:
            for at in group:
                del remaining[at]
    return list(remaining.values())


def _total(columns: Iterable[Column]) -> int:
    widths = [column.width for column in columns if column.width]
    return sum(widths) + 2 * (len(widths) - 1)


def _row(columns: Sequence[Column], row: int, style: str) -> Text:
    """The names of the columns (0), or one of the rows below."""
    line = Text(style=style)
    first = True
    for column in columns:
        width = column.width
        if not width:
            continue
        text = column.cells[row - 1] if row else column.name
        line.append("" if first else "  ")
        line.append(
            text.ljust(width) if column.left else text.rjust(width),
            column.styles[row - 1] if row and column.styles else None,
        )
        first = False
    line.rstrip()
    return line


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    lines = textwrap.wrap(text, max(width, 1), max_lines=MESSAGE_LINES, placeholder="...") if width > 3 else []
    return [Text(line, style=style) for line in lines]


def notice(system: System) -> str:
    """The event and its sentence."""
    return printable(f"{system.event}: {system.message}" if system.message else system.event)
