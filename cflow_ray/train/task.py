"""What a run hands to its workers and gets back, one category at a time; needs neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cflow_ray.config import DetectorConfig, Promotion
from cflow_ray.data.samples import TEST, TRAIN, Sample
from cflow_ray.evaluation.figures import Metrics

Status = Literal["fitted", "reused", "failed"]


@dataclass(frozen=True)
class FitTask:
    """What a worker needs to know of one category."""

    category: str
    samples: tuple[Sample, ...]
    detector: DetectorConfig
    data_digest: str
    """Of all that the category is fitted from besides `detector`: images, weights, region of interest."""
    seeds: int = 1
    """Fits with the seeds `detector.seed`, + 1, ..."""
    workers: int = 1
    """That fit it together."""
    work: float = 0.0
    """How long it will take, relative to others (`work_of`)."""
    images_digest: str = ""
    """Of the images alone."""

    def as_dict(self) -> dict[str, Any]:
        """The task as JSON, its samples as counts."""
        return {
            "images": {split: sum(s.split == split for s in self.samples) for split in (TRAIN, TEST)},
            "detector": self.detector.model_dump(mode="json"),
            "seeds": self.seeds,
            "workers": self.workers,
        }

    def detectors(self) -> list[DetectorConfig]:
        """The configuration of the fit of every seed; all of them hold out the same images."""
        first = self.detector
        split = first.seed if first.split_seed is None else first.split_seed
        others = [{"seed": first.seed + number, "split_seed": split} for number in range(1, self.seeds)]
        return [first, *(first.model_copy(update=changes) for changes in others)]


@dataclass(frozen=True)
class FitSite:
    """Where a run reads and writes, and by which rules, the same for all its categories."""

    data_root: str
    registry: str
    storage_options: Mapping[str, Any]
    run: str = "fit"
    """The run's name; its files lie in the registry's folder `_runs/<name>`."""
    promote: Promotion = "newest"
    save_seconds: float = 60.0
    cache_bytes: int = 4 * 2**30
    """Memory of a worker for encoded features."""
    gpus: float = 0
    """A worker's share of a GPU."""
    scratch: str | None = None
    """Folder of the node for the features beyond that."""
    force: bool = False
    """Fit what is finished already."""


@dataclass(frozen=True)
class Outcome:
    """What became of a category."""

    category: str
    status: Status
    """`reused`: a finished version of the same data and configuration was there."""
    version: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    seconds: float = 0.0
    """From its first image to its last version, all seeds; a `reused` one took them when it was fitted."""
    peak_mb: float | None = None
    """Largest resident memory of the worker during this fit."""
    nll: float | None = None
    """Held-out negative log-likelihood per dimension, mean of the levels, in nats."""
    promoted: bool = False
    """Whether this version is the best now."""
    error: str | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON: the metrics by name beside the rest."""
        own = ("status", "version", "seconds", "peak_mb", "nll", "promoted", "error")
        return self.metrics.as_dict() | {name: getattr(self, name) for name in own} | {"notes": list(self.notes)}
