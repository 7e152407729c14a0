"""Our scoring of decoded images: one pass after a warm-up, with the features' norms as proof of the same encoder."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from benchmarks.meter import Meter, answer
from benchmarks.ours.scoring import Scorer


def measure(root: str, files: list[str], batch: int, scoring: dict[str, Any]) -> dict[str, Any]:
    """CPU and wall seconds of scoring the files' decoded images."""
    scorer = Scorer(**scoring)
    images = list(scorer.images(root, files))
    deque(scorer.findings(images[:batch], batch), maxlen=0)
    with Meter() as meter:
        deque(scorer.findings(images, batch), maxlen=0)
    encoder = scorer.registry.encoder(scorer.manifest.detector.encoder, scorer.manifest.encoder_digest)
    norms = [float(level.norm()) for level in encoder(torch.from_numpy(np.stack(images[:4])))]
    return {**meter.as_dict(), "images": len(images), "feature_norms": norms}


if __name__ == "__main__":
    answer(measure)
