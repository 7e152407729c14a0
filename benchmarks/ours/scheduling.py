"""The scheduling part of a scoring job: chunks through our pipeline to workers that sleep, their parts written."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import ray

from benchmarks.meter import answer, memory_mb
from benchmarks.ours.sleeping import STEP, NamingReader, SleepingScorer
from cflow_ray.config import ScoreConfig
from cflow_ray.score.plan import Span
from cflow_ray.score.run import pipeline
from cflow_ray.score.spans import Pending

_RECORDS = 64
_SHARD_CHUNKS = 157  # of 10,048 records, as `pack` makes them of images of 25 kB


def measure(workers: int, step: float, chunks: int) -> dict[str, Any]:
    """Efficiency of so many workers from the moment when all are at work to the last part: sleeping of all time."""
    os.environ |= {"RAY_worker_niceness": "0", STEP: str(step)}  # Ray's niceness is 15
    arguments = {"num_cpus": workers + 1, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", logging_level="ERROR", **arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(folder, workers, step, chunks)
    finally:
        ray.shutdown()


def _measured(folder: str, workers: int, step: float, chunks: int) -> dict[str, Any]:
    firsts = range(0, chunks * _RECORDS, _RECORDS)
    shards = [firsts[at : at + _SHARD_CHUNKS] for at in range(0, chunks, _SHARD_CHUNKS)]
    whole = tuple(Span(f"night-{number:06d}", tuple(shard)) for number, shard in enumerate(shards))
    spans = Pending(whole, frozenset(), chunks, 0).spans(workers)
    config = ScoreConfig(inputs=("in",), registry="registry", output=folder, chunk_records=_RECORDS)
    start = time.time()
    rows = list(pipeline(spans, config, "plan", (workers, workers), NamingReader, SleepingScorer).iter_rows())
    firsts_of: dict[int, float] = {}
    for row in rows:  # by the workers' clocks: the driver sees rows later
        firsts_of[row["worker"]] = min(row["ended"], firsts_of.get(row["worker"], row["ended"]))
    if len(rows) != chunks or len(firsts_of) != workers:
        raise SystemExit(f"{len(rows)} of {chunks} chunks by {len(firsts_of)} of {workers} workers")
    begun = max(firsts_of.values())
    after = sum(row["ended"] > begun for row in rows)
    wall = max(row["ended"] for row in rows) - begun
    return {
        "workers": workers,
        "step": step,
        "chunks": after,
        "wall": round(wall, 3),
        "start_up": round(begun - start, 2),
        "chunks_per_second": round(after / wall, 2),
        "efficiency": round(after * step / (workers * wall), 4),
        "driver_peak_mb": memory_mb("VmHWM"),
    }


if __name__ == "__main__":
    answer(measure)
