"""Prometheus text from plain numbers, collected only when somebody scrapes.

Knows families and samples, not where they come from: a source yields :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

#: What the exporter answers with.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Family:
    """One metric: its kind (counter, gauge, histogram), labels, and samples."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    #: (label values, value), or for a histogram (label values, cumulative buckets, sum)
    samples: list[tuple] = field(default_factory=list)  # type: ignore[type-arg]

    def add(self, value: float, *labels: str) -> Family:
        """One sample of a counter or gauge."""
        self.samples.append((labels, value))
        return self

    def add_histogram(self, buckets: list[tuple[str, float]], total: float, *labels: str) -> Family:
        """One histogram: cumulative ``(upper bound, count)`` pairs and the sum."""
        self.samples.append((labels, buckets, total))
        return self


class Exporter:
    """Renders all families of its sources."""

    def __init__(self, *sources: Callable[[], Iterable[Family]]) -> None:
        self._sources = sources
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type]

    def describe(self) -> list[Metric]:
        """Nothing is known before it is collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """prometheus-client's interface."""
        for source in self._sources:
            for family in source():
                yield _metric(family)

    def render(self) -> bytes:
        """The whole page."""
        return generate_latest(self._registry)


def _metric(family: Family) -> Metric:
    metric: Metric
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, buckets, total in family.samples:
            histogram.add_metric(labels, buckets, total)
        return histogram
    if family.kind == "counter":
        metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        metric.add_metric(labels, value)  # type: ignore[attr-defined]
    return metric
