"""Counters and times of a server, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fact_jax.serving.server.batcher import BatchRun

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms behind /metrics. Each server has its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "factjax_requests",
            "Requests answered.",
            ["route", "status"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "factjax_request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_images = Histogram(
            "factjax_batch_images",
            "Images of a batch.",
            buckets=_IMAGES,
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "factjax_batch_seconds",
            "Seconds of a batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def show(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a number that is read whenever the metrics are."""
        Gauge(f"factjax_{name}", text, registry=self._registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batch(self, run: BatchRun) -> None:
        """Counts a batch."""
        self._batch_images.observe(run.images)
        self._batch_seconds.observe(run.seconds)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
