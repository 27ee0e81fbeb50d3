"""Binance's kline streams: many on one connection, subscribed and unsubscribed while it runs.

A connection has a set of *wanted* streams, carried by one socket, a `Link`. Whenever the set changes, the link sends
the difference in paced messages. A stream is *attached* once the exchange has acknowledged its subscription; candles
from before that are read from REST. The exchange ends a socket after 24 hours, or with notice. Before that a second
link is connected (make before break), and the first one is closed once the second carries every stream.

The file is longer than others because the wanted streams, the links and the handover are one state machine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import aiohttp
import msgspec

from klinesync.core.errors import BadCandle, UpstreamError
from klinesync.core.network_errors import unreachable
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.access import HANDSHAKE, Access
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.frames import Answer, BadFrame, Shutdown, Stream, parse_frame, stream_name
from klinesync.exchanges.binance.link import Link, Refused, portions, why_not_subscribed
from klinesync.exchanges.binance.timings import USUAL_STREAMS, StreamTimings
from klinesync.exchanges.comeback import Comeback
from klinesync.exchanges.exchange import ConnectionStatus, KlineEvent, StreamCallbacks, StreamCounts
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Most streams of one connection. The exchange allows 1,024; with fewer a lost connection costs less.
STREAMS_PER_CONNECTION = 200
# Largest message in bytes; a larger one closes the socket, which bounds the memory.
MAX_SOCKET_BYTES = 16 << 20
# Interval of pings, longest wait for a handshake, and longest wait for the end of a closed socket, in seconds.
HEARTBEAT_S = 20.0
CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
# Life of a connection, in seconds, after which it counts as healthy: its end resets the backoff.
HEALTHY_S = 30.0
# Interval, in seconds, of checks whether the backoff of handshakes has ended: an answer of REST ends it early.
HANDSHAKE_POLL_S = 1.0
# Shortest time between two logged quarantined frames of one connection, in seconds.
QUARANTINE_LOG_EVERY_S = 10.0

PATHS = {"spot": "/stream", "futures": "/market/stream"}


class Symbols(Protocol):
    """Gives a connection the exchange's symbols."""

    def symbol_id_now(self, series: SeriesId) -> str | None:
        """The exchange's symbol by the newest list; None when the list lacks it, or there is no list yet."""
        ...

    async def symbol_id(self, series: SeriesId) -> str:
        """The exchange's symbol; requests a list if necessary. Raises `UpstreamError`."""
        ...


class BinanceConnection:
    """Carries the wanted streams of one market.

    session: opens the sockets.
    url: of the market's streams, with the path.
    callbacks: receive the events of streams and their candles.
    rng: jitter of backoff and of the life of sockets.
    symbols: gives the exchange's symbols, which name the streams.
    market: name of the market.
    clock: the exchange's time; dates the connects.
    counts, comeback, access: counters, order of reconnects and backoff of the market, shared by its connections.
    streams_most: most streams of this connection.
    bulkheads: contain defects.
    monotonic: our clock, in seconds.
    timings: waits and intervals.
    """

    def __init__(
        self,
        session: Http,
        url: str,
        callbacks: StreamCallbacks,
        *,
        rng: random.Random,
        symbols: Symbols,
        market: str = "spot",
        clock: ExchangeClock | None = None,
        counts: StreamCounts | None = None,
        comeback: Comeback | None = None,
        access: Access | None = None,
        streams_most: int = STREAMS_PER_CONNECTION,
        bulkheads: Bulkheads | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        timings: StreamTimings = USUAL_STREAMS,
    ) -> None:
        self._monotonic = monotonic
        self._timings = timings
        self._bulkheads = bulkheads or Bulkheads()
        self._comeback = comeback or Comeback(rng)
        self._access = access or Access()
        self._session = session
        self._market = market
        self._counts = counts or StreamCounts()
        self._url = url
        self._callbacks = callbacks
        self._rng = rng
        self._clock = clock or ExchangeClock()
        self._streams_most = streams_most
        self._symbols = symbols
        self._wanted: dict[str, Stream] = {}
        self._names: dict[SeriesId, str] = {}  # the stream of each wanted series
        self._nameless: dict[SeriesId, None] = {}  # wanted series without a known symbol
        self._naming = asyncio.Event()
        self._links: list[Link] = []  # the newest last; before it, during a handover, the old one
        self._event = asyncio.Event()  # set when the state of a link changes
        self._log_limit = LogLimit(QUARANTINE_LOG_EVERY_S)
        self._failure: str | None = None  # why streams are not attached; None after an acknowledgement
        self.reconnects = 0
        self.rotations = 0
        self.quarantined = 0

    @property
    def status(self) -> ConnectionStatus:
        """The state and counters of the connection."""
        return ConnectionStatus(
            EXCHANGE,
            self._market,
            len(self._wanted) + len(self._nameless),
            bool(self._links),
            self.reconnects,
            self.rotations,
            self.quarantined,
        )

    @property
    def room(self) -> int:
        """The number of further streams that fit."""
        return self._streams_most - len(self._wanted) - len(self._nameless)

    @property
    def idle(self) -> bool:
        """Whether no stream is wanted."""
        return not (self._wanted or self._nameless)

    def want(self, series: SeriesId) -> None:
        """Subscribe the series' stream, once its symbol is known."""
        if series in self._names or series in self._nameless:
            return
        symbol_id = self._symbols.symbol_id_now(series)
        if symbol_id is None:
            self._nameless[series] = None
            self._naming.set()
        else:
            self._add(symbol_id, series)

    def _add(self, symbol_id: str, series: SeriesId) -> None:
        name = self._names[series] = stream_name(symbol_id, series)
        stream = self._wanted.get(name)
        if stream is None:
            self._wanted[name] = Stream(symbol_id, series)
            self._changed()
            self._report_failing([series])
            return
        self._wanted[name] = stream._replace(others=(*stream.others, series))
        if any(name in link.attached for link in self._links):
            self._callbacks.attached(series)

    def unwant(self, series: SeriesId) -> None:
        """Unsubscribe the series' stream, unless another series uses the same stream."""
        self._nameless.pop(series, None)
        name = self._names.pop(series, None)
        if name is None:
            return
        stream = self._wanted[name]
        remaining = [other for other in (stream.series, *stream.others) if other != series]
        if remaining:
            self._wanted[name] = Stream(stream.symbol_id, remaining[0], tuple(remaining[1:]))
            return
        del self._wanted[name]
        self._changed()

    def renew(self, series: SeriesId) -> None:
        """Unsubscribe the series' stream and subscribe it again."""
        name = self._names.get(series)
        if name is None:
            return
        for link in self._links:
            link.renewed.add(name)
        self._changed()

    def reconnect(self) -> None:
        """Close the present sockets; `run` then reconnects with backoff."""
        for link in self._links:
            if link.task is not None:
                link.task.cancel()

    def _changed(self) -> None:
        for link in self._links:
            link.changed.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        loop, name = asyncio.get_running_loop(), f"names {self._url}"
        naming = self._bulkheads.begin(loop, self._find_names, part=Part.LISTINGS, name=name, restart=True)
        try:
            await self._stay_connected()
        finally:
            self._comeback.gone(self)
            naming.cancel()
            await asyncio.wait([naming])

    async def _find_names(self) -> None:
        """Look up the exchange's symbols of wanted series that lack one, until cancelled."""
        if self._nameless:  # since before a defect ended this task
            self._naming.set()
        while True:
            await self._naming.wait()
            self._naming.clear()
            for series in tuple(self._nameless):
                try:
                    symbol_id = await self._symbols.symbol_id(series)
                except UpstreamError as error:
                    self._callbacks.failing([series], f"the exchange's symbol is not known yet: {error}")
                    suppressed = self._log_limit.allow("names", self._monotonic())
                    if suppressed is not None:
                        log.warning(
                            "stream.name_unknown",
                            "it cannot be subscribed yet",
                            series=series,
                            url=self._url,
                            suppressed=suppressed,
                            error=error,
                        )
                    continue
                if series in self._nameless:
                    del self._nameless[series]
                    self._add(symbol_id, series)
            if self._nameless:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._timings.names_retry_s):
                        await self._naming.wait()
                self._naming.set()

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            await self._wait_for_access()
            began_s = self._monotonic()
            link = await self._connect()
            if link is not None:
                try:
                    await self._stay(link)
                finally:
                    await self._end_links()
            self.reconnects += 1
            self._counts.reconnects += 1
            failures = 0 if self._monotonic() - began_s > HEALTHY_S else failures + 1
            await self._comeback.pause(self, self._timings.reconnect.delay_s(failures, self._rng))

    async def _wait_for_access(self) -> None:
        """Returns when the backoff of handshakes, which a refusal of the market begins, has ended."""
        while True:
            held_s = self._access.held_s(HANDSHAKE, self._monotonic())
            if held_s <= 0.0:
                return
            await asyncio.sleep(min(held_s, HANDSHAKE_POLL_S))

    async def _connect(self) -> Link | None:
        """A new link with a task of its own; None when the handshake fails."""
        loop = asyncio.get_running_loop()
        sent_s = self._monotonic()
        self._access.sent(HANDSHAKE, sent_s)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                socket = await self._session.ws_connect(
                    self._url,
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MAX_SOCKET_BYTES,
                    close_timeout_s=CLOSE_TIMEOUT_S,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            reason = unreachable(self._url, error)
            status = error.status if isinstance(error, aiohttp.WSServerHandshakeError) else 0
            self._access.failed(HANDSHAKE, status, reason, sent_s, self._monotonic())
            trouble = UpstreamError(reason, cause=reason)
            log.warning("stream.connect_failed", "the stream cannot be connected", url=self._url, error=trouble)
            self._failed(reason)
            return None
        self._access.served(HANDSHAKE)
        connected_s = self._monotonic()
        link = Link(socket, connected_s, self._clock.estimate_ms(connected_s), self._timings.answer_timeout_s)
        self._links.append(link)
        link.task = self._bulkheads.begin(
            loop, partial(self._carry, link), part=Part.CONNECTION, name=f"link {self._url}"
        )
        link.task.add_done_callback(lambda _: self._event.set())
        return link

    async def _stay(self, link: Link) -> None:
        """Replace each link before the exchange ends its socket; returns when the last link has ended."""
        rotate_s = self._rng.uniform(*self._timings.rotate_after_s)
        not_before_s = 0.0
        while not link.ended:
            held = self._monotonic() < not_before_s or self._access.held_s(HANDSHAKE, self._monotonic()) > 0.0
            if held or not link.is_due(self._clock, rotate_s, self._monotonic()):
                await self._wait(self._timings.rotate_check_s)
                continue
            log.info(
                "stream.connection_rotated", "the connection is replaced before the exchange ends it", url=self._url
            )
            successor = await self._connect()
            not_before_s = self._monotonic() + self._timings.successor_retry_s
            if successor is None:
                continue
            await self._overlap(link, successor)
            if successor.ended:
                continue
            await link.end()
            self.rotations += 1
            self._counts.rotations += 1
            link = successor
            rotate_s = self._rng.uniform(*self._timings.rotate_after_s)
            not_before_s = 0.0
        log.warning(
            "stream.connection_ended", "the connection ended with code %s", link.socket.close_code, url=self._url
        )
        if self._failure is None:
            self._failed(f"the connection to the exchange ended with code {link.socket.close_code}")

    async def _overlap(self, link: Link, successor: Link) -> None:
        """Returns when the successor carries every stream and has received data, or when either link has ended."""
        began_s = self._monotonic()
        while not (link.ended or successor.ended):
            passed_s = self._monotonic() - began_s
            complete = successor.attached >= self._wanted.keys()
            if complete and successor.shutdown_announced:
                return  # the exchange ends it soon as well: the next link takes over
            if complete and successor.received and passed_s >= self._timings.overlap_least_s:
                return
            if complete and passed_s >= self._timings.overlap_most_s:
                return  # no stream has data, or the successor's streams become stale soon
            await self._wait(1.0)

    async def _wait(self, most_s: float) -> None:
        """Returns when the state of a link changes, after `most_s` at the latest."""
        self._event.clear()
        try:
            async with asyncio.timeout(most_s):
                await self._event.wait()
        except TimeoutError:
            return

    async def _end_links(self) -> None:
        links = tuple(self._links)
        for link in links:
            if link.task is not None:
                link.task.cancel()
        for link in links:
            await link.end()

    async def _carry(self, link: Link) -> None:
        """Receive frames and keep the streams subscribed, until the link ends."""
        loop, work = asyncio.get_running_loop(), partial(self._keep_subscribed, link)
        subscriber = self._bulkheads.begin(loop, work, part=Part.CONNECTION, name=f"subscribe {self._url}")
        try:
            async for message in link.socket:
                if isinstance(message.data, str):
                    self._take(link, message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    self._quarantine("it is binary")
        except (aiohttp.ClientError, ConnectionError) as error:
            # Raised when a ping is answered on a closing transport, after a pause of this process for example.
            log.warning("stream.connection_broken", "the connection broke: %r", error, url=self._url)
        finally:
            subscriber.cancel()
            self._links.remove(link)
            self._lose(link)
            self._report_failing(self._not_attached())
            await asyncio.wait([subscriber])
            await link.socket.close()

    def _lose(self, link: Link) -> None:
        """Report the streams of an ended link that no other link carries as lost."""
        carried = set[str]().union(*(other.attached for other in self._links))
        gone = [self._wanted[name] for name in link.sent if name in self._wanted and name not in carried]
        lost = [series for stream in gone for series in (stream.series, *stream.others)]
        if lost:
            self._callbacks.lost(lost)

    def _failed(self, reason: str) -> None:
        """Keep and report the reason why streams are not attached."""
        self._failure = reason
        self._report_failing(self._not_attached())

    def _report_failing(self, series: Sequence[SeriesId]) -> None:
        if self._failure is not None and series:
            self._callbacks.failing(series, self._failure)

    def _not_attached(self) -> list[SeriesId]:
        carried = set[str]().union(*(link.attached for link in self._links))
        streams = [stream for name, stream in self._wanted.items() if name not in carried]
        return [series for stream in streams for series in (stream.series, *stream.others)]

    async def _keep_subscribed(self, link: Link) -> None:
        """Whenever the wanted streams change, send the difference to the requested ones, in paced messages."""
        try:
            while True:
                await link.changed.wait()
                link.changed.clear()
                renewed, link.renewed = link.renewed & link.sent.keys(), set()
                dropped = [name for name in link.sent if name not in self._wanted or name in renewed]
                for names in portions(dropped):
                    for name in names:
                        link.attached.discard(name)
                        if name not in renewed:  # frames in flight of a renewed stream still count
                            del link.sent[name]
                    await link.ask("UNSUBSCRIBE", names)
                missing = [name for name in self._wanted if name not in link.sent or name in renewed]
                for names in portions(missing):
                    # Noted before the answer, because the first frame may arrive before the answer.
                    link.sent.update(dict.fromkeys(names))
                    await link.ask("SUBSCRIBE", names)
                    self._attach(link, names)
        except (aiohttp.ClientError, ConnectionError, TimeoutError, Refused) as error:
            reason = why_not_subscribed(self._url, error, self._timings.answer_timeout_s)
            # A broken connection has one cause for all streams, which logs once; a refusal is logged each time.
            problem = UpstreamError(reason, cause=None if isinstance(error, Refused) else reason)
            log.warning("stream.subscribe_failed", "streams cannot be subscribed", url=self._url, error=problem)
            self._failed(reason)
        finally:
            await link.socket.close()  # also after a defect: without this task nothing is subscribed

    def _attach(self, link: Link, names: Sequence[str]) -> None:
        """The exchange has acknowledged streams. Those that another link carries were attached all along, so they are
        not reported again."""
        carried = set[str]().union(*(other.attached for other in self._links if other is not link))
        link.attached.update(names)
        self._failure = None
        self._comeback.carried(self)
        self._event.set()
        for name in names:
            stream = self._wanted.get(name)
            if stream is not None and name not in carried:
                for series in (stream.series, *stream.others):
                    self._callbacks.attached(series)

    def _take(self, link: Link, text: str) -> None:
        try:
            message = parse_frame(text, self._wanted)
        except (BadFrame, BadCandle) as error:
            self._quarantine(str(error))
            return
        if isinstance(message, KlineEvent):
            self._counts.frames += 1
            if message.flow_fault is not None:
                self._leave_flow_out(message.series, message.flow_fault)
            if not link.received:
                link.received = True
                self._event.set()
            # Read before the callback, because a defect in it drops the series.
            others = self._wanted[self._names[message.series]].others
            self._callbacks.event(message)
            for other in others:
                if other in self._names:
                    self._callbacks.event(msgspec.structs.replace(message, series=other))
        elif isinstance(message, Answer):
            link.answered(message)
        elif isinstance(message, Shutdown):
            link.shutdown_announced = True
            self._event.set()

    def _leave_flow_out(self, series: SeriesId, reason: str) -> None:
        """Count a candle that is taken without its order flow; log it, throttled."""
        self._counts.flow_left_out += 1
        suppressed = self._log_limit.allow("order flow", self._monotonic())
        if suppressed is not None:
            log.warning(
                "stream.flow_left_out",
                "a candle is taken without its order flow: %s",
                reason,
                series=series,
                suppressed=suppressed,
            )

    def _quarantine(self, reason: str) -> None:
        """Count an invalid frame and log it, throttled. The connection goes on."""
        self.quarantined += 1
        self._counts.quarantined += 1
        suppressed = self._log_limit.allow("frame", self._monotonic())
        if suppressed is not None:
            log.warning(
                "stream.frame_quarantined", "a frame is quarantined: %s", reason, url=self._url, suppressed=suppressed
            )
