"""The table of metrics, histograms, and the rendered page."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from klinesync.runtime.metrics import DURATION_BOUNDS_S, METRICS, Durations, MetricsPage, Reading


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"klinesync_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_ms", "_s", "_count", "_sum")), metric.name
        assert metric.meaning.endswith(".")


def test_a_duration_counts_in_every_bucket_that_it_fits_into() -> None:
    durations = Durations()
    for seconds in (0.0, 0.001, 0.0011, 9.9, 11.0):
        durations.observe(seconds)
    buckets = dict(durations.buckets())
    assert buckets["0.001"] == 2
    assert buckets["0.0025"] == 3
    assert buckets["5.0"] == 3
    assert buckets["10.0"] == 4
    assert buckets["+Inf"] == 5
    assert durations.sum_s == pytest.approx(20.9021)
    assert len(buckets) == len(DURATION_BOUNDS_S) + 1


def test_the_page_has_the_readings_and_the_metrics_of_the_process() -> None:
    durations = Durations()
    durations.observe(0.3)

    def read() -> list[Reading]:
        return [
            Reading("klinesync_streams", 3, ("live",)),
            Reading("klinesync_streams", 1, ("stale",)),
            Reading("klinesync_rest_errors_total", 2, ("binance", "spot", "429")),
            Reading("klinesync_pipeline_batch_seconds", durations),
        ]

    page = MetricsPage(read)
    families = {family.name: family for family in text_string_to_metric_families(page.text().decode())}
    assert {(sample.labels["state"], sample.value) for sample in families["klinesync_streams"].samples} == {
        ("live", 3.0),
        ("stale", 1.0),
    }
    (error,) = families["klinesync_rest_errors"].samples
    assert (error.name, error.labels, error.value) == (
        "klinesync_rest_errors_total",
        {"exchange": "binance", "market": "spot", "status": "429"},
        2.0,
    )
    histogram = {
        (sample.name, sample.labels.get("le")): sample.value
        for sample in families["klinesync_pipeline_batch_seconds"].samples
    }
    assert histogram["klinesync_pipeline_batch_seconds_bucket", "0.25"] == 0
    assert histogram["klinesync_pipeline_batch_seconds_bucket", "0.5"] == 1
    assert histogram["klinesync_pipeline_batch_seconds_count", None] == 1
    assert histogram["klinesync_pipeline_batch_seconds_sum", None] == pytest.approx(0.3)
    assert "process_resident_memory_bytes" in families
    assert "klinesync_gaps" not in families, "what is not known is not told"


def test_values_are_read_at_the_scrape() -> None:
    def read() -> list[Reading]:
        raise AssertionError("it was read")

    MetricsPage(read)


def test_a_metric_that_is_not_in_the_table_is_a_defect() -> None:
    with pytest.raises(KeyError):
        MetricsPage(lambda: [Reading("klinesync_unheard_of", 1)]).text()
    with pytest.raises(AssertionError):
        MetricsPage(lambda: [Reading("klinesync_streams", 1)]).text()
