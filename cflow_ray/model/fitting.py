"""The fit of one category from its features: every level's decoder, the peaks, and the calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.model.calibration import calibration_scores, held_out_likelihood, image_scores_of
from cflow_ray.model.context import ALONE, FitContext
from cflow_ray.model.descent import fit_level
from cflow_ray.model.features import Features
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.parameters import state_shapes
from cflow_ray.model.partition import Split, splits_of
from cflow_ray.model.recipes import schedule_of
from cflow_ray.model.region import read_from
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.seeds import model_seed
from cflow_ray.model.stepping import Level
from cflow_ray.model.team import interleaved, share_of
from cflow_ray.model.turns import GivenUpError, Turns

# Shapes: I images, T tiles, P = h * w positions of a level, C channels.

_SCORES = "scores"


def fit_detector(
    features: Features,
    config: DetectorConfig,
    seed: int,
    context: FitContext = ALONE,
    region_HW: Tensor | None = None,
    splits: Sequence[Split] = (),
) -> Fitted:
    """Fit and calibrate a detector from the features of a category's normal images.

    The same arguments on the same machine give the same weights. With `calibration: cross` every image is scored by a
    model that was fitted without it, and the last model, which is kept, calibrates none. `splits` are those of
    `splits_of` for another seed than the fit's, so that fits with several seeds hold out the same images. Raises
    DataError where there are too few images and FitError where features or weights stop being finite, naming the level
    and the step.
    """
    if len(features.levels) != config.encoder.levels:
        raise ValueError(f"features of {len(features.levels)} levels for an encoder of {config.encoder.levels}")
    splits = splits or splits_of(len(features), config, seed)
    scores = _kept_scores(context)
    for number, split in list(enumerate(splits))[len(scores) :]:
        of_model = context.of_model(number, len(splits))
        decoders = _fit_levels(features, split, config, model_seed(seed, number), of_model, region_HW)
        held_out = held_out_likelihood(decoders, features, split.selection, region_HW)
        fitted = Fitted(config, decoders, Calibration(held_out.peaks, ()), region_HW, held_out.nll)
        own = image_scores_of(fitted.detector(), features, share_of(split.held_out, context.team))
        scores.append(torch.tensor(interleaved(context.team.gather(own)), dtype=torch.float64))
        if number + 1 < len(splits) and context.savepoints.due(_SCORES):
            _keep_scores(context, scores)
    return replace(fitted, calibration=Calibration.of(fitted.calibration.peaks, calibration_scores(splits, scores)))


def _kept_scores(context: FitContext) -> list[Tensor]:
    """Of an earlier run's finished models, each one's scores of what it held out; never the last."""
    kept = context.savepoints.load(_SCORES) or {}
    return [kept[str(number)] for number in range(len(kept))]


def _keep_scores(context: FitContext, scores: Sequence[Tensor]) -> None:
    """From here on the finished models' own states are not needed."""
    context.savepoints.save(_SCORES, {str(number): of_model for number, of_model in enumerate(scores)})
    for number in range(len(scores)):
        context.of_model(number, len(scores)).savepoints.forget("")


def _fit_levels(
    features: Features, split: Split, config: DetectorConfig, seed: int, context: FitContext, region_HW: Tensor | None
) -> tuple[Decoder, ...]:
    """All levels' decoders, side by side where torch has several threads, one thread a level then.

    Of fewer threads than levels none is idle before the last levels end: levels take turns from one look at the
    held-out likelihood to the next. Where one fails the others stop at their next look. A team takes one level after the
    other: its members have to meet in the same step.
    """
    levels = [_level_data(features, number, split, config, region_HW) for number in range(len(features.levels))]
    threads = torch.get_num_threads()
    turns = Turns(threads)

    def fit(of: _LevelData) -> Decoder:
        with turns.turn():
            decoder = fit_level(of.level, of.train, of.held_out, config, seed, context.in_turns(turns)).cpu()
            decoder.round_to(config.dtype)
        return decoder

    if threads == 1 or context.team.size > 1:
        return tuple(fit(of) for of in levels)
    longest_first = sorted(levels, key=lambda of: of.work(config), reverse=True)  # what is left to one thread is short
    try:
        with ThreadPoolExecutor(len(levels), initializer=lambda: torch.set_num_threads(1)) as pool:
            fitted = {of.level.number: pool.submit(fit, of) for of in longest_first}
    finally:
        torch.set_num_threads(threads)
    for error in (of_level.exception() for of_level in fitted.values()):
        if error is not None and not isinstance(error, GivenUpError):
            raise error
    return tuple(fitted[of.level.number].result() for of in levels)


@dataclass(frozen=True)
class _LevelData:
    """A level of the pyramid and the fibres that fit its decoder and choose its state."""

    level: Level
    train: Fibres
    held_out: Fibres

    def work(self, config: DetectorConfig) -> int:
        """Multiplications of its fit, but for a factor that all levels share: one a parameter and fibre."""
        parameters = sum(math.prod(shape) for shape in state_shapes(self.train.channels, config.flow).values())
        schedule = schedule_of(config.recipe, self.level.stride, self.train.tiles, self.train.positions)
        return parameters * schedule.steps * schedule.fibres


def _level_data(
    features: Features, number: int, split: Split, config: DetectorConfig, region_HW: Tensor | None
) -> _LevelData:
    of_level = features.levels[number]
    level = Level(number, len(features.levels), stride=config.stride(number, of_level.size[0]))
    inside_P = None if region_HW is None else read_from(region_HW, of_level.size).flatten()
    channels = config.flow.condition_channels
    train = Fibres(of_level, features.tiles(split.train, copies=True), channels, inside_P)
    return _LevelData(level, train, Fibres(of_level, features.tiles(split.selection), channels, inside_P))
