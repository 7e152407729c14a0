"""anomalib's memory while predicting a folder: the peak of the process, everything loaded included."""

from __future__ import annotations

import tempfile
from typing import Any

from anomalib.engine import Engine

from benchmarks.meter import answer, memory_mb
from benchmarks.peer.cflow import build, quiet


def measure(folder: str, encoder: dict[str, Any], device: str) -> dict[str, Any]:
    """Resident MB before the first image and at the peak of `Engine.predict(data_path=...)`, without its pictures."""
    quiet()
    module = build(encoder, visualizer=False)
    with tempfile.TemporaryDirectory() as results:
        engine = Engine(accelerator=device, devices=1, default_root_dir=results, enable_progress_bar=False)
        before = memory_mb("VmRSS")
        predictions = engine.predict(module, data_path=folder)
        peak = memory_mb("VmHWM")
    return {"images": sum(len(batch) for batch in predictions), "before_mb": before, "peak_mb": peak}


if __name__ == "__main__":
    answer(measure)
