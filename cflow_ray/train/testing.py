"""The test images of a category through its new detector, by the runtime that scoring takes unless it is told otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cflow_ray.data.images import PreparedImage
from cflow_ray.data.samples import Sample
from cflow_ray.evaluation.evaluate import LabelledFindings, read_mask
from cflow_ray.evaluation.heat_maps import heat_map_panel
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.encoder_model import EncoderModel
from cflow_ray.model.runtime import open_runtime
from cflow_ray.store.storage import Storage

_BATCH = 16

TestImage = tuple[Sample, PreparedImage]


@dataclass(frozen=True)
class Networks:
    """What a fit scores with."""

    detector: Detector
    encoder: Encoder
    encoder_model: EncoderModel | None
    """The encoder's, where there is one."""
    device: str = "cpu"

    def bank(self) -> DetectorBank[str]:
        """A bank in which every key is the detector."""
        return DetectorBank[str](
            lambda _: self.detector,
            lambda *_: self.encoder,
            device=self.device,
            runtime=open_runtime("auto", self.device),
            load_model=lambda *_: self.encoder_model,
        )


def score_test_images(
    networks: Networks, root: Storage, images: Iterable[TestImage]
) -> tuple[LabelledFindings, dict[str, bytes]]:
    """Findings of the images, and files for people beside a checkpoint.

    The files are every image's score, and a picture of the highest. `root` holds the masks.
    """
    bank = networks.bank()
    findings, scores, preview = LabelledFindings(root), dict[str, float](), None
    for group in _groups(images):
        found = bank.score_batch([image.pixels_3HW for _, image in group], [""] * len(group))
        for (sample, image), finding in zip(group, found, strict=True):
            findings.add(sample, finding.score, finding.map_HW, image.window)
            if preview is None or finding.score > max(scores.values()):
                preview = _preview(networks.detector, root, (sample, image), finding)
            scores[sample.image] = finding.score
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
