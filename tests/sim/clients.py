"""Simulated clients of `/ws/market`: fast, slow, and flapping ones. Every message is checked on arrival against the
contract of the protocol: strictly increasing, each closed candle once, every jump declared, revisions marked, and no
forming candle older than the last closed one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
from starlette.websockets import WebSocket

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from sim.virtual_loop import VirtualLoop

# Messages that the network buffers for a client that does not read.
WINDOW = 8
UNKNOWN = SeriesId.parse("binance:spot:NO/SUCH:1m")

CandleOut = dict[str, float]


class Link:
    """A connection between a client and the service: the service's side is ASGI's."""

    def __init__(self, loop: VirtualLoop, sent: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._sent = sent
        self._to_service: deque[dict[str, object]] = deque([{"type": "websocket.connect"}])
        self._to_client: deque[dict[str, Any]] = deque()
        self._service_waits: asyncio.Future[None] | None = None
        self._sender_waits: asyncio.Future[None] | None = None
        self._client_waits: asyncio.Future[None] | None = None
        self.gone = False
        self.code: int | None = None

    def websocket(self, runtime: object) -> WebSocket:
        """The service's end of the connection, as its route gets it."""
        scope = {"type": "websocket", "app": SimpleNamespace(state=SimpleNamespace(runtime=runtime))}
        return WebSocket(scope, self._receive, self._send)

    # The client's side.

    def say(self, message: dict[str, object]) -> None:
        self.say_text(msgspec.json.encode(message).decode())

    def say_text(self, text: str) -> None:
        if not self.gone:
            self._to_service.append({"type": "websocket.receive", "text": text})
            _wake(self._service_waits)

    def leave(self) -> None:
        """The client disconnects."""
        if not self.gone:
            self.gone = True
            self._to_service.append({"type": "websocket.disconnect", "code": 1006})
            _wake(self._service_waits)
            _wake(self._sender_waits)
            _wake(self._client_waits)

    def lose(self) -> None:
        """The service has ended. Messages that it had already sent still arrive."""
        if self.code is None:
            self.code = 1006
            _wake(self._client_waits)

    async def take(self) -> dict[str, Any] | None:
        """The next message; None when the connection has ended."""
        while not self._to_client:
            if self.gone or self.code is not None:
                return None
            self._client_waits = self._loop.create_future()
            await self._client_waits
        message = self._to_client.popleft()
        _wake(self._sender_waits)
        return message

    # The service's side.

    async def _receive(self) -> MutableMapping[str, Any]:
        while not self._to_service:
            self._service_waits = self._loop.create_future()
            await self._service_waits
        return self._to_service.popleft()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        match message["type"]:
            case "websocket.send":
                while len(self._to_client) >= WINDOW and not self.gone:
                    self._sender_waits = self._loop.create_future()
                    await self._sender_waits
                if self.gone:
                    raise OSError("the client is gone")
                decoded = msgspec.json.decode(message["text"])
                self._sent(decoded)
                self._to_client.append(decoded)
                _wake(self._client_waits)
            case "websocket.close":
                self.code = message["code"]
                _wake(self._client_waits)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


@dataclass(slots=True)
class View:
    """The candles that a subscription has shown to its client.

    `last` is the newest closed open time that the client has, initially its `since`. `shown` are the closed candles
    that it got, in their latest values. `passed` are the spans that the service told it to read over HTTP.
    """

    series: SeriesId
    since: int | None
    supports_batch: bool
    first_at_subscribe: int | None
    number: int
    full: bool = False
    last: int | None = None
    acknowledged: bool = False
    caught_up: bool = False
    first: int | None = None
    shown: dict[int, Candle] = field(default_factory=dict)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    passed: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Habits:
    """How a client behaves. Times in seconds of the loop."""

    flapping: bool = False
    slow: bool = False


Violate = Callable[[str], None]


class SimulatedClient:
    """One client. `connect` returns a link, or None when the service does not accept connections."""

    def __init__(
        self,
        name: str,
        series: tuple[SeriesId, ...],
        habits: Habits,
        *,
        loop: VirtualLoop,
        rng: Random,
        pace_s: float,
        connect: Callable[[SimulatedClient], Link | None],
        first_stored: Callable[[SeriesId], int | None],
        may_be_unknown: Callable[[SeriesId], bool],
        may_repeat: Callable[[SeriesId], bool],
        violate: Violate,
        note: Callable[[str], None],
    ) -> None:
        self.name = name
        self.habits = habits
        self.views: dict[SeriesId, View] = {}
        self.ended_codes: list[int] = []
        self.series = series
        self._loop = loop
        self._rng = rng
        self._pace_s = pace_s
        self._connect = connect
        self._first_stored = first_stored
        self._may_be_unknown = may_be_unknown
        self._may_repeat = may_repeat
        self._violate = violate
        self._note = note
        self._link: Link | None = None
        self._resume: dict[SeriesId, int] = {}
        self._wanted: dict[SeriesId, tuple[int | None, bool]] = {}
        self._subscriptions = 0
        self._nap: asyncio.Future[None] | None = None
        self._unanswered: dict[SeriesId, deque[int]] = {}
        for one in series:
            if not habits.flapping or rng.random() < 0.5:
                self._wanted[one] = (rng.choice((None, 0, 0)), rng.random() < 0.5)

    def last(self, series: SeriesId) -> int | None:
        """The newest closed open time that the client was shown; None without a subscription."""
        view = self.views.get(series)
        return None if view is None else view.last

    # Actions.

    async def run(self) -> None:
        """Connect, subscribe, read messages, and reconnect when the connection has ended."""
        if self.habits.flapping:
            self._flap_later()
        while True:
            link = self._connect(self)
            if link is None:
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
                continue
            self._link = link
            self._unanswered.clear()
            for series, (since, batches) in self._wanted.items():
                self._subscribe(series, self._resume.get(series, since), batches)
            while (message := await link.take()) is not None:
                self._see(message)
                if self.habits.slow and self._rng.random() < 0.1:
                    await self._sleep(self._rng.expovariate(1.0) * 4 * self._pace_s)
            self._link = None
            self.views.clear()
            self._note(f"{self.name} disconnected {link.code}")
            if link.code is not None:
                self.ended_codes.append(link.code)
                link.leave()
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))

    async def _sleep(self, duration_s: float) -> None:
        self._nap = self._loop.create_future()
        self._loop.call_later(duration_s, _wake, self._nap, context=self._loop.outside)
        await self._nap

    def settle(self) -> None:
        """From now on follow all wanted series, at once and as fast as possible."""
        self.habits = Habits()
        _wake(self._nap)
        for series in self.series:
            if series not in self._wanted:
                self._wanted[series] = (0, False)
                if self._link is not None:
                    self._subscribe(series, self._resume.get(series, 0), batches=False)

    def _flap_later(self) -> None:
        delay_s = self._rng.expovariate(1.0) * self._pace_s
        self._loop.call_later(delay_s, self._flap, context=self._loop.outside)

    def _flap(self) -> None:
        if not self.habits.flapping:
            return
        rng, link = self._rng, self._link
        if link is not None:
            series = rng.choice(self.series)
            match rng.randrange(8):
                case 0:
                    self._note(f"{self.name} leaves")
                    link.leave()
                case 1 | 2:
                    self._wanted.pop(series, None)
                    view = self.views.pop(series, None)
                    if view is not None:
                        link.say({"type": "unsubscribe", "series_id": str(series)})
                case 3:
                    link.say_text(rng.choice(("nonsense", "[1]", '{"type":"dance"}', '{"type":"subscribe"}')))
                case 4:
                    link.say({"type": "subscribe", "series_id": str(UNKNOWN)})
                case _:
                    last = self._resume.get(series)
                    since = rng.choice((None, 0, last, None if last is None else max(0, last - rng.randint(0, 2000))))
                    self._wanted[series] = (since, rng.random() < 0.5)
                    self._subscribe(series, since, self._wanted[series][1])
        self._flap_later()

    def _subscribe(self, series: SeriesId, since: int | None, batches: bool) -> None:
        assert self._link is not None
        self._subscriptions += 1
        full = self._subscriptions % 2 == 0  # alternately with order flow
        view = View(series, since, batches, self._first_stored(series), self._subscriptions, full, last=since)
        self.views[series] = view
        self._unanswered.setdefault(series, deque()).append(view.number)
        # With `ack` always: otherwise messages in flight for an earlier subscription could be mistaken for those of the
        # new one.
        self._link.say(
            {
                "type": "subscribe",
                "series_id": str(series),
                "since": since,
                "supports_batch": batches,
                "ack": True,
                "fields": "full" if full else None,
            }
        )

    # Checks of messages.

    def _see(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        self._note(f"{self.name} {message}")
        if kind in ("pong",):
            return
        series_id = str(message.get("series_id"))
        if kind == "error":
            self._error(message)
            return
        series = series_of(series_id)
        view = self.views.get(series)
        if view is None:
            if kind == "subscribed":
                self._answered(series)
            return  # in flight when it unsubscribed
        if kind == "subscribed":
            view.acknowledged = self._answered(view.series) == view.number
        elif view.acknowledged:
            getattr(self, f"_see_{kind}")(view, message)

    def _error(self, message: dict[str, Any]) -> None:
        code, series_id = message["code"], str(message.get("series_id"))
        if series_id == str(UNKNOWN):
            if code not in ("unknown_series", "store_error"):
                self._violate(f"{self.name}: an unknown series was answered with {message}")
        elif code == "store_error" or (code == "unknown_series" and self._may_be_unknown(series_of(series_id))):
            # The subscription failed: the client retries after a while.
            series = series_of(series_id)
            number, view = self._answered(series), self.views.get(series)
            if view is not None and view.number == number:
                self._loop.call_later(0.5, self._again, view, context=self._loop.outside)
        elif code != "bad_request":
            self._violate(f"{self.name}: an error that nothing explains: {message}")

    def _answered(self, series: SeriesId) -> int:
        """The number of the subscription that is answered now: answers come in the order of the requests."""
        return self._unanswered[series].popleft()

    def _again(self, view: View) -> None:
        if self._link is not None and self.views.get(view.series) is view:
            self._subscribe(view.series, view.since, view.supports_batch)

    def _see_gap(self, view: View, message: dict[str, Any]) -> None:
        view.gaps.append((message["expected_next_time"], message["actual_time"], message["reason"]))

    def _see_caught_up(self, view: View, message: dict[str, Any]) -> None:
        if view.caught_up:
            self._violate(f"{self.name}: {view.series}: caught up twice: {message}")
        if view.shown and view.last != message["head_time"]:
            self._violate(f"{self.name}: {view.series}: caught up at {view.last}, told {message}")
        view.caught_up = True

    def _see_candles_batch(self, view: View, message: dict[str, Any]) -> None:
        if not view.supports_batch:
            self._violate(f"{self.name}: a batch, though it supports none: {message}")
        if message.get("revised"):
            for candle in message["candles"]:
                self._revised(view, candle)
            return
        for candle in message["candles"]:
            self._closed(view, candle)
        self._no_gap_left(view, message)

    def _see_candle_closed(self, view: View, message: dict[str, Any]) -> None:
        if message.get("revised"):
            self._revised(view, message["candle"])
        else:
            self._closed(view, message["candle"])
            self._no_gap_left(view, message)

    def _see_candle_forming(self, view: View, message: dict[str, Any]) -> None:
        time = int(message["candle"]["candle_time"])
        if view.last is not None and time <= view.last:
            self._violate(
                f"{self.name}: {view.series}: a forming candle at {time} behind the closed one at {view.last}"
            )

    def _see_system(self, view: View, message: dict[str, Any]) -> None:
        """No check."""

    def _closed(self, view: View, out: CandleOut) -> None:
        candle = self._candle(view, out)
        time, last, frame = candle.time, view.last, view.series.timeframe
        if last is not None and time <= last:
            self._violate(f"{self.name}: {view.series}: closed candle {time} is not behind {last}")
        if view.gaps and view.gaps[0][1] == time:
            expected, actual, reason = view.gaps.pop(0)
            if expected >= actual:
                self._violate(f"{self.name}: {view.series}: gap {expected} to {actual} before {time}")
            if view.shown and last is not None and expected != frame.next(last):
                self._violate(f"{self.name}: {view.series}: gap from {expected} on after {last}")
            if not view.shown and (view.since is None or expected <= view.since):
                self._violate(f"{self.name}: {view.series}: gap from {expected} on, since {view.since}")
            if reason == "truncated":
                if view.shown:
                    self._violate(f"{self.name}: {view.series}: truncated in the middle, at {time}")
                view.passed.append((expected, actual))
        elif last is not None and time != frame.next(frame.floor(last)) and self._must_declare(view):
            self._violate(f"{self.name}: {view.series}: an undeclared jump from {last} to {time}")
        view.last = time
        if view.first is None:
            view.first = time
        view.shown[time] = candle
        self._resume[view.series] = time

    def _must_declare(self, view: View) -> bool:
        """Whether there may be a jump before the next candle: not before the first stored candle."""
        if view.shown:
            return True
        first = view.first_at_subscribe
        return first is not None and view.since is not None and view.since >= first

    def _revised(self, view: View, out: CandleOut) -> None:
        candle = self._candle(view, out)
        if view.last is None or candle.time > view.last:
            self._violate(f"{self.name}: {view.series}: a revision of {candle.time}, ahead of {view.last}")
        # Nobody knows any more what was sent of candles that have rotted: they are sent again once they are healed.
        if view.shown.get(candle.time) == candle and not self._may_repeat(view.series):
            self._violate(f"{self.name}: {view.series}: a revision of {candle.time} that changes nothing")
        view.shown[candle.time] = candle

    def _candle(self, view: View, out: CandleOut) -> Candle:
        if ("trades" in out) != view.full:
            self._violate(f"{self.name}: {view.series}: fields {', '.join(out)} (with order flow: {view.full})")
        return candle_of(out)

    def _no_gap_left(self, view: View, message: dict[str, Any]) -> None:
        if view.gaps:
            self._violate(f"{self.name}: {view.series}: gaps {view.gaps} that nothing follows, before {message}")
            view.gaps.clear()


series_of = cache(SeriesId.parse)
"""The series of a message. There are few, and many messages."""


def candle_of(out: CandleOut) -> Candle:
    """The candle of a message, with order flow where the message has it."""
    values = (out["open"], out["high"], out["low"], out["close"], out["volume"])
    trades = out.get("trades")
    return Candle(
        int(out["candle_time"]),
        *values,
        out.get("quote_volume"),
        None if trades is None else int(trades),
        out.get("taker_buy_volume"),
        out.get("taker_buy_quote_volume"),
    )
