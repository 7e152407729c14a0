"""The paper's own score, whose scale comes from the test set: only to compare with published numbers.

The likelihoods of a level are set against their maximum over all test images, so a score depends on what else is in
the set. The official code does this (`train.py`, `test_meta_epoch`); nothing else in this project does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from cflow_ray.config import EvaluateConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import PreparedImage
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.evaluation.evaluate import read_mask
from cflow_ray.model.detector import Detector
from cflow_ray.model.encoder import Encoder
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

# Shapes: I test images, h_l x w_l locations of level l, H x W pixels of the network's input.


@dataclass(frozen=True)
class PaperFigures:
    """AUROC under the paper's score: None without both labels, and of pixels unless every test image has a mask."""

    image_auroc: float | None
    pixel_auroc: float | None


def paper_score(likelihoods: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores (I,) and maps (I, H, W), both in [0, 1], from each level's likelihoods per dimension (I, h_l, w_l).

    The map is max - sum_l upsample(exp(ll_l - max ll_l)) over the number of levels, the score its maximum; every max is
    over all images.
    """
    total_IHW = torch.zeros(len(likelihoods[0]), *size)
    for likelihood_Ihw in likelihoods:
        p_Ihw = torch.exp(likelihood_Ihw - likelihood_Ihw.max())
        total_IHW += functional.interpolate(p_Ihw[:, None], size, mode="bilinear", align_corners=True)[:, 0]
    map_IHW = (total_IHW.max() - total_IHW) / len(likelihoods)
    return map_IHW.flatten(1).amax(1), map_IHW


def evaluate_as_the_paper(
    config: EvaluateConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, PaperFigures]:
    """Score the labelled test images of every category anew with the registry's best detectors, the paper's way.

    Raises DataError where the registry has a detector of none of the categories.
    """
    if config.registry is None:
        raise ConfigError("the paper's score needs likelihoods, which no score table holds; give --registry too.")
    registry = Registry(Storage(config.registry, config.storage_options))
    data_set = read_data_set(config, config.storage_options)
    chosen, there = data_set.chosen(config.only), registry.categories()
    categories = [name for name in chosen if name in there]
    if not categories:
        raise DataError(
            f"the paper's score needs detectors of {', '.join(chosen)}; {config.registry} holds {', '.join(there) or 'none'}."
        )
    figures = {}
    for number, category in enumerate(categories, start=1):
        version = registry.best(category)
        detector = registry.detector(category, version)
        encoder = registry.encoder(detector.config.encoder, detector.encoder_digest)
        figures[category] = paper_figures(data_set, category, encoder, detector)
        progress(number, len(categories))
    return figures


def paper_figures(data_set: DataSet, category: str, encoder: Encoder, detector: Detector) -> PaperFigures:
    """The figures of one category's labelled test images. Raises ConfigError for a detector of tiles or of a region."""
    if detector.config.tiling is not None:
        raise ConfigError(f"{category} is scored in tiles, which the paper's score does not know.")
    if detector.region_HW is not None:
        raise ConfigError(
            f"{category} has a region of interest, which the paper's score does not know: its maximum may lie outside."
        )
    images = list(_labelled(data_set, category, detector))
    if not images:
        return PaperFigures(None, None)
    seen = [torch.from_numpy(image.pixels_3HW)[None] for _, image in images]
    likelihoods = [detector.likelihoods(encoder(image_13HW)) for image_13HW in seen]
    of_level = [torch.cat(level) for level in zip(*likelihoods, strict=True)]
    score_I, map_IHW = paper_score(of_level, detector.config.size)
    masks = [read_mask(data_set.root, sample, detector.config.size, image.window) for sample, image in images]
    known = [torch.from_numpy(mask) for mask in masks if mask is not None]
    labels_I = torch.tensor([sample.label for sample, _ in images])
    whole = len(known) == len(masks)
    return PaperFigures(
        image_auroc=_auroc(score_I, labels_I),
        pixel_auroc=_auroc(map_IHW.flatten(), torch.stack(known).flatten().long()) if whole else None,
    )


def _auroc(score_N: Tensor, label_N: Tensor) -> float | None:
    return float(binary_auroc(score_N, label_N)) if 0 < label_N.sum() < len(label_N) else None


def _labelled(data_set: DataSet, category: str, detector: Detector) -> Iterator[tuple[Sample, PreparedImage]]:
    samples = [sample for sample in data_set.of(category, TEST) if sample.label is not None]
    for sample, image in load_images(data_set.root, samples, detector.config.input):
        if isinstance(image, PreparedImage):
            yield sample, image
        else:
            log.warning("%s does not count: %s", sample.image, image)
