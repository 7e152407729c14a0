"""Which of a category's normal images train, which choose steps and peaks, and which only calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.model.seeds import seeded

SMALLEST_CATEGORY = 8
"""Fewest normal images a detector is fitted from."""


@dataclass(frozen=True)
class Split:
    """Numbers of images; no image is in two parts."""

    train: tuple[int, ...]
    selection: tuple[int, ...]
    calibration: tuple[int, ...]

    @property
    def held_out(self) -> tuple[int, ...]:
        """All that did not train: what calibrates, then what selected."""
        return (*self.calibration, *self.selection)


def splits_of(count: int, config: DetectorConfig, seed: int) -> list[Split]:
    """The split of every model that a category's fit takes, the last one that of the model that is kept."""
    generator = seeded(seed, "split")
    if config.is_cross(count):
        return cross_normals(count, config, generator)
    return [split_normals(count, config, generator)]


def split_normals(count: int, config: DetectorConfig, generator: torch.Generator) -> Split:
    """A random split of `count` normal images; DataError below 8, ConfigError where the shares leave none to train."""
    _refuse_too_few(count)
    selection = _share(count, config.selection_fraction)
    calibration = _share(count, config.calibration_fraction)
    if selection + calibration >= count:
        raise ConfigError(
            f"selection_fraction {config.selection_fraction:g} and calibration_fraction {config.calibration_fraction:g} "
            f"leave none of {count} normal images to train on; lower them."
        )
    order = torch.randperm(count, generator=generator).tolist()
    return _split(order[selection + calibration :], order[:selection], order[selection : selection + calibration])


def cross_normals(count: int, config: DetectorConfig, generator: torch.Generator) -> list[Split]:
    """Splits of `count` normal images whose calibration parts are the folds: together every image, each once.

    The last split is the final model's: it calibrates none and trains on all but those that select.
    """
    _refuse_too_few(count)
    order = torch.randperm(count, generator=generator).tolist()
    folds = [order[number :: config.folds] for number in range(min(config.folds, count))]
    return [_without(order, fold, config) for fold in [*folds, []]]


def halve_normals(count: int, generator: torch.Generator) -> Split:
    """Random halves of `count` normal images for weights that are fixed: none train, one half selects, one calibrates.

    The odd image calibrates. Raises DataError below 8.
    """
    _refuse_too_few(count)
    order = torch.randperm(count, generator=generator).tolist()
    return _split([], order[: count // 2], order[count // 2 :])


def _without(order: Sequence[int], fold: Sequence[int], config: DetectorConfig) -> Split:
    rest = [image for image in order if image not in set(fold)]
    selection = _share(len(rest), config.selection_fraction)
    if selection >= len(rest):
        raise ConfigError(
            f"selection_fraction {config.selection_fraction:g} leaves none of {len(rest)} normal images to train on; "
            "lower it."
        )
    return _split(rest[selection:], rest[:selection], fold)


def _share(count: int, fraction: float) -> int:
    return max(min(4, count // 4), round(fraction * count))


def _split(train: Sequence[int], selection: Sequence[int], calibration: Sequence[int]) -> Split:
    return Split(tuple(sorted(train)), tuple(sorted(selection)), tuple(sorted(calibration)))


def _refuse_too_few(count: int) -> None:
    if count < SMALLEST_CATEGORY:
        raise DataError(
            f"{count} normal training images; at least {SMALLEST_CATEGORY} are needed to fit and calibrate."
        )
