"""What a server is held against: decoding and the bank in this process, one image at a time and in batches."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.meter import answer, latencies
from cflow_ray.config import Runtime
from cflow_ray.data.images import prepare
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage


def measure(
    registry: str, files: list[str], batch: int, seconds: float, cores: int, runtime: Runtime
) -> dict[str, Any]:
    """Latency of one image in ms and images a second of batches, the categories in turn, with so many torch threads."""
    torch.set_num_threads(cores)
    known = Registry(Storage(registry))
    bank = known.bank(runtime=runtime)
    keys = [(category, known.best(category)) for category in known.categories()]
    inputs = {key: bank.detector(key).config.input for key in keys}
    images = [Path(file).read_bytes() for file in files]
    work = itertools.cycle((keys[n % len(keys)], images[n % len(images)]) for n in range(len(keys) * len(images)))

    def passes(size: int) -> list[float]:
        taken, end = [], time.perf_counter() + 4 * seconds / 3
        while (start := time.perf_counter()) < end:
            chosen = list(itertools.islice(work, size))
            pixels = [prepare(content, inputs[key]).pixels_3HW for key, content in chosen]
            bank.score_batch(pixels, [key for key, _ in chosen])
            if start > end - seconds:
                taken.append(time.perf_counter() - start)
        return taken

    singles, batches = passes(1), passes(batch)
    return {"images_per_second": round(batch * len(batches) / sum(batches), 3), **latencies(singles)}


if __name__ == "__main__":
    answer(measure)
