"""anomalib's `Engine.predict` of a folder of images, from the files to the predictions."""

from __future__ import annotations

import tempfile
from typing import Any

from anomalib.engine import Engine

from benchmarks.meter import Meter, answer
from benchmarks.peer.cflow import build, quiet


def measure(folder: str, encoder: dict[str, Any], device: str) -> dict[str, Any]:
    """Wall seconds of a prediction, without its pictures, at its default batch size."""
    quiet()
    module = build(encoder, visualizer=False)
    with tempfile.TemporaryDirectory() as results:
        engine = Engine(accelerator=device, devices=1, default_root_dir=results, enable_progress_bar=False)
        with Meter() as meter:
            predictions = engine.predict(module, data_path=folder)
    return {"images": sum(len(batch) for batch in predictions), **meter.as_dict()}


if __name__ == "__main__":
    answer(measure)
