"""The test images of a category through its new detector."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from cflow_ray.data.images import PreparedImage
from cflow_ray.data.samples import Sample
from cflow_ray.evaluation.evaluate import LabelledFindings, read_mask
from cflow_ray.evaluation.heat_maps import heat_map_panel
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.store.storage import Storage

_BATCH = 16

TestImage = tuple[Sample, PreparedImage]


def score_test_images(
    bank: DetectorBank[str], category: str, root: Storage, images: Iterable[TestImage], scored: Callable[[int], None]
) -> tuple[LabelledFindings, dict[str, bytes]]:
    """Findings of a category's images by the bank's detector, and files for people beside a checkpoint.

    The files are every image's score, and a picture of the highest. `root` holds the masks. `scored` is told how many
    images are done, from 0.
    """
    scored(0)
    findings, scores, preview = LabelledFindings(root), dict[str, float](), None
    for group in _groups(images):
        found = bank.score_batch([image.pixels_3HW for _, image in group], [category] * len(group))
        for (sample, image), finding in zip(group, found, strict=True):
            findings.add(sample, finding.score, finding.map_HW, image.window)
            if preview is None or finding.score > max(scores.values()):
                preview = _preview(bank.detector(category), root, (sample, image), finding)
            scores[sample.image] = finding.score
        scored(len(scores))
    attachments = {"test_scores.json": json.dumps(scores, indent=1).encode()}
    return findings, attachments | ({"preview.png": preview} if preview else {})


def _preview(detector: Detector, root: Storage, tested: TestImage, finding: Finding) -> bytes:
    sample, image = tested
    return heat_map_panel(
        image.pixels_3HW.transpose(1, 2, 0),
        finding.map_HW,
        detector.calibration.scores[-1],
        read_mask(root, sample, finding.map_HW.shape, image.window),
        f"{sample.image}  score {finding.score:.4f}",
    )


def _groups(images: Iterable[TestImage]) -> Iterator[list[TestImage]]:
    group: list[TestImage] = []
    for item in images:
        group.append(item)
        if len(group) == _BATCH:
            yield group
            group = []
    if group:
        yield group
