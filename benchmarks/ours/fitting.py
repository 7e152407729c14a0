"""Our fit of one category, from files to a promoted checkpoint, without Ray and without test images."""

from __future__ import annotations

from typing import Any

from benchmarks.meter import Meter, answer
from cflow_ray.config import DataConfig, DetectorConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.samples import TRAIN
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.task import FitSite, FitTask


def fit(root: str, category: str, registry: str, detector: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Fit and promote; the meter runs from reading the encoder's weights to writing the checkpoint."""
    samples = read_data_set(DataConfig(data=root), {}).of(category, TRAIN)
    task = FitTask(category, tuple(samples), DetectorConfig.model_validate(detector), data_digest="")
    Registry.create(Storage(registry))
    with Meter() as meter:
        outcome = fit_category(task, FitSite(root, registry, {}, gpus=float(device != "cpu")), lambda progress: None)
    if outcome.version is None:
        raise SystemExit(outcome.error)
    return {**meter.as_dict(), "version": outcome.version, "images": len(samples)}


if __name__ == "__main__":
    answer(fit)
