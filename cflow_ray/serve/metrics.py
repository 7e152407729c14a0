"""What a replica counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SCORES = tuple(tenth / 10 for tenth in range(1, 11))
_P_VALUES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
STAGES = ("read", "decode", "wait", "model", "judge")


class Metrics(Collector):
    """The metrics of one replica, every sample labelled with its name.

    A scrape reaches one replica of several; the label keeps its counters apart from the others', so that
    `sum without (replica) (rate(...))` is right whichever answered.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("cflow_ray_requests", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "cflow_ray_request_seconds", "From arrival to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.problems = Counter(
            "cflow_ray_problems", "Requests and images refused, by kind of problem", ["kind"], registry=registry
        )
        self.stage_seconds = Histogram(
            "cflow_ray_stage_seconds", "Of one image", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("cflow_ray_images", "Images scored", ["category"], registry=registry)
        self.anomalies = Counter("cflow_ray_anomalies", "Images called an anomaly", ["category"], registry=registry)
        self.scores = Histogram("cflow_ray_score", "Scores of images", ["category"], buckets=_SCORES, registry=registry)
        self.p_values = Histogram(
            "cflow_ray_p_value", "Their p-values", ["category"], buckets=_P_VALUES, registry=registry
        )
        self.batch_images = Histogram(
            "cflow_ray_batch_images", "Images of one pass", buckets=_BATCHES, registry=registry
        )
        self.reloads = Counter(
            "cflow_ray_reloads", "Moved pointers, by whether they were taken over", ["outcome"], registry=registry
        )
        self._gauges = {
            name: Gauge(f"cflow_ray_{name}", text, registry=registry)
            for name, text in {
                "images_in_hand": "Images let in and not answered",
                "images_waiting": "Of these, images that wait for the model",
                "detectors_loaded": "Detectors in memory",
                "detector_bytes": "Their memory",
                "categories_served": "Categories that can be scored",
                "checkpoints_refused": "Categories whose promoted version does not load",
                "registry_reachable": "1 if the registry could be read at the last try",
            }.items()
        }
        for outcome in ("taken_over", "refused"):
            self.reloads.labels(outcome)

    def watch(self, **values: Callable[[], float]) -> None:
        """Take the gauges' values from here whenever they are asked for."""
        for name, value in values.items():
            self._gauges[name].set_function(value)

    def reloaded(self, taken_over: bool) -> None:
        """Count a moved pointer."""
        self.reloads.labels("taken_over" if taken_over else "refused").inc()

    def collect(self) -> Iterable[Metric]:
        """The families, every sample with the replica's name."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "replica": self._replica})
                for sample in family.samples
                if not sample.name.endswith("_created")  # a series more for each, which no one here asks for
            ]
            yield family

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self)
