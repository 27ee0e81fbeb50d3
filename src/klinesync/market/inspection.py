"""Inspection: reads the running parts for `/metrics` and the debug API, on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from klinesync import __version__
from klinesync.core.gaps import GapState, missing_candles
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import RestStatus
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.ingest.supervisors import Supervisors
from klinesync.market_data.startup_sync import SweepProgress
from klinesync.market_data.store_healer import Healed
from klinesync.market_data.store_scrub import ScrubProgress
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.bulkheads import Part
from klinesync.runtime.clock import Clock
from klinesync.runtime.exchange_clock import FRAMES, REST
from klinesync.runtime.metrics import MetricsPage, Reading
from klinesync.runtime.single_flight import SingleFlight
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Database
from klinesync.ws.hub import CandleHub


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that are inspected. All callables return at once.

    database: the store.
    pipeline, ledger, hub: counters and backlogs.
    registry: the exchanges.
    supervisors: of all exchanges.
    healing: spans of a base series that are requested.
    sweep: progress of the start-up sweep.
    now_s: the time of a series' exchange, in UTC seconds.
    clock: our clock.
    grace_s: exchange time after a close before the candle is expected.
    scrub, healed: readings of all of the store, and what was damaged in it.
    defects: count by part.
    """

    database: Database
    pipeline: IngestPipeline
    ledger: LedgerStep
    registry: ExchangeRegistry
    supervisors: Supervisors
    healing: Callable[[SeriesId], Sequence[Span]]
    sweep: Callable[[], SweepProgress]
    hub: CandleHub
    now_s: Callable[[SeriesId], float]
    clock: Clock
    grace_s: float
    scrub: ScrubProgress
    healed: Healed
    defects: Mapping[Part, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Measurements of the store.

    series: number of stored series.
    behind: number of followed series without the expected candle.
    lag_s: seconds since the head closed, of the followed series that lags most; None when no candles are stored.
    gaps, gap_candles: gaps, and missing candles in them, by state.
    """

    series: int = 0
    behind: int = 0
    lag_s: float | None = None
    gaps: Mapping[GapState, int] = field(default_factory=lambda: dict.fromkeys(GapState, 0))
    gap_candles: Mapping[GapState, int] = field(default_factory=lambda: dict.fromkeys(GapState, 0))


class Inspection:
    """Reads the parts. `store_facts_ttl_s`: seconds for which measurements of the store are reused."""

    def __init__(self, parts: Parts, store_facts_ttl_s: float) -> None:
        self._parts = parts
        self._store_facts_ttl_s = store_facts_ttl_s
        self._facts = StoreFacts()
        self._read_at_s = float("-inf")
        self._reading: SingleFlight[StoreFacts] = SingleFlight()
        self._page = MetricsPage(self._readings)

    async def metrics(self) -> bytes:
        """The page of metrics. Raises `StoreError`."""
        if self._parts.clock.monotonic_s() - self._read_at_s >= self._store_facts_ttl_s:
            self._facts = await self._reading.get(self._read_store)
            self._read_at_s = self._parts.clock.monotonic_s()
        return self._page.text()

    def rest(self) -> Mapping[tuple[str, str], RestStatus]:
        """The state of REST by exchange and market, of those that were used."""
        statuses = {}
        for name, exchange in self._parts.registry.made().items():
            statuses.update({(name, market): status for market, status in exchange.rest().items()})
        return statuses

    def queues(self) -> dict[str, int]:
        """The backlogs: candles for the writer, gaps for the exchange, messages for clients."""
        hub, pipeline = self._parts.hub.status, self._parts.pipeline
        return {
            "live_candles": pipeline.live_candles,
            "bulk_candles": pipeline.bulk_candles,
            "healing_gaps": sum(map(len, self._healed())),
            "outbox_messages": hub.waiting_messages,
            "outbox_bytes": hub.waiting_bytes,
        }

    def _healed(self) -> list[Sequence[Span]]:
        """The requested gaps of each followed series with any."""
        followed = (SeriesId.parse(job.series_id) for job in self._parts.supervisors.jobs_state())
        return [spans for series in followed if (spans := self._parts.healing(series))]

    async def _read_store(self) -> StoreFacts:
        parts = self._parts
        # A delisted series gets no more candles, and does not lag.
        followed = [SeriesId.parse(job.series_id) for job in parts.supervisors.jobs_state() if job.state != "delisted"]
        now = [(series, parts.now_s(series)) for series in followed]

        def measure(store: CandleStore) -> StoreFacts:
            stored = store.series()
            gaps, candles = dict.fromkeys(GapState, 0), dict.fromkeys(GapState, 0)
            for series in stored:
                try:
                    ledger = store.gaps(series)
                except StoreDamaged:  # klinesync_store_damaged_parts counts it
                    continue
                for gap in ledger:
                    gaps[gap.state] += 1
                for state, count in missing_candles(series.timeframe, ledger).items():
                    candles[state] += count
            behind, lags = 0, []
            for series, now_s in now:
                frame = series.timeframe
                try:
                    head = store.head(series)
                except StoreDamaged:
                    head = None
                behind += head is None or head < frame.latest_closed(int(now_s - parts.grace_s))
                if head is not None:
                    lags.append(max(0.0, now_s - frame.next(head)))
            return StoreFacts(len(stored), behind, max(lags, default=None), gaps, candles)

        return await parts.database.read(measure)

    def _readings(self) -> Iterable[Reading]:
        yield Reading("klinesync_info", 1, (__version__,))
        for part in Part:
            yield Reading("klinesync_defects_total", self._parts.defects.get(part, 0), (part.value,))
        yield from self._of_streams()
        yield from self._of_clocks()
        yield from self._of_rest()
        yield from self._of_histories()
        yield from self._of_writing()
        yield from self._of_ledgers()
        yield from self._of_store()
        yield from self._of_hub()

    def _of_streams(self) -> Iterable[Reading]:
        states: dict[str, int] = {}
        for job in self._parts.supervisors.jobs_state():
            states[job.state] = states.get(job.state, 0) + 1
        for state, count in states.items():
            yield Reading("klinesync_streams", count, (state,))
        for name, exchange in self._parts.registry.made().items():
            for market, counts in exchange.streams().items():
                labels = (name, market)
                yield Reading("klinesync_stream_frames_total", counts.frames, labels)
                yield Reading("klinesync_stream_frames_quarantined_total", counts.quarantined, labels)
                yield Reading("klinesync_stream_order_flow_left_out_total", counts.flow_left_out, labels)
                yield Reading("klinesync_stream_reconnects_total", counts.reconnects, labels)
                yield Reading("klinesync_stream_rotations_total", counts.rotations, labels)
        for name, supervisor in self._parts.supervisors.by_name().items():
            for market, count in supervisor.doubted().items():
                yield Reading("klinesync_stream_frames_doubted_total", count, (name, market))
            for (market, reason), count in supervisor.questioned().items():
                yield Reading("klinesync_stream_closed_questioned_total", count, (name, market, reason))

    def _of_clocks(self) -> Iterable[Reading]:
        for exchange, margin_s in self._parts.supervisors.final_margins_s().items():
            yield Reading("klinesync_rest_final_margin_seconds", margin_s, (exchange,))
        now_s = self._parts.clock.monotonic_s()
        for (exchange, market), clock in self._parts.registry.clocks.items():
            difference = clock.difference(now_s)
            apart_s = 0.0 if difference is None else (difference.frames_ms - difference.rest_ms) / 1000
            yield Reading("klinesync_clock_difference_seconds", apart_s, (exchange, market))
            for name in (REST, FRAMES):
                yield Reading("klinesync_clock_doubted_total", clock.doubted[name], (exchange, market, name))
                yield Reading("klinesync_clock_set_total", clock.moved[name], (exchange, market, name))

    def _of_rest(self) -> Iterable[Reading]:
        for host, status in self.rest().items():
            yield Reading("klinesync_rest_requests_total", status.requests, host)
            for http_status, count in status.errors.items():
                yield Reading("klinesync_rest_errors_total", count, (*host, str(http_status)))
            if status.used is not None and status.limit is not None:
                yield Reading("klinesync_rest_weight_used", status.used, host)
                yield Reading("klinesync_rest_weight_limit", status.limit, host)
            yield Reading("klinesync_rest_under_way", status.under_way, host)
            for urgency, count in status.waiting.items():
                yield Reading("klinesync_rest_waiting", count, (*host, urgency.name.lower()))
            yield Reading("klinesync_rest_blocked_seconds", status.blocked_s, host)
        for name, exchange in self._parts.registry.made().items():
            for (market, kind), count in exchange.left_out().items():
                yield Reading("klinesync_rest_items_left_out_total", count, (name, market, kind))

    def _of_histories(self) -> Iterable[Reading]:
        sweep = self._parts.sweep()
        waiting = sweep.total - sweep.done - sweep.refused
        for state, count in (("waiting", waiting), ("done", sweep.done), ("refused", sweep.refused)):
            yield Reading("klinesync_startup_series", count, (state,))
        healed = self._healed()
        yield Reading("klinesync_backfill_series", len(healed))
        yield Reading("klinesync_backfill_gaps", sum(map(len, healed)))
        supervisors = self._parts.supervisors.by_name().values()
        audits = [supervisor.audit for supervisor in supervisors if supervisor.audit is not None]
        if audits:
            yield Reading("klinesync_audit_looks_total", sum(audit.audits for audit in audits))
            yield Reading("klinesync_audit_revisions_total", sum(audit.revised for audit in audits))

    def _of_writing(self) -> Iterable[Reading]:
        pipeline = self._parts.pipeline
        yield Reading("klinesync_pipeline_waiting_candles", pipeline.live_candles, ("live",))
        yield Reading("klinesync_pipeline_waiting_candles", pipeline.bulk_candles, ("bulk",))
        yield Reading("klinesync_pipeline_batches_total", pipeline.batches, ("written",))
        yield Reading("klinesync_pipeline_batches_total", pipeline.batches_failed, ("failed",))
        yield Reading("klinesync_pipeline_batch_seconds", pipeline.batch_s)
        for source, count in pipeline.written.items():
            yield Reading("klinesync_pipeline_candles_written_total", count, (source,))
        yield Reading("klinesync_pipeline_candles_revised_total", pipeline.revised)
        yield Reading("klinesync_store_writable", int(self._parts.database.write_error is None))
        yield Reading("klinesync_store_damaged_parts", len(self._parts.database.damage.parts()))
        yield Reading("klinesync_store_chunks_quarantined_total", self._parts.healed.taken_out)
        yield Reading("klinesync_store_chunks_healed_total", self._parts.healed.settled)
        yield Reading("klinesync_store_scrubs_total", self._parts.scrub.readings)
        progress = self._parts.scrub.progress_pct
        yield Reading("klinesync_store_scrub_progress_ratio", 1.0 if progress is None else progress / 100)

    def _of_ledgers(self) -> Iterable[Reading]:
        ledger = self._parts.ledger
        yield Reading("klinesync_ledgers_behind", len(ledger.behind()))
        for plugin, count in list(ledger.faults.items()):
            yield Reading("klinesync_plugin_faults_total", count, (plugin,))
        for plugin in list(ledger.suspended):
            yield Reading("klinesync_plugin_suspended", 1, (plugin,))

    def _of_store(self) -> Iterable[Reading]:
        facts = self._facts
        yield Reading("klinesync_series_stored", facts.series)
        yield Reading("klinesync_series_behind", facts.behind)
        if facts.lag_s is not None:
            yield Reading("klinesync_series_lag_seconds", facts.lag_s)
        for state in GapState:
            yield Reading("klinesync_gaps", facts.gaps[state], (state.value,))
            yield Reading("klinesync_gap_candles", facts.gap_candles[state], (state.value,))

    def _of_hub(self) -> Iterable[Reading]:
        hub = self._parts.hub.status
        yield Reading("klinesync_ws_clients", hub.clients)
        yield Reading("klinesync_ws_subscriptions", hub.subscriptions)
        yield Reading("klinesync_ws_outbox_messages", hub.waiting_messages)
        yield Reading("klinesync_ws_outbox_bytes", hub.waiting_bytes)
        yield Reading("klinesync_ws_messages_total", hub.messages)
        yield Reading("klinesync_ws_slow_clients_total", hub.slow_clients)
