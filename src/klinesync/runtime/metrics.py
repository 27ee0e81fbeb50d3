"""The metrics: each has a name, a kind, a meaning and labels here, and its value is read when somebody asks.

What is counted is a plain number at its owner; nothing of Prometheus runs where candles do.
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

# Upper bounds of durations, in seconds: a commit on a quick disk takes 1 ms, on a busy one some 100.
DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. Units are in the name; a counter's ends in `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric("klinesync_info", "gauge", "Always 1; which version runs.", ("version",)),
    # From the exchange: streams.
    Metric("klinesync_streams", "gauge", "Followed series by the state of their stream.", ("state",)),
    Metric("klinesync_stream_frames_total", "counter", "Candles that streams brought, also forming.", ("market",)),
    Metric(
        "klinesync_stream_frames_quarantined_total",
        "counter",
        "Frames that were no candles, and left out.",
        ("market",),
    ),
    Metric(
        "klinesync_stream_frames_doubted_total",
        "counter",
        "Frames that were stamped far from the exchange's time, and left out.",
        ("market",),
    ),
    Metric(
        "klinesync_stream_closed_questioned_total",
        "counter",
        "Closed candles of frames that REST decides about: other values are stored, or they came before their end.",
        ("market", "reason"),
    ),
    Metric(
        "klinesync_clock_difference_seconds",
        "gauge",
        "How far the stamps of frames are ahead of REST's clock, while the two differ; else 0.",
        ("exchange", "market"),
    ),
    Metric(
        "klinesync_clock_doubted_total",
        "counter",
        "Stamps of the exchange that time does not explain, by clock: rest or frames.",
        ("exchange", "market", "clock"),
    ),
    Metric(
        "klinesync_clock_set_total",
        "counter",
        "Times that a clock was set further than time explains, as others bore it out.",
        ("exchange", "market", "clock"),
    ),
    Metric("klinesync_stream_reconnects_total", "counter", "Connections that ended and were made anew.", ("market",)),
    Metric(
        "klinesync_stream_rotations_total",
        "counter",
        "Connections that were replaced before the exchange ends them.",
        ("market",),
    ),
    # From the exchange: REST.
    Metric(
        "klinesync_rest_final_margin_seconds",
        "gauge",
        "How long after its end a row of REST may change: as configured, or as far as was seen.",
        ("exchange",),
    ),
    Metric("klinesync_rest_requests_total", "counter", "Requests that were sent.", ("market",)),
    Metric(
        "klinesync_rest_errors_total",
        "counter",
        "Requests that failed, by HTTP status; 0 without an answer, 200 when it could not be understood.",
        ("market", "status"),
    ),
    Metric(
        "klinesync_rest_items_left_out_total",
        "counter",
        "Items of answers that could not be used and were left out: rows of klines, symbols, tickers.",
        ("market", "kind"),
    ),
    Metric("klinesync_rest_weight_used", "gauge", "Weight used in the exchange's present minute.", ("market",)),
    Metric("klinesync_rest_weight_limit", "gauge", "Weight that the exchange allows in a minute.", ("market",)),
    Metric("klinesync_rest_under_way", "gauge", "Requests that wait for their answer.", ("market",)),
    Metric("klinesync_rest_waiting", "gauge", "Requests that wait for their turn.", ("market", "urgency")),
    Metric(
        "klinesync_rest_blocked_seconds",
        "gauge",
        "How long the exchange wants to be left alone, from now on.",
        ("market",),
    ),
    # Histories.
    Metric("klinesync_startup_series", "gauge", "Series of the start-up sweep.", ("state",)),
    Metric("klinesync_backfill_series", "gauge", "Series with gaps that are being healed, or soon will be."),
    Metric("klinesync_backfill_gaps", "gauge", "Gaps that are being healed, or soon will be."),
    Metric("klinesync_audit_looks_total", "counter", "Series that the audit has read again."),
    Metric("klinesync_audit_revisions_total", "counter", "Candles that the audit found to differ."),
    # Writing.
    Metric(
        "klinesync_pipeline_waiting_candles",
        "gauge",
        "Closed candles that wait for the writer, or are being written.",
        ("lane",),
    ),
    Metric("klinesync_pipeline_batches_total", "counter", "Write transactions.", ("outcome",)),
    Metric("klinesync_pipeline_batch_seconds", "histogram", "How long a write transaction took, its wait included."),
    Metric(
        "klinesync_pipeline_candles_written_total",
        "counter",
        "Closed candles that were new, or had other values before.",
        ("source",),
    ),
    Metric(
        "klinesync_pipeline_candles_revised_total",
        "counter",
        "Those of them that had other values before, or lie behind the head.",
    ),
    Metric("klinesync_store_writable", "gauge", "1 while the store can be written; 0 after a write that failed."),
    Metric(
        "klinesync_defects_total",
        "counter",
        "Exceptions that nobody expected, by the part of the service that they ended and that began again.",
        ("part",),
    ),
    # Factors and overlays.
    Metric("klinesync_ledgers_behind", "gauge", "Series whose factors or overlays lag behind their candles."),
    Metric(
        "klinesync_plugin_faults_total",
        "counter",
        "Times that a factor or overlay failed, or took too long.",
        ("plugin",),
    ),
    Metric(
        "klinesync_plugin_suspended",
        "gauge",
        "Always 1; a factor or overlay that failed again and again: it does not run until the next start.",
        ("plugin",),
    ),
    # What is stored; read at most every some seconds.
    Metric("klinesync_series_stored", "gauge", "Series that the store holds, derived ones included."),
    Metric("klinesync_series_behind", "gauge", "Followed series without the candle that is expected by now."),
    Metric("klinesync_series_lag_seconds", "gauge", "Since the head closed, of the followed series that lags most."),
    Metric("klinesync_gaps", "gauge", "Gaps of all stored series.", ("state",)),
    Metric("klinesync_gap_candles", "gauge", "Candles that are missing in them.", ("state",)),
    # To clients.
    Metric("klinesync_ws_clients", "gauge", "Connected WebSocket clients."),
    Metric("klinesync_ws_subscriptions", "gauge", "Their subscriptions."),
    Metric("klinesync_ws_outbox_messages", "gauge", "Messages that wait for clients, of all together."),
    Metric("klinesync_ws_outbox_bytes", "gauge", "Bytes of them."),
    Metric("klinesync_ws_messages_total", "counter", "Messages that were queued for clients."),
    Metric("klinesync_ws_slow_clients_total", "counter", "Clients that were closed with 1013: they read too slowly."),
)
_BY_NAME = {metric.name: metric for metric in METRICS}


class Durations:
    """A histogram of durations; `observe` costs some hundred nanoseconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, and how many were not longer; as Prometheus has it."""
        bounds = [*map(str, DURATION_BOUNDS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class Reading(NamedTuple):
    """The value of a metric now, for one value of each of its labels."""

    name: str
    value: float | Durations
    labels: tuple[str, ...] = ()


class MetricsPage:
    """Renders what `read` gives, and what is known of the process, as Prometheus' text."""

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
        """Nothing: else the registry would read at once, to learn the names."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Every metric that was read, in the order of `METRICS`."""
        found: dict[str, list[Reading]] = {name: [] for name in _BY_NAME}
        for reading in self._read():
            found[reading.name].append(reading)
        return [family(_BY_NAME[name], readings) for name, readings in found.items() if readings]


def family(metric: Metric, readings: Iterable[Reading]) -> Family:
    """The readings of one metric, as Prometheus' library has them."""
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
