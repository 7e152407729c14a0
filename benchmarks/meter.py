"""What one side of a measurement needs in any environment: its settings, a meter, and a way to answer.

Only the standard library: this module is imported by both sides.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


class Meter:
    """A context that measures what happens inside: `cpu` seconds of all threads of this process, and `wall` seconds."""

    cpu = 0.0
    wall = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin a stretch."""
        _finish_what_a_gpu_was_given()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """End it; stretches add up."""
        _finish_what_a_gpu_was_given()
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall

    def as_dict(self) -> dict[str, float]:
        """The seconds as JSON."""
        return {"cpu": round(self.cpu, 4), "wall": round(self.wall, 4)}


def _finish_what_a_gpu_was_given() -> None:
    """Its kernels are only queued when torch's calls return."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory_mb(field: str, process: int | str = "self") -> float:
    """`VmRSS` (resident now), `RssAnon` (what of it is the process's own) or `VmHWM` (its peak) of a process, in MB of
    10^6 bytes.

    Not `ru_maxrss`: Linux hands that on from the parent to the processes it starts.
    """
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return round(int(lines[field].split()[0]) * 1024 / 1e6, 1)


def latencies(seconds: list[float]) -> dict[str, float]:
    """The median and the 99th percentile of what single answers took, in ms."""
    in_order = sorted(seconds)
    rare = in_order[min(len(in_order) - 1, int(0.99 * len(in_order)))]
    return {"p50_ms": round(1000 * statistics.median(in_order), 2), "p99_ms": round(1000 * rare, 2)}


def end_with_stdin() -> None:
    """Ends this process once its stdin does: how `listening` stops a server."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not `sys.stdin.read`, whose lock a process that is forked meanwhile would inherit
        pass
    os._exit(0)


def answer(measure: Callable[..., dict[str, Any]]) -> None:
    """Call a side with the settings on the command line (JSON) and print its figures as the last line of stdout."""
    figures = measure(**json.loads(sys.argv[1]))
    print(json.dumps(figures), flush=True)
