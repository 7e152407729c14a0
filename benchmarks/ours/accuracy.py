"""AUROC of a fitted category on its test images, scored through the bank."""

from __future__ import annotations

from typing import Any

from benchmarks.auroc import Truth
from benchmarks.meter import answer
from benchmarks.ours.scoring import Scorer

_BATCH = 32


def measure(root: str, scoring: dict[str, Any]) -> dict[str, float]:
    """Image and pixel AUROC at the detector's input size."""
    scorer = Scorer(**scoring)
    truth = Truth(root, scoring["category"], scorer.manifest.detector.size[0])
    found = scorer.findings(scorer.images(root, truth.files), _BATCH)
    findings = dict(zip(truth.files, found, strict=True))
    return truth.aurocs(
        {file: finding.score for file, finding in findings.items()},
        {file: finding.map_HW for file, finding in findings.items()},
    )


if __name__ == "__main__":
    answer(measure)
