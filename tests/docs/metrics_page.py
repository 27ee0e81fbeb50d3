"""docs/reference/metrics.md, made from the code."""

from __future__ import annotations

from pathlib import Path

import generated
from prometheus_client import CollectorRegistry, ProcessCollector

from klinesync.core.gaps import GapState
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.exchange import Urgency
from klinesync.market.tuning import STORE_FACTS_TTL_S
from klinesync.runtime.bulkheads import Part
from klinesync.runtime.exchange_clock import FRAMES, REST
from klinesync.runtime.metrics import DURATION_BOUNDS_S, METRICS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

HEAD = f"""# Metrics

`GET /metrics` is Prometheus' text; [how to scrape the service, and what is worth an
alert](../how-to/watch-the-service.md). Values are read when Prometheus asks; what is counted in the store (series,
gaps, lag) is up to {STORE_FACTS_TTL_S:g} s old. Counters begin at 0 when the service starts. A metric without a value
(no exchange was asked yet, the audit is off) is left out.

"""


def _values(values: object) -> str:
    assert isinstance(values, list | tuple)
    return ", ".join(f"`{value}`" for value in values)


# By label: the meaning of its values, or all of its values.
LABELS: dict[str, str] = {
    "clock": f"{_values((REST, FRAMES))}: the time that REST tells, and the stamps of frames",
    "exchange": "name of the exchange, as in a series_id",
    "kind": "what was left out: `kline`, `symbol` or `ticker`",
    "lane": "`live`: candles of streams; `bulk`: history, imports and HTTP",
    "market": "`spot` or `futures`; `all`: the markets of the exchange share one REST",
    "outcome": "`written` or `failed`",
    "part": _values([part.value for part in Part]),
    "plugin": "name of the factor or overlay",
    "reason": "`early`: the frame closed the candle before its end; `values`: other values are stored",
    "source": "`stream`, `rest`, `audit`, `http`, `derived`, or the name of a source of files",
    "state": f"of a stream: {_values([state.value for state in StreamState])}; of a gap: "
    f"{_values([state.value for state in GapState])}; of the start-up sweep: `waiting`, `done`, `refused`",
    "status": "HTTP status; `0` without an answer, `200` for an answer that could not be understood",
    "urgency": _values([urgency.name.lower() for urgency in Urgency]),
    "version": "version of klinesync",
}


def page() -> str:
    """The text of the page."""
    rows = [
        (f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "–", metric.meaning)
        for metric in METRICS
    ]
    bounds = ", ".join(f"{bound:g}" for bound in DURATION_BOUNDS_S)
    return (
        HEAD
        + generated.table(("metric", "type", "labels", "meaning"), rows)
        + f"\nUpper bounds of the buckets of histograms, in seconds: {bounds}.\n"
        + "\n## Labels\n\n"
        + generated.table(("label", "values"), [(f"`{label}`", LABELS[label]) for label in sorted(_labels())])
        + "\n## The process\n\nOn Linux, from Prometheus' own library:\n\n"
        + generated.table(("metric", "type", "meaning"), _of_the_process())
    )


def _labels() -> set[str]:
    return {label for metric in METRICS for label in metric.labels}


def _of_the_process() -> list[tuple[str, str, str]]:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return [
        (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation)
        for family in registry.collect()
    ]
