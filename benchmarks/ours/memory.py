"""Our memory while scoring a stream of images: the peak of the process, everything loaded included."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks.meter import answer, memory_mb
from benchmarks.ours.scoring import Scorer


def measure(root: str, files: list[str], batch: int, scoring: dict[str, Any]) -> dict[str, float]:
    """Resident MB before the first image and at the peak."""
    scorer = Scorer(**scoring)
    before = memory_mb("VmRSS")
    deque(scorer.findings(scorer.images(root, files), batch), maxlen=0)
    return {"images": len(files), "before_mb": before, "peak_mb": memory_mb("VmHWM")}


if __name__ == "__main__":
    answer(measure)
