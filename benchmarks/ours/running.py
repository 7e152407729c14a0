"""Our run of a whole data set through Ray Train: what it takes, its parts told apart, and what its processes hold."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.meter import answer, memory_mb
from cflow_ray.config import FitConfig
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.run import fit


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Wall seconds of `fit` and its parts, seconds of every category, peak MB of this driver and of the queue's actor."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15; what a run is compared with has 0
    before = memory_mb("VmRSS")
    watch = _Watch()
    outcomes = fit(FitConfig.model_validate(config), watch)
    wall = watch.passed()
    failed = [f"{outcome.category}: {outcome.error}" for outcome in outcomes if outcome.status != "fitted"]
    if failed:
        raise SystemExit("; ".join(failed[:3]))
    peaks = [outcome.peak_mb for outcome in outcomes if outcome.peak_mb is not None]
    return {
        "wall": round(wall, 2),
        "start_up": round(watch.first_taken, 2),
        "last_taken": round(watch.last_taken, 2),
        "last_finished": round(watch.last_finished, 2),
        "fits": {outcome.category: outcome.seconds for outcome in outcomes},
        "driver_before_mb": before,
        "driver_peak_mb": memory_mb("VmHWM"),
        "queue_peak_mb": watch.queue_mb,
        "worker_peak_mb": max(peaks, default=None),
    }


class _Watch:
    """Notes when a run, which looks twice a second, was seen to pass its stages."""

    first_taken = 0.0
    last_taken = 0.0
    """When nothing waited any more."""
    last_finished = 0.0
    queue_mb = 0.0

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._finished = 0

    def passed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start

    def __call__(self, status: QueueStatus) -> None:
        self.queue_mb = max(self.queue_mb, _queue_mb())
        if not self.first_taken and (status.in_hand or status.outcomes):
            self.first_taken = self.passed()
        if self.first_taken and not self.last_taken and not status.waiting:
            self.last_taken = self.passed()
        if len(status.outcomes) > self._finished:
            self._finished, self.last_finished = len(status.outcomes), self.passed()


def _queue_mb() -> float:
    """Peak of the process that holds this driver's queue; 0 before there is one."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::CategoryQueue" in (entry / "cmdline").read_bytes() and _descends(int(entry.name)):
                return memory_mb("VmHWM", int(entry.name))
    return 0.0


def _descends(process: int) -> bool:
    """Whether a process is one of those that this one's cluster has started."""
    while process not in (0, 1, os.getpid()):
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == os.getpid()


if __name__ == "__main__":
    answer(measure)
