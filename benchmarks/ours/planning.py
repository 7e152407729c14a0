"""What the driver of a scoring job holds and takes before the first chunk: plan, ledger of finished parts, spans."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.meter import answer, memory_mb
from cflow_ray.config import ScoreConfig
from cflow_ray.score.plan import plan_job
from cflow_ray.score.spans import pending
from cflow_ray.store.results import PartName, finished_parts
from cflow_ray.store.storage import Storage


def measure(config: dict[str, Any], finished: int, workers: int) -> dict[str, Any]:
    """Seconds of a first plan and of a rerun that finds so many parts finished, and the peak MB of this process."""
    settings = ScoreConfig.model_validate(config)
    output = Storage(settings.output)
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    plan = plan_job(settings, output)
    planned = time.perf_counter() - start
    _finish(settings, [shard.id for shard in plan.shards], [shard.records or 0 for shard in plan.shards], finished)
    start = time.perf_counter()
    plan = plan_job(settings, output)
    rest = pending(plan, finished_parts(output), frozenset(), output)
    spans = rest.spans(workers)
    return {
        "chunks": rest.chunks,
        "due": rest.due,
        "spans": len(spans),
        "shards": len(plan.shards),
        "plan_s": round(planned, 2),
        "rerun_s": round(time.perf_counter() - start, 2),
        "before_mb": before,
        "driver_peak_mb": memory_mb("VmHWM"),
    }


def _finish(config: ScoreConfig, shards: list[str], records: list[int], count: int) -> None:
    """Put the names of finished parts where the job looks for them."""
    output = Storage(config.output)
    for shard, length in zip(shards, records, strict=True):
        for first in range(0, length, config.chunk_records):
            if count <= 0:
                return
            output.write(PartName(shard, first).path, b"")
            count -= 1


if __name__ == "__main__":
    answer(measure)
