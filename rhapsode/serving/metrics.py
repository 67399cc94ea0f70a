"""GET /metrics: what the server has done and is doing, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rhapsode.serving.models import Models
from rhapsode.serving.records import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
UNKNOWN = "other"
"""Stands for paths that are no routes: what clients make up must not become labels."""


class Metrics:
    """Counts requests."""

    def __init__(self, models: Models) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._names = frozenset(served.name for served in models)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("rhapsode_requests", "Requests answered.", ("path", "status"), registry=registry)
        self._seconds = Histogram(
            "rhapsode_request_seconds", "From a request to the end of its answer.", ("path",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "rhapsode_first_token_seconds", "From a request to its first token.", ("model",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "rhapsode_tokens", "Tokens by what was done with them.", ("model", "kind"), registry=registry
        )
        registry.register(_Engines(models))
        ProcessCollector(registry=registry)

    def count(self, record: Record) -> None:
        """Count a request that is over."""
        path = record.route or UNKNOWN
        self._requests.labels(path, str(record.status or 0)).inc()
        self._seconds.labels(path).observe(record.seconds())
        if record.model not in self._names:
            return
        if record.first_token is not None:
            self._first.labels(record.model).observe(record.first_token)
        for kind in ("prompt", "cached", "completion"):
            self._tokens.labels(record.model, kind).inc(getattr(record, f"{kind}_tokens"))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """What the engines are doing when they are asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        families = {
            "rhapsode_texts_waiting": "Texts that wait for their turn.",
            "rhapsode_texts_running": "Texts that are being written.",
            "rhapsode_cache_used": "Share of the cache's blocks that texts hold.",
            "rhapsode_model_bytes": "Memory that a model takes, with its cache; 0 when it is not loaded.",
        }
        gauges = {name: GaugeMetricFamily(name, told, labels=["model"]) for name, told in families.items()}
        for served in self._models:
            gauges["rhapsode_model_bytes"].add_metric([served.name], served.taken)
            engine = served.worker.engine if served.worker is not None else None
            if engine is not None:
                gauges["rhapsode_texts_waiting"].add_metric([served.name], engine.waiting)
                gauges["rhapsode_texts_running"].add_metric([served.name], engine.running)
                gauges["rhapsode_cache_used"].add_metric([served.name], engine.pool.held / engine.pool.count)
        return gauges.values()
