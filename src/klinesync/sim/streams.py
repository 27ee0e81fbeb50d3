"""Who listens to what, and the frames that they get: encoded once for all, no sockets here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from klinesync.sim.event_faults import EventFaults
from klinesync.sim.feed import Event, KlineFeed, KlineStream, StreamKey
from klinesync.sim.session import Answer, Session
from klinesync.sim.spoil import spoil
from klinesync.sim.wire import combined, shutdown_event


class Form(NamedTuple):
    """How a connection wants its events."""

    combined: bool
    micro: bool


@dataclass(eq=False, slots=True)
class Listener:
    """A connection as the streams see it: `out` are frames that wait to be written, `sent` counts all of them.
    Later connections have higher serials."""

    session: Session
    serial: int = 0
    out: list[bytes] = field(default_factory=list)
    sent: int = 0

    @property
    def form(self) -> Form:
        return Form(self.session.combined, self.session.route.micro)


@dataclass(slots=True)
class _Audience:
    stream: KlineStream
    by_form: dict[Form, dict[Listener, None]] = field(default_factory=dict)


class Cut(NamedTuple):
    """A connection that is to end: closed with `code`, or cut without a close frame when that is None."""

    due_ms: int
    listener: Listener
    code: int | None


class Streams:
    """Routes what the feed has to say to those who listen. `listeners` are all connections, the oldest first."""

    def __init__(self, feed: KlineFeed) -> None:
        self.feed = feed
        self.faults = EventFaults(feed.exchange)
        self.listeners: dict[Listener, None] = {}
        self.next_serial = 1
        self._audiences: dict[StreamKey, _Audience] = {}
        self._cuts: list[Cut] = []
        self._unasked: list[Event] = []

    def enter(self, listener: Listener) -> None:
        """A connection has been opened."""
        listener.serial = self.next_serial
        self.next_serial += 1
        self.listeners[listener] = None

    def carry_out(self, listener: Listener, answer: Answer, now_ms: int) -> None:
        """Join and leave streams as the answer says, and put its text on the way."""
        if answer.unsubscribe:
            self._leave(listener, answer.unsubscribe)
        if answer.subscribe:
            self._join(listener, answer.subscribe, now_ms)
        if answer.rewrap:
            for audience in self._audiences.values():
                if any(members.pop(listener, listener) is None for members in audience.by_form.values()):
                    audience.by_form.setdefault(listener.form, {})[listener] = None
        if answer.text is not None:
            self.outgoing(listener, text_frame(answer.text.encode()))

    def drop(self, listener: Listener) -> None:
        """The connection is gone."""
        self.listeners.pop(listener, None)
        self._leave(listener, tuple(listener.session.names))
        listener.session.names.clear()

    def pump(self, now_ms: int, limit: int) -> set[Listener]:
        """Hand out what is due, about `limit` events; the listeners that have something to write now."""
        busy: set[Listener] = set()
        silent = self.faults.silent
        for event in self._due(now_ms, limit):
            audience = self._audiences.get(event.stream.key)
            if audience is None:
                continue
            for form, members in audience.by_form.items():
                if members:
                    frame = _encode(event, form)
                    for listener in members:
                        if silent and self.faults.silences(event, listener.serial):
                            continue
                        self.outgoing(listener, frame)
                    busy.update(members)
        return busy

    def next_due_ms(self) -> int | None:
        """When the next event may be due."""
        if self._unasked:
            return self._unasked[0].sent_ms
        due_ms, late_ms = self.feed.next_due_ms(), self.faults.next_due_ms()
        if late_ms is None or due_ms is None:
            return due_ms if late_ms is None else late_ms
        return min(due_ms, late_ms)

    def send(self, events: Iterable[Event]) -> None:
        """Hand out events that are not in the feed's calendar, with what is due next."""
        self._unasked.extend(events)

    def announce_shutdown(self, listener: Listener, now_ms: int) -> None:
        """Tell the connection that the server is about to stop."""
        route = listener.session.route
        self.outgoing(listener, text_frame(shutdown_event(now_ms, combined=listener.form.combined, micro=route.micro)))

    def cut(self, listener: Listener, due_ms: int, code: int | None) -> None:
        """End the connection at that time, after what is due before."""
        self._cuts.append(Cut(due_ms, listener, code))
        self._cuts.sort(key=lambda cut: cut.due_ms)

    def next_cut_ms(self) -> int | None:
        """When the next connection is to end; None when none is."""
        return self._cuts[0].due_ms if self._cuts else None

    def take_cuts(self, now_ms: int) -> list[Cut]:
        """The connections that are to end now. They are forgotten here: carrying it out is the caller's."""
        due = [cut for cut in self._cuts if cut.due_ms <= now_ms]
        self._cuts = self._cuts[len(due) :]
        return [cut for cut in due if cut.listener in self.listeners]

    def _due(self, now_ms: int, limit: int) -> list[Event]:
        """The one way by which events come from the feed: faults that change what is streamed act here."""
        events = self.feed.collect(now_ms, limit)
        if self._unasked:
            events = self._unasked + events
            self._unasked = []
        return self.faults.pass_on(events, now_ms) if self.faults.active else events

    def outgoing(self, listener: Listener, frame: bytes) -> None:
        """The one way by which text frames leave: faults of a connection act here."""
        listener.out.append(frame)
        listener.sent += 1

    def _join(self, listener: Listener, names: Iterable[str], now_ms: int) -> None:
        route = listener.session.route
        if not route.live:
            return
        for name in names:
            key = StreamKey(route.market, name)
            audience = self._audiences.get(key)
            if audience is None:
                stream = self.feed.subscribe(key, now_ms)
                if stream is None:
                    continue  # acknowledged, and silent for ever, as on the exchange
                audience = self._audiences[key] = _Audience(stream)
            audience.by_form.setdefault(listener.form, {})[listener] = None

    def _leave(self, listener: Listener, names: Iterable[str]) -> None:
        market = listener.session.route.market
        for name in names:
            key = StreamKey(market, name)
            audience = self._audiences.get(key)
            if audience is None:
                continue
            for members in audience.by_form.values():
                members.pop(listener, None)
            if not any(audience.by_form.values()):
                del self._audiences[key]
                self.feed.unsubscribe(key)


def _encode(event: Event, form: Form) -> bytes:
    stream = event.stream
    body = stream.template.event(event.row, closed=event.closed, sent_ms=event.sent_ms, micro=form.micro)
    if event.spoilt is not None:
        name = stream.key.name if form.combined else None
        payload, is_binary = spoil(body, event.spoilt, name, micro=form.micro)
        return _frame(0x82, payload) if is_binary else text_frame(payload)
    return text_frame(combined(stream.key.name, body) if form.combined else body)


def text_frame(payload: bytes) -> bytes:
    """A whole WebSocket text message as a server sends it (RFC 6455, 5.2)."""
    return _frame(0x81, payload)


def _frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 65_536:
        return bytes((head, 126)) + size.to_bytes(2, "big") + payload
    return bytes((head, 127)) + size.to_bytes(8, "big") + payload
