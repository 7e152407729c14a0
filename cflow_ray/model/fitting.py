"""The fit of one category from its features: every level's decoder, the peaks, and the calibration."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.model.calibration import image_scores_of, peaks_of
from cflow_ray.model.descent import FitProgress, Level, Watch, fit_level, seeded
from cflow_ray.model.features import Features
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.partition import Split, cross_normals, is_cross, split_normals
from cflow_ray.model.region import read_from
from cflow_ray.model.scoring import Calibration

# Shapes: I images, T tiles, P = h * w positions of a level, C channels.


def category_seed(run_seed: int, category: str) -> int:
    """The seed of a category, from the run's seed and its name, so that neither order nor company matters."""
    return zlib.crc32(f"{run_seed}/{category}".encode())


def fit_detector(
    features: Features,
    config: DetectorConfig,
    seed: int,
    watch: Watch = lambda progress, decoder: None,
    region_HW: Tensor | None = None,
) -> Fitted:
    """Fit and calibrate a detector from the features of a category's normal images.

    The same arguments on the same machine give the same weights. With `calibration: cross` every image is scored by a
    model that was fitted without it, and the last model, which is kept, calibrates none. Raises DataError where there
    are too few images and FitError where features or weights stop being finite, naming the level and the step.
    """
    generator = seeded(seed, "split")
    if is_cross(len(features), config):
        splits = cross_normals(len(features), config, generator)
    else:
        splits = [split_normals(len(features), config, generator)]
    if len(features.levels) != config.encoder.levels:
        raise ValueError(f"features of {len(features.levels)} levels for an encoder of {config.encoder.levels}")
    scores: list[float] = []
    for number, split in enumerate(splits):
        watch_model = _of_model(watch, number, len(splits))
        decoders = _fit_levels(features, split, config, zlib.crc32(f"{seed}/{number}".encode()), watch_model, region_HW)
        peaks = peaks_of(decoders, features, split.selection, region_HW)
        fitted = Fitted(config, decoders, Calibration(peaks, ()), region_HW)
        scores += image_scores_of(fitted.detector(), features, split.calibration)
    return replace(fitted, calibration=Calibration.of(fitted.calibration.peaks, scores))


def _fit_levels(
    features: Features, split: Split, config: DetectorConfig, seed: int, watch: Watch, region_HW: Tensor | None
) -> tuple[Decoder, ...]:
    """All levels' decoders, side by side where torch has several threads, one thread a level then."""

    def fit(number: int) -> Decoder:
        level_features = features.levels[number]
        level = Level(number, len(features.levels), stride=config.size[0] / level_features.size[0])
        inside_P = None if region_HW is None else read_from(region_HW, level_features.size).flatten()
        channels = config.flow.condition_channels
        train = Fibres(level_features, features.tiles(split.train, copies=True), channels, inside_P)
        held_out = Fibres(level_features, features.tiles(split.selection), channels, inside_P)
        decoder = fit_level(level, train, held_out, config, seed, watch)
        decoder.round_to(config.dtype)
        return decoder

    numbers = range(len(features.levels))
    threads = torch.get_num_threads()
    if threads == 1:
        return tuple(fit(number) for number in numbers)
    try:
        with ThreadPoolExecutor(min(threads, len(numbers)), initializer=lambda: torch.set_num_threads(1)) as pool:
            return tuple(pool.map(fit, reversed(numbers)))[::-1]  # the widest level takes longest: first
    finally:
        torch.set_num_threads(threads)


def _of_model(watch: Watch, number: int, of: int) -> Watch:
    def watch_model(progress: FitProgress, decoder: Decoder) -> None:
        watch(replace(progress, model=number, models=of), decoder)

    return watch_model
