"""Outbox: the backlog of one client, bounded, and its writes to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from klinesync.core.series_id import SeriesId
from klinesync.ws.rate import USUAL_RATE, RateLimits
from klinesync.ws.session import CATCH_UP_MAX_CANDLES

# Largest backlog, in messages and in bytes, with which the next catch-up of a client is read: catch-ups are paced by
# the client's reading, and never fill the outbox by themselves.
ROOM_MESSAGES = 500
ROOM_BYTES = 256 << 10
# Most bytes of one write to a wire. The rest of a backlog stays in the outbox, where it is counted.
WRITE_BYTES = 64 << 10

CLOSE_GOING_AWAY = 1001
CLOSE_POLICY_VIOLATION = 1008
CLOSE_DEFECT = 1011
CLOSE_TRY_AGAIN_LATER = 1013


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The limits of clients.

    clients: most clients; fewer than the connections of the server, so that HTTP always has some.
    max_messages, max_bytes: largest backlog of one client. A client with a larger one is closed with 1013, and resumes
        with `since`.
    room_patience_s: seconds without reading after which a client whose catch-up waits for room is closed as too slow.
    catch_up_candles: most candles of one catch-up.
    rate: rate limit of one client's messages.
    """

    clients: int = 10_000
    max_messages: int = 10_000
    max_bytes: int = 16 << 20
    room_patience_s: float = 60.0
    catch_up_candles: int = CATCH_UP_MAX_CANDLES
    rate: RateLimits = USUAL_RATE


USUAL_CLIENTS = ClientLimits()


class Wire(Protocol):
    """The connection to one client. Only the client's outbox writes to the wire; the wire calls the outbox's `pause`
    and `resume`."""

    @property
    def write(self) -> Callable[[Sequence[bytes]], None]:
        """Writes whole frames together, in order."""

    def ending(self) -> None:
        """The connection will be closed after the backlog; the wire cuts it off when the client takes too long."""

    def close(self, code: int) -> None:
        """Close the connection with `code`, after everything that was written."""


class Outbox:
    """The backlog of one client: frames in order, none dropped, and the latest forming candle of each series.

    While the wire accepts frames, a frame goes straight to the wire. Those that follow within the same step of the
    event loop are joined, and written together at the end of the step: a write is a system call, during which other
    threads take the interpreter.

    ended: the close code of an ended outbox, which accepts no more frames; otherwise None.
    later: arranges a call of `end_joining` at the end of the step; None: nothing is joined.
    """

    __slots__ = (
        "_bytes", "_forming", "_joining", "_limits", "_messages", "_paused", "_room", "_warned", "_wire", "_write",
        "_writes", "ended", "later",
    )  # fmt: skip

    def __init__(self, wire: Wire, limits: ClientLimits = USUAL_CLIENTS) -> None:
        self._limits = limits
        self._wire = wire
        self._write = wire.write
        self._messages: list[bytes] = []
        self._bytes = 0
        self._forming: dict[SeriesId, tuple[int, bytes]] = {}
        self._paused = False
        self._joining = False
        self.later: Callable[[Outbox], None] | None = None
        self._warned = False
        self._writes = 0  # number of writes of backlog to the wire
        self._room: asyncio.Future[None] | None = None
        self.ended: int | None = None

    @property
    def waiting(self) -> tuple[int, int]:
        """The backlog: the number of messages, and the bytes of those that must be delivered."""
        return len(self._messages) + len(self._forming), self._bytes

    def put(self, messages: Sequence[bytes]) -> None:
        """Send messages that must be delivered. When the backlog exceeds its limit, the outbox ends with 1013 and drops
        the backlog."""
        if self.ended is not None:
            return
        if not (self._paused or self._joining) and len(messages) == 1:
            self._write(messages)
            self._join()
            return
        self._messages += messages
        self._bytes += sum(map(len, messages))
        if len(self._messages) > self._limits.max_messages or self._bytes > self._limits.max_bytes:
            self._clear()
            self.end(CLOSE_TRY_AGAIN_LATER)
        elif not self._joining or self._bytes >= WRITE_BYTES:
            self._flush()
            self._join()

    def _join(self) -> None:
        """From now on, messages of this step of the event loop wait for its end."""
        if self.later is not None and not self._joining:
            self._joining = True
            self.later(self)

    def end_joining(self) -> None:
        """The step of the event loop is over: write what was joined."""
        self._joining = False
        if self._messages or self._forming:
            self._flush()

    def warning_due(self) -> bool:
        """Whether the outbox became half full for the first time since it was empty; the client is warned once."""
        if self._warned or self.ended is not None:
            return False
        limits = self._limits
        self._warned = len(self._messages) > limits.max_messages // 2 or self._bytes > limits.max_bytes // 2
        return self._warned

    def put_first(self, message: bytes) -> None:
        """Send a message ahead of the backlog."""
        if self.ended is None:
            self._messages.insert(0, message)
            self._bytes += len(message)
            self._flush()

    @property
    def has_room(self) -> bool:
        """Whether the backlog is small enough for the next catch-up to be read."""
        return len(self._messages) <= ROOM_MESSAGES and self._bytes <= ROOM_BYTES

    async def room(self) -> None:
        """Wait until the backlog is small, or the outbox has ended. A client that reads nothing for `room_patience_s`
        is closed with 1013."""
        while self.ended is None and not self.has_room:
            writes, self._room = self._writes, asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._limits.room_patience_s):
                    await self._room
            except TimeoutError:
                if self._writes == writes:
                    self._clear()
                    self.end(CLOSE_TRY_AGAIN_LATER)
            finally:
                self._room = None

    def _wake_waiting(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def put_forming(self, series: SeriesId, candle_time: int, messages: Sequence[bytes]) -> None:
        """Send a forming candle, one message. In the backlog a later forming candle of the series replaces it."""
        if self.ended is not None:
            return
        if self._paused or self._joining:
            self._forming[series] = (candle_time, messages[0])
        else:
            self._write(messages)
            self._join()

    def drop_forming(self, series: SeriesId, until: int | None) -> None:
        """Drop the waiting forming candle of a series at or before `until` (None: any): a newer closed candle
        exists."""
        waiting = self._forming.get(series)
        if waiting is not None and (until is None or waiting[0] <= until):
            del self._forming[series]

    def end(self, code: int) -> None:
        """Close the connection with `code`, after the backlog."""
        if self.ended is None:
            self.ended = code
            self._wake_waiting()
            self._forming.clear()
            self._wire.ending()
            if not self._messages:
                self._wire.close(code)

    def abandon(self) -> None:
        """The client has disconnected: drop the backlog and all later messages."""
        self.ended = self.ended or CLOSE_GOING_AWAY
        self._wake_waiting()
        self._clear()
        self._paused = True

    def pause(self) -> None:
        """The wire accepts no more frames for now."""
        self._paused = True

    def resume(self) -> None:
        """The wire accepts frames again."""
        self._paused = False
        self._flush()

    def _flush(self) -> None:
        """Write the messages that must be delivered, in order, then the forming candles, until the wire pauses."""
        while self._messages and not self._paused:
            count = size = 0
            for message in self._messages:
                count, size = count + 1, size + len(message)
                if size >= WRITE_BYTES:
                    break
            batch = self._messages[:count]
            del self._messages[:count]
            self._bytes -= size
            self._writes += 1
            self._write(batch)
            self._wake_waiting()
        if self._messages:
            return
        self._warned = False
        if self.ended is not None:
            self._wire.close(self.ended)
        elif self._forming and not self._paused:
            forming = [message for _, message in self._forming.values()]
            self._forming.clear()
            self._write(forming)

    def _clear(self) -> None:
        self._messages.clear()
        self._forming.clear()
        self._bytes = 0
