"""A client of a running service for commands: stores candles, gives the time, and reads history."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec

from klinesync import __version__
from klinesync.cli.explain_words import Explained
from klinesync.core.busy import repeat_after_s
from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.decoding import Undecodable, decode_json
from klinesync.core.errors import Rejected, Transient, UnknownSeries
from klinesync.core.network_errors import unreachable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.missing import BACKFILL
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.http_client import location

if TYPE_CHECKING:
    from klinesync.history.requested import BackfillProgress

T = TypeVar("T")

# Candles of one request. The service accepts more, but live candles wait while it reads a request.
POST_CANDLES = 5000
TIMEOUT_S = 120.0
# Interval of requests for the progress of a backfill, in seconds.
POLL_S = 0.5


class ServiceError(Transient):
    """A running service refused a request, or did not answer."""

    code = "service_error"


class _Refusal(msgspec.Struct):
    detail: str | None = None
    code: str | None = None


class _Begun(msgspec.Struct):
    series_id: str
    from_: int = msgspec.field(name="from")
    to: int
    missing_candles: int
    lost_candles: int = 0
    lost_why: str | None = None
    nothing_before: int | None = None


class _Report(msgspec.Struct):
    state: str
    reason: str | None
    error: str | None
    candles: int | None
    current_missing_candles: int | None


class _Health(msgspec.Struct):
    now_time: int
    backfill: _Report


class ServiceClient:
    """A client of the service at `url`. All methods raise `ServiceError` when the service does not answer as
    expected."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._has_token = "Authorization" in session.headers

    async def put(self, series: SeriesId, candles: Sequence[Candle]) -> None:
        """Store closed candles of a series, ascending. Raises `PartlyRefused`, `PartlyStored`."""
        from klinesync.history.files.importing import PartlyRefused, PartlyStored

        for start in range(0, len(candles), POST_CANDLES):
            rows = [_as_json(candle) for candle in candles[start : start + POST_CANDLES]]
            body = {"series_id": str(series), "candles": rows}
            try:
                status, text = await self._ask("POST", "/api/market/ingest/candles_closed", body=body)
                if status != 422:
                    self._check(status, text)
            except ServiceError as error:
                raise PartlyStored(error, start) from error
            if status == 422:
                raise PartlyRefused(_detail(text), start)

    async def stored(self, series: SeriesId, since: int) -> list[Candle]:
        """The oldest stored candles of a series after `since`, ascending, with order flow. Raises `Rejected` for a
        series that the service does not know."""
        from klinesync.client.tables import WirePage  # with numpy, which other questions do not need

        wanted = {"series_id": str(series), "since": str(max(0, since)), "limit": str(POST_CANDLES), "fields": "full"}
        status, text = await self._ask("GET", "/api/market/candles", wanted)
        if status in (404, 422):
            raise Rejected(_detail(text))
        self._check(status, text)
        return [row.candle() for row in _decoded(text, WirePage).candles]

    async def now(self, series: SeriesId) -> int:
        """The service's time (UTC seconds), by which candles of a series must have closed; without health of the series
        the end of time, because the service checks each candle that is put."""
        status, text = await self._ask("GET", "/api/market/health", {"series_id": str(series)})
        return _decoded(text, _Health).now_time if status == 200 else MAX_TIME

    async def explain(self, series: SeriesId) -> tuple[str, Explained]:
        """Why candles of a series are missing: the answer as JSON, and decoded. Raises `Rejected` for a series that the
        service does not know."""
        status, text = await self._ask("GET", "/api/market/explain", {"series_id": str(series)})
        if status == 404 and _refusal(text).code == UnknownSeries.code:
            raise Rejected(_detail(text))
        self._check(status, text)
        return text, _decoded(text, Explained)

    async def backfill(
        self, series: SeriesId, start: int, end: int | None, on_progress: Callable[[BackfillProgress], None]
    ) -> BackfillProgress:
        """Let the service read the missing candles of a span, and wait for the end. The service goes on when the wait
        is cancelled.

        series: of the candles.
        start: first open time, in UTC seconds.
        end: end of the span, exclusive; None: up to the newest closed candle.
        on_progress: called about twice a second.

        Returns the final progress. Raises `Rejected`.
        """
        from klinesync.history.requested import BackfillProgress

        began_s = SYSTEM_CLOCK.monotonic_s()
        begun = await self._begin(series, start, end)
        span = Span(begun.from_, begun.to)
        base = SeriesId.parse(begun.series_id)
        progress = BackfillProgress(base, span, begun.missing_candles, begun.missing_candles, 0, 0.0)
        latest = begun
        running, ours = begun.missing_candles > 0, True
        while running:
            status, text = await self._ask("GET", "/api/market/health", {"series_id": str(base)})
            if status == 404:
                raise ServiceError(f"the service at {self._url} reads the span, but shows no progress: {_detail(text)}")
            self._check(status, text)
            report = _decoded(text, _Health).backfill
            running = report.state == "running"
            ours = report.reason == BACKFILL  # otherwise the report is about another read of the series
            if ours:
                missing = progress.missing if report.current_missing_candles is None else report.current_missing_candles
                progress = replace(progress, missing=missing, candles=report.candles or 0, trouble=report.error)
            progress = replace(progress, elapsed_s=SYSTEM_CLOCK.monotonic_s() - began_s)
            on_progress(progress)
            if running:
                await asyncio.sleep(POLL_S)
        # A second request returns what is still missing; stored candles are not read again.
        if begun.missing_candles:
            latest = await self._begin(series, *span)
        if not ours:
            # Another read began before the last report: its count is that of the report before.
            progress = replace(progress, candles=begun.missing_candles - latest.missing_candles - latest.lost_candles)
        return replace(
            progress,
            missing=latest.missing_candles,
            elapsed_s=SYSTEM_CLOCK.monotonic_s() - began_s,
            lost=latest.lost_candles,
            lost_why=latest.lost_why,
            begins=latest.nothing_before,
        )

    async def _begin(self, series: SeriesId, start: int, end: int | None) -> _Begun:
        body: dict[str, object] = {"series_id": str(series), "from": start}
        if end is not None:
            body["to"] = end
        status, text = await self._ask("POST", "/api/market/ingest/backfill", body=body)
        if status in (404, 422):
            raise Rejected(_detail(text))
        self._check(status, text)
        return _decoded(text, _Begun)

    def _check(self, status: int, text: str) -> None:
        if status == 401:
            demand = "does not accept this token" if self._has_token else "requires a token"
            advice = "give its api_token with --api-token or KLINESYNC_API_TOKEN"
            raise ServiceError(f"the service at {self._url} answers 401: it {demand}; {advice}")
        if status != 200:
            raise ServiceError(f"the service at {self._url} answers {status}: {_detail(text)}")

    async def _ask(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: Mapping[str, object] | None = None
    ) -> tuple[int, str]:
        data = None if body is None else msgspec.json.encode(body)
        repeats = 0
        try:
            while True:
                async with self._session.request(
                    method, self._url + path, params=params, data=data, allow_redirects=False
                ) as answer:
                    if elsewhere := location(answer):
                        raise ServiceError(f"the service at {self._url} answers {answer.status}{elsewhere}")
                    # The answer's charset is ignored: bytes that are not UTF-8 are shown as replacement characters.
                    text = (await answer.read()).decode(errors="replace")
                pause_s = repeat_after_s(answer.status, _refusal(text).code, answer.headers.get("Retry-After"), repeats)
                if pause_s is None:
                    return answer.status, text
                repeats += 1
                await asyncio.sleep(pause_s)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ServiceError(
                f"the service at {self._url} does not answer: {unreachable(self._url, error)}"
            ) from error


@contextlib.asynccontextmanager
async def service_client(url: str, token: str | None) -> AsyncIterator[ServiceClient]:
    """A client of the service at `url`. `token`: the service's `api_token`; None without one."""
    headers = {"User-Agent": f"klinesync/{__version__}", "Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
        yield ServiceClient(url, session)


_NAMES = ("candle_time", *Candle._fields[1:])


def _as_json(candle: Candle) -> Mapping[str, float]:
    """The fields of a candle that its source tells."""
    return {name: value for name, value in zip(_NAMES, candle, strict=True) if value is not None}


def _decoded(text: str, kind: type[T]) -> T:
    try:
        return decode_json(text, kind)
    except Undecodable as error:
        raise ServiceError(f"the answer of the service is malformed: {error}") from None


def _refusal(text: str) -> _Refusal:
    try:
        return decode_json(text, _Refusal)
    except Undecodable:
        return _Refusal()


def _detail(text: str) -> str:
    return _refusal(text).detail or text[:200]
