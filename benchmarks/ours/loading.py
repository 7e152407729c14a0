"""Our loading of a detector: from a registry on local disk to weights folded for torch, before any runtime compiles them."""

from __future__ import annotations

import cflow_ray.store.checkpoint  # noqa: F401  the registry imports it, and torch with it, for its first detector
from benchmarks.meter import Meter, answer
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage


def measure(registry: str, category: str) -> dict[str, float]:
    """CPU and wall seconds of `Registry.detector`; the encoder and Python's imports, which both sides need, are left out."""
    opened = Registry(Storage(registry))
    version = opened.best(category)
    with Meter() as meter:
        detector = opened.detector(category, version)
    return {**meter.as_dict(), "mb": round(detector.bytes / 1e6, 1)}


if __name__ == "__main__":
    answer(measure)
