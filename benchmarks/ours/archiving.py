"""Our scoring job from the plan to the last row: its parts told apart, and what its processes hold."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.meter import answer, memory_mb
from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Wall seconds of `score`, when its first chunk was finished, images/s from then on, and peak MB of its processes."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15; what a job is compared with has 0
    watch = _Watch()
    settings = ScoreConfig.model_validate(config)
    summary = score(settings, watch)
    wall = watch.passed()
    if summary.errors:
        raise SystemExit(f"rows with error: {summary.errors_by_kind}")
    after_first = summary.rows - watch.first_chunks * settings.chunk_records
    figures = {
        "rows": summary.rows,
        "wall": round(wall, 2),
        "first_chunk": round(watch.first, 2),
        "images_per_second": round(after_first / (watch.last - watch.first), 3),
        "seconds_by_stage": {stage: round(seconds, 2) for stage, seconds in summary.seconds_by_stage.items()},
        "driver_peak_mb": memory_mb("VmHWM"),
        "worker_peak_mb": watch.worker_mb,
        "spilled_files": watch.spilled(),
    }
    ray.shutdown()
    return figures


class _Watch:
    """Notes when chunks were finished, and every two seconds the memory of the workers."""

    first = last = 0.0
    first_chunks = 0
    """Chunks that the first look found finished."""
    worker_mb = 0.0

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._looked = 0.0

    def passed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start

    def __call__(self, done: int, total: int) -> None:
        if not done:
            return
        self.last = self.passed()
        if not self.first:
            self.first, self.first_chunks = self.last, done
        if self.last - self._looked > 2 or done == total:
            self._looked = self.last
            self.worker_mb = max(self.worker_mb, _largest_worker())

    def spilled(self) -> int:
        """Files of objects that did not fit the object store's memory."""
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        return sum(1 for folder in session.glob("ray_spilled_objects*") for file in folder.rglob("*") if file.is_file())


def _largest_worker() -> float:
    """The most that one of Ray's processes that read or score has of its own, without the object store's memory, in MB."""
    peak = 0.0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "cmdline").read_bytes()
            if name.startswith(b"ray::") and (b"MapWorker" in name or b"ReadSpan" in name or b"IDLE" in name):
                peak = max(peak, memory_mb("RssAnon", int(entry.name)))
        except (OSError, KeyError):
            continue  # it has just ended
    return peak


if __name__ == "__main__":
    answer(measure)
