"""How much work a category is, relative to others, from its numbers alone: what orders a run before anything has run."""

from __future__ import annotations

from collections.abc import Sequence

from cflow_ray.config import DetectorConfig, EncoderConfig
from cflow_ray.data.samples import TRAIN, Sample
from cflow_ray.model.recipes import schedule_of

_PIXELS_OF_A_FIBRE = 130
"""A fibre of a step costs as much as so many pixels through the encoder: 64 us and 0.48 us (lite0, one core of an AMD
EPYC)."""


def work_of(samples: Sequence[Sample], detector: DetectorConfig, seeds: int) -> float:
    """Pixels to encode and fibres to fit, in pixels.

    Below 200 images most of it are the folds: with `fast` at 256 px, 60 images took three times as long as 240.
    """
    height, width = detector.size
    normals = training_images(samples)
    encoded = normals * (1 + detector.augmentation.copies)
    pixels = (encoded + len(samples) - normals) * height * width
    fibres = 0
    for stride in _strides(detector.encoder):
        schedule = schedule_of(detector.recipe, stride, encoded, max(1, height // stride * (width // stride)))
        fibres += schedule.steps * schedule.fibres
    return pixels + seeds * models_of(normals, detector) * fibres * _PIXELS_OF_A_FIBRE


def _strides(encoder: EncoderConfig) -> tuple[int, ...]:
    """Of the levels; blocks, whose strides only the network knows, are mostly those of a ViT of 16 pixels a patch."""
    return encoder.strides if encoder.blocks is None else (16,) * encoder.levels


def training_images(samples: Sequence[Sample]) -> int:
    """How many of a category's images are fitted from."""
    return sum(sample.split == TRAIN and sample.label != 1 for sample in samples)


def models_of(images: int, detector: DetectorConfig) -> int:
    """How many models one fit takes: the one that is kept, and those of the folds."""
    return min(detector.folds, images) + 1 if detector.is_cross(images) else 1
