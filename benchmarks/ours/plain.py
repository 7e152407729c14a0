"""The loop that an archive job is held against: local files decoded and scored, one process a core, nothing written."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks.meter import answer
from benchmarks.ours.scoring import Scorer


def measure(root: str, files: list[str], batch: int, scoring: dict[str, Any], processes: int) -> dict[str, float]:
    """Images a second of all processes together, each with its share of the files; their starts do not count."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    shares = [files[number::processes] for number in range(processes)]
    started = [context.Process(target=_loop, args=(ready, root, share, batch, scoring)) for share in shares]
    for process in started:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for process in started:
        process.join()
    wall = time.perf_counter() - start
    if any(process.exitcode for process in started):
        raise SystemExit("a loop failed")
    return {"images": len(files), "wall": round(wall, 2), "images_per_second": round(len(files) / wall, 3)}


def _loop(ready: Barrier, root: str, files: list[str], batch: int, scoring: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    scorer = Scorer(**scoring)
    deque(scorer.findings(scorer.images(root, files[:batch]), batch), maxlen=0)
    ready.wait()
    deque(scorer.findings(scorer.images(root, files), batch), maxlen=0)


if __name__ == "__main__":
    answer(measure)
