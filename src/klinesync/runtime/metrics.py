"""The metrics: name, kind, meaning and labels of each. Values are read when Prometheus scrapes the service.

A counter is a plain number of its owner; the write path runs no code of Prometheus' library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

# Upper bounds of the buckets of durations, in seconds: a commit takes 1 ms on a quick disk, 100 ms on a busy one.
DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Units are in the name; the name of a counter ends in `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


# Labels of a metric by market of an exchange.
_MARKET = ("exchange", "market")

METRICS = (
    Metric("klinesync_info", "gauge", "Always 1; the label has the running version.", ("version",)),
    # From the exchange: streams.
    Metric("klinesync_streams", "gauge", "Followed series by the state of their stream.", ("state",)),
    Metric("klinesync_stream_frames_total", "counter", "Candles received from streams, also forming.", _MARKET),
    Metric(
        "klinesync_stream_frames_quarantined_total",
        "counter",
        "Frames that were quarantined, because they were no valid candles.",
        _MARKET,
    ),
    Metric(
        "klinesync_stream_order_flow_left_out_total",
        "counter",
        "Candles of streams that were taken without their order flow, because it was invalid.",
        _MARKET,
    ),
    Metric(
        "klinesync_stream_frames_doubted_total",
        "counter",
        "Frames that were quarantined, because their stamps were far from the exchange's time.",
        _MARKET,
    ),
    Metric(
        "klinesync_stream_closed_questioned_total",
        "counter",
        "Closed candles of frames that were checked over REST: other values are stored, or they came early.",
        (*_MARKET, "reason"),
    ),
    Metric(
        "klinesync_clock_difference_seconds",
        "gauge",
        "Stamps of frames minus REST's clock, while the two differ; else 0.",
        _MARKET,
    ),
    Metric(
        "klinesync_clock_doubted_total",
        "counter",
        "Stamps of the exchange that jumped further than the elapsed time explains, by clock: rest or frames.",
        (*_MARKET, "clock"),
    ),
    Metric(
        "klinesync_clock_set_total",
        "counter",
        "Jumps of a clock that were accepted because further stamps agreed.",
        (*_MARKET, "clock"),
    ),
    Metric("klinesync_stream_reconnects_total", "counter", "Connections that ended and were reconnected.", _MARKET),
    Metric(
        "klinesync_stream_rotations_total",
        "counter",
        "Connections that were replaced before the exchange's time limit.",
        _MARKET,
    ),
    # From the exchange: REST.
    Metric(
        "klinesync_rest_final_margin_seconds",
        "gauge",
        "Time after its end in which a row of REST may change: as configured, or as observed.",
        ("exchange",),
    ),
    Metric("klinesync_rest_requests_total", "counter", "Requests that were sent.", _MARKET),
    Metric(
        "klinesync_rest_errors_total",
        "counter",
        "Requests that failed, by HTTP status; 0 without an answer, 200 when it could not be understood.",
        (*_MARKET, "status"),
    ),
    Metric(
        "klinesync_rest_items_left_out_total",
        "counter",
        "Invalid items of answers that were left out: rows of klines, order flow of such rows, symbols, tickers.",
        (*_MARKET, "kind"),
    ),
    Metric("klinesync_rest_weight_used", "gauge", "Weight used in the exchange's current minute.", _MARKET),
    Metric("klinesync_rest_weight_limit", "gauge", "Weight that the exchange allows per minute.", _MARKET),
    Metric("klinesync_rest_under_way", "gauge", "Requests in flight.", _MARKET),
    Metric("klinesync_rest_waiting", "gauge", "Requests in the queue.", (*_MARKET, "urgency")),
    Metric(
        "klinesync_rest_blocked_seconds",
        "gauge",
        "Remaining time in which the exchange is not asked: its Retry-After, or a backoff.",
        _MARKET,
    ),
    # Histories.
    Metric("klinesync_startup_series", "gauge", "Series of the start-up sweep.", ("state",)),
    Metric("klinesync_backfill_series", "gauge", "Series with gaps that are being healed, or soon will be."),
    Metric("klinesync_backfill_gaps", "gauge", "Gaps that are being healed, or soon will be."),
    Metric("klinesync_audit_looks_total", "counter", "Reads of a series by the audit."),
    Metric("klinesync_audit_revisions_total", "counter", "Candles in which the audit found other values."),
    # Writing.
    Metric(
        "klinesync_pipeline_waiting_candles",
        "gauge",
        "Closed candles that wait for the writer, or are being written.",
        ("lane",),
    ),
    Metric("klinesync_pipeline_batches_total", "counter", "Write transactions.", ("outcome",)),
    Metric("klinesync_pipeline_batch_seconds", "histogram", "Duration of a write transaction, its wait included."),
    Metric(
        "klinesync_pipeline_candles_written_total",
        "counter",
        "Written closed candles that were new, or had other values before.",
        ("source",),
    ),
    Metric(
        "klinesync_pipeline_candles_revised_total",
        "counter",
        "Written closed candles that had other values before, or lie behind the head.",
    ),
    Metric("klinesync_store_writable", "gauge", "1 while the store can be written; 0 after a failed write."),
    Metric("klinesync_store_damaged_parts", "gauge", "Damaged parts of the store that are not healed yet."),
    Metric(
        "klinesync_store_chunks_quarantined_total",
        "counter",
        "Damaged chunks of candles that were taken out of the store, and are kept in quarantine.",
    ),
    Metric(
        "klinesync_store_chunks_healed_total",
        "counter",
        "Spans in quarantine whose candles are stored again, or settled as a gap.",
    ),
    Metric("klinesync_store_scrubs_total", "counter", "Readings of all of the store that have ended."),
    Metric(
        "klinesync_store_scrub_progress_ratio",
        "gauge",
        "Progress of the reading of all of the store, 0 to 1; 1 while none is in progress.",
    ),
    Metric(
        "klinesync_defects_total",
        "counter",
        "Unexpected exceptions, by the part of the service that they ended and restarted.",
        ("part",),
    ),
    # Factors and overlays.
    Metric("klinesync_ledgers_behind", "gauge", "Series whose factors or overlays lag behind their candles."),
    Metric(
        "klinesync_plugin_faults_total",
        "counter",
        "Failures and timeouts of factors and overlays.",
        ("plugin",),
    ),
    Metric(
        "klinesync_plugin_suspended",
        "gauge",
        "Always 1; a factor or overlay that failed repeatedly, and does not run until the next start.",
        ("plugin",),
    ),
    # From the store; read at most every 10 seconds.
    Metric("klinesync_series_stored", "gauge", "Stored series, derived ones included."),
    Metric("klinesync_series_behind", "gauge", "Followed series without the candle that is expected by now."),
    Metric(
        "klinesync_series_lag_seconds",
        "gauge",
        "Time since the close of the head, of the followed series that lags most.",
    ),
    Metric("klinesync_gaps", "gauge", "Gaps of all stored series.", ("state",)),
    Metric("klinesync_gap_candles", "gauge", "Missing candles in the gaps.", ("state",)),
    # To clients.
    Metric("klinesync_ws_clients", "gauge", "Connected WebSocket clients."),
    Metric("klinesync_ws_subscriptions", "gauge", "Subscriptions of all WebSocket clients."),
    Metric("klinesync_ws_outbox_messages", "gauge", "Messages that wait for all clients together."),
    Metric("klinesync_ws_outbox_bytes", "gauge", "Bytes of the messages that wait for clients."),
    Metric("klinesync_ws_messages_total", "counter", "Messages that were queued for clients."),
    Metric("klinesync_ws_slow_clients_total", "counter", "Clients that were closed with 1013 for reading too slowly."),
)
_BY_NAME = {metric.name: metric for metric in METRICS}


class Durations:
    """A histogram of durations; `observe` costs some hundred nanoseconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative buckets in the form of Prometheus: the upper bound, and the number of durations up to it."""
        bounds = [*map(str, DURATION_BOUNDS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class Reading(NamedTuple):
    """The value of a metric for one combination of label values."""

    name: str
    value: float | Durations
    labels: tuple[str, ...] = ()


class MetricsPage:
    """Renders the readings of `read`, and the metrics of the process, as Prometheus' text."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Readings(read))

    def text(self) -> bytes:
        """The page, in `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def describe(self) -> Sequence[Family]:
        """Empty; otherwise the registry would collect all values to learn the names."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Every metric with a value, in the order of `METRICS`."""
        by_name: dict[str, list[Reading]] = {name: [] for name in _BY_NAME}
        for reading in self._read():
            by_name[reading.name].append(reading)
        return [family(_BY_NAME[name], readings) for name, readings in by_name.items() if readings]


def family(metric: Metric, readings: Iterable[Reading]) -> Family:
    """The readings of one metric as a metric family of Prometheus' library."""
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for reading in readings:
            assert isinstance(reading.value, Durations), metric.name
            histogram.add_metric(reading.labels, reading.value.buckets(), reading.value.sum_s)
        return histogram
    numbers = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
        metric.name, metric.meaning, labels=metric.labels
    )
    for reading in readings:
        assert isinstance(reading.value, int | float), metric.name
        assert len(reading.labels) == len(metric.labels), metric.name
        numbers.add_metric(reading.labels, reading.value)
    return numbers
