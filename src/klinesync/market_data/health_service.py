"""HealthService: gathers the facts of a series, and judges its health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, widened
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import ExchangeTrouble, StreamStatus
from klinesync.history.board import BackfillBoard, BackfillReport
from klinesync.history.service import HistoryService
from klinesync.market_data.health import Facts, Health, assess
from klinesync.market_data.startup_sync import StartupSync
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Database


def later_than_usual_s(final_margin_s: Callable[[SeriesId], float | None], usual_s: float, series: SeriesId) -> float:
    """The part of a series' finality margin beyond the usual margin, in seconds of the exchange.

    final_margin_s: finality margin of a series; None when unknown.
    usual_s: the usual margin.
    series: the series.
    """
    return max(0.0, (final_margin_s(series) or 0.0) - usual_s)


class HealthService:
    """Judges the health of ingested and derived series. A derived series is read, streamed and healed through its base.

    database: the store.
    base_of: the base of a derived series; another series itself.
    check_known: raises `UnknownSeries` when the exchange does not list a series.
    exchange_s: the time of a series' exchange, UTC seconds; None when unknown.
    wall_s: UTC seconds of this machine, used while the exchange's time is unknown.
    stream: status of a base series' stream.
    board: progress of readings of history.
    backfill: has the spans that are being read.
    startup: the start-up sweep; None: there is none.
    grace_s: seconds of the exchange from the close of a candle until it is expected.
    recent_s: seconds for which a finished backfill counts as recent.
    first_history_due: whether a followed series waits for its first history; False by default.
    late_s: further seconds until a candle of a base series is expected; 0 by default.
    trouble: why the exchange of a base series gives no candles; None, as by default: it does.
    """

    def __init__(
        self,
        *,
        database: Database,
        base_of: Callable[[SeriesId], SeriesId],
        check_known: Callable[[SeriesId], Awaitable[None]],
        exchange_s: Callable[[SeriesId], float | None],
        wall_s: Callable[[], float],
        stream: Callable[[SeriesId], StreamStatus],
        board: BackfillBoard,
        backfill: HistoryService,
        startup: StartupSync | None,
        grace_s: float,
        recent_s: float,
        first_history_due: Callable[[SeriesId], bool] = lambda _: False,
        late_s: Callable[[SeriesId], float] = lambda _: 0.0,
        trouble: Callable[[SeriesId], ExchangeTrouble | None] = lambda _: None,
    ) -> None:
        self._database = database
        self._base_of = base_of
        self._check_known = check_known
        self._exchange_s = exchange_s
        self._wall_s = wall_s
        self._stream = stream
        self._board = board
        self._backfill = backfill
        self._startup = startup
        self._first_history_due = first_history_due
        self._grace_s = grace_s
        self._late_s = late_s
        self._trouble = trouble
        self._recent_s = recent_s

    async def health(self, series: SeriesId) -> Health:
        """The health of a series. Raises `UnknownSeries` when it is neither stored nor listed, and `StoreError`."""
        base = self._base_of(series)

        def look(store: CandleStore) -> tuple[Span | None, list[Gap], Span | None]:
            return store.span(series), store.gaps(series), store.span(base)

        try:
            stored, ledger, base_stored = await self._database.read(look)
        except StoreDamaged:
            return self.judge(series, None, [], None, damaged=True)
        if stored is None:
            await self._check_known(series)
        return self.judge(series, stored, ledger, base_stored)

    def judge(
        self,
        series: SeriesId,
        stored: Span | None,
        ledger: Sequence[Gap],
        base_stored: Span | None,
        *,
        damaged: bool = False,
    ) -> Health:
        """The health of a series.

        series: ingested or derived.
        stored: its stored span; None when nothing is stored.
        ledger: its gap ledger.
        base_stored: the stored span of its base, or of the series itself when it is ingested.
        damaged: none of this could be read; False by default.
        """
        base = self._base_of(series)
        exchange_s = self._exchange_s(base)
        now_time = int(self._wall_s() if exchange_s is None else exchange_s)
        report, stream = self._board.report(base, self._recent_s), self._stream(base)
        # After a failed reading the series does not wait in the sweep any more: the failed reading counts.
        sweeping = self._startup is not None and self._startup.waiting(base) and report.state != "failed"
        working_on = widened(series.timeframe, self._working_on(base, base_stored, sweeping=sweeping))
        facts = Facts(
            series=series,
            now_time=now_time,
            stored=stored,
            gaps=ledger,
            working_on=working_on,
            sweeping=sweeping or (report.state != "failed" and self._first_history_due(base)),
            backfill=_with_reason(self._with_turn(report) if sweeping else report, stream),
            stream=stream,
            damaged=damaged or bool(self._database.damage.of(series)),
            trouble=self._trouble(base),
        )
        return assess(facts, self._grace_s + self._late_s(base))

    def _working_on(self, base: SeriesId, stored: Span | None, *, sweeping: bool) -> list[Span]:
        """The spans of the ingested series, up to its head, that are being read or wait."""
        if stored is None:
            return []
        before_head = Span(0, stored.end)
        # Once the sweep has read a series up to now, all its declared gaps are requested.
        soon = sweeping and self._backfill.heals
        return [before_head] if soon else clipped(self._backfill.working_on(base), before_head)

    def _with_turn(self, report: BackfillReport) -> BackfillReport:
        """The report with a note that the series waits in the start-up sweep."""
        if report.state != "idle" or self._startup is None:
            return report
        progress = self._startup.progress()
        note = f"waits in the start-up sweep: {progress.done} of {progress.total} series are up to date"
        return replace(report, note=note)


def _with_reason(report: BackfillReport, stream: StreamStatus) -> BackfillReport:
    """The report with a note why the exchange does not answer, when the backfill waits for the exchange."""
    waits = (
        report.state in ("idle", "running") and stream.state is StreamState.RECONNECTING and stream.detail is not None
    )
    if not waits or (report.state == "idle" and report.note is None):
        return report
    return replace(report, note=stream.detail if report.note is None else f"{report.note}; {stream.detail}")
