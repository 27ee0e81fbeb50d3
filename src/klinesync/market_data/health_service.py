"""HealthService: gathers what is known of a series, and has it judged."""

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
from klinesync.storage.database import Database


def later_than_usual_s(final_margin_s: Callable[[SeriesId], float | None], usual_s: float, series: SeriesId) -> float:
    """How much later than usual the exchange of a series has final rows, in seconds of the exchange.

    final_margin_s: how long after its end a row of the series may change; None where that is not known.
    usual_s: the same, of a usual exchange.
    """
    return max(0.0, (final_margin_s(series) or 0.0) - usual_s)


class HealthService:
    """Judges series, ingested and derived ones: these are read, streamed and healed by way of their base.

    `exchange_s`: what time it is on the exchange of a series, in UTC seconds; None where that is not known, then
    `wall_s` counts. `check_known` raises `UnknownSeries` when the exchange does not list a series. `backfill` and
    `startup` are None where nobody heals gaps or sweeps. `recent_s`: how long a backfill counts as recent.
    `first_history_due`: whether a followed series still waits for its first history; by default none does. `late_s`:
    how much later than usual the exchange of a base series is known to have final rows, in seconds of the exchange.
    `trouble`: why the exchange of a base series gives no candles at present; by default each gives them.
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
        """How `series` is. Raises `UnknownSeries` for one that is neither stored nor listed, and `StoreError`."""

        base = self._base_of(series)

        def look(store: CandleStore) -> tuple[Span | None, list[Gap], Span | None]:
            return store.span(series), store.gaps(series), store.span(base)

        stored, ledger, base_stored = await self._database.read(look)
        if stored is None:
            await self._check_known(series)
        return self._assess(series, stored, ledger, base, base_stored)

    def judge_any(
        self, series: SeriesId, stored: Span | None, ledger: Sequence[Gap], base_stored: Span | None
    ) -> Health:
        """How any series is, by what is stored of it and of its base, and by the ledger of its gaps."""
        return self._assess(series, stored, ledger, self._base_of(series), base_stored)

    def judge(self, series: SeriesId, stored: Span | None, ledger: Sequence[Gap]) -> Health:
        """How a series is that is ingested itself, by what is stored of it and by the ledger of its gaps."""
        return self._assess(series, stored, ledger, series, stored)

    def _assess(
        self, series: SeriesId, stored: Span | None, ledger: Sequence[Gap], base: SeriesId, base_stored: Span | None
    ) -> Health:
        exchange_s = self._exchange_s(base)
        now_time = int(self._wall_s() if exchange_s is None else exchange_s)
        report, stream = self._board.report(base, self._recent_s), self._stream(base)
        # One whose first reading failed is not waiting for its turn any more: that reading counts.
        sweeping = self._startup is not None and self._startup.waiting(base) and report.state != "failed"
        at_work = widened(series.timeframe, self._healed(base, base_stored, sweeping=sweeping))
        facts = Facts(
            series=series,
            now_time=now_time,
            stored=stored,
            gaps=ledger,
            at_work=at_work,
            sweeping=sweeping or (report.state != "failed" and self._first_history_due(base)),
            backfill=_with_reason(self._with_turn(report) if sweeping else report, stream),
            stream=stream,
            damaged=bool(self._database.damage.of(series)),
            trouble=self._trouble(base),
        )
        return assess(facts, self._grace_s + self._late_s(base))

    def _healed(self, base: SeriesId, stored: Span | None, *, sweeping: bool) -> list[Span]:
        """What of the ingested series is being healed, or soon will be: only what lies behind its head is."""
        if stored is None:
            return []
        before_head = Span(0, stored.end)
        # Once the sweep has read a series up to now, all its declared gaps are requested.
        soon = sweeping and self._backfill.heals
        return [before_head] if soon else clipped(self._backfill.working_on(base), before_head)

    def _with_turn(self, report: BackfillReport) -> BackfillReport:
        """The report of a series that waits in the start-up sweep says so."""
        if report.state != "idle" or self._startup is None:
            return report
        progress = self._startup.progress()
        note = f"waits in the start-up sweep: {progress.done} of {progress.total} series are up to date"
        return replace(report, note=note)


def _with_reason(report: BackfillReport, stream: StreamStatus) -> BackfillReport:
    """The report of a backfill that waits for an exchange which does not answer says why."""
    waits = (
        report.state in ("idle", "running") and stream.state is StreamState.RECONNECTING and stream.detail is not None
    )
    if not waits or (report.state == "idle" and report.note is None):
        return report
    return replace(report, note=stream.detail if report.note is None else f"{report.note}; {stream.detail}")
