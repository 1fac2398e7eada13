"""Figures of the service, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

__all__ = ["Metrics"]

LATENCIES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # upper ends of the histograms' bins


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which tells nothing here


class Metrics:
    """All figures; each product is a label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        in_registry, product = self.registry, ("product",)
        self.parts = Counter(
            "uflow_parts",
            "Parts by what became of them: good, look, reject (flagged), failed (not judged)",
            ("product", "verdict"),
            registry=in_registry,
        )
        self.refused = Counter(
            "uflow_refused", "Requests refused, by HTTP status", ("product", "status"), registry=in_registry
        )
        self.not_stored = Counter(
            "uflow_not_stored", "Parts judged that the disk did not take", product, registry=in_registry
        )
        self.latency = Histogram(
            "uflow_request_seconds",
            "From accepting a part until its verdict",
            product,
            registry=in_registry,
            buckets=LATENCIES_S,
        )
        self.judging = Histogram(
            "uflow_judge_seconds", "Judging alone", product, registry=in_registry, buckets=LATENCIES_S
        )
        self.queue = Gauge("uflow_queue_parts", "Parts accepted and not yet judged", product, registry=in_registry)
        self.wealth = Gauge(
            "uflow_drift_log10_wealth",
            "The monitor of p-values: the line has changed where this reaches about 2",
            product,
            registry=in_registry,
        )
        self.alarm = Gauge("uflow_drift_alarm", "1 where the line has changed", product, registry=in_registry)
        self.ready = Gauge("uflow_ready", "1 where the product's model serves", product, registry=in_registry)
        self.model_trouble = Gauge(
            "uflow_model_trouble", "1 where a changed model could not be taken over", product, registry=in_registry
        )
        self.store_trouble = Gauge(
            "uflow_store_trouble", "1 where the disk did not take the last part", registry=in_registry
        )
        self.disk_free = Gauge("uflow_disk_free_bytes", "Free where the service stores", registry=in_registry)
        self.pictures = Gauge("uflow_pictures_bytes", "Pictures that are kept", registry=in_registry)
        self.outbox = Gauge("uflow_outbox_messages", "Messages not yet delivered", ("sink",), registry=in_registry)
        self.sent = Counter("uflow_messages_sent", "Messages delivered", ("sink",), registry=in_registry)
        self.send_failures = Counter(
            "uflow_message_failures", "Tries to send a message that failed", ("sink",), registry=in_registry
        )
        self.dropped = Counter(
            "uflow_messages_dropped",
            "Messages never delivered: too many waited, or the sink refused them",
            ("sink",),
            registry=in_registry,
        )
        self.files = Gauge(
            "uflow_watched_files", "Files in a watched folder that are not yet judged", product, registry=in_registry
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
