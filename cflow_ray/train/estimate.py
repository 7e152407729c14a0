"""What a planned fit will take, from a trial on this machine: a few images through its encoder, a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from cflow_ray.config import DetectorConfig
from cflow_ray.model.descent import Descent, fitting_precision
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.encoder_model import CompiledEncoder
from cflow_ray.model.features import Features, encode
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.recipes import LevelSchedule, schedule_of
from cflow_ray.model.runtime_choice import fastest_runtime
from cflow_ray.model.seeds import seeded
from cflow_ray.model.threads import torch_threads
from cflow_ray.model.tiling import Layout
from cflow_ray.store.weights import read_weights
from cflow_ray.train.plan import FitPlan
from cflow_ray.train.task import FitTask
from cflow_ray.train.work import models_of, training_images

_TRIAL_IMAGES = 4
_TRIAL_STEPS = 3
_BYTES_OF_A_FEATURE = 2  # half precision


@dataclass(frozen=True)
class Estimate:
    """Of one category on one worker with one thread; reading images is left out, and all tiles of an image but one."""

    seconds: float
    features_mb: float
    """Encoded features, in memory up to `cache_mb`."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"estimated_seconds": round(self.seconds), "features_mb": round(self.features_mb, 1)}


def estimates_of(plan: FitPlan) -> Mapping[str, Estimate]:
    """By category; categories with the same settings share a trial. Raises what reading the weights raises."""
    trials: dict[str, _Trial] = {}
    found = {}
    with torch_threads(1):
        for task in plan.due:
            settings = task.detector.model_dump_json()
            if settings not in trials:
                trials[settings] = _Trial(task.detector, plan.site.storage_options)
            found[task.category] = trials[settings].estimate(task)
    return found


class _Trial:
    """The measured cost of an image and of a step of every level."""

    def __init__(self, config: DetectorConfig, storage_options: Mapping[str, Any]) -> None:
        self._config = config
        network = Encoder(config.encoder, read_weights(config.encoder, storage_options))
        encoder = fastest_runtime().compile_encoder(network, config.size)  # as a fit has it
        _features(encoder, config)  # the first pass is slower than all others
        start = time.perf_counter()
        self._features = _features(encoder, config)
        self._image_seconds = (time.perf_counter() - start) / _TRIAL_IMAGES

    def estimate(self, task: FitTask) -> Estimate:
        """For the number of images of a category."""
        images = training_images(task.samples)
        encoded = images * (1 + self._config.augmentation.copies)
        models = models_of(images, self._config)
        steps = sum(self._level_seconds(level, encoded) for level in range(len(self._features.levels)))
        values = sum(level.positions * level.channels for level in self._features.levels)
        return Estimate(
            seconds=encoded * self._image_seconds + task.seeds * models * steps,
            features_mb=encoded * values * _BYTES_OF_A_FEATURE / 1e6,
        )

    def _level_seconds(self, number: int, images: int) -> float:
        level = self._features.levels[number]
        stride = self._config.stride(number, level.size[0])
        schedule = schedule_of(self._config.recipe, stride, images, level.positions)
        descent = self._descent(number, schedule)
        descent.step()
        return schedule.steps * median(_timed(descent.step) for _ in range(_TRIAL_STEPS))

    def _descent(self, number: int, schedule: LevelSchedule) -> Descent:
        level, generator = self._features.levels[number], seeded(0, "trial")
        fibres = Fibres(level, range(_TRIAL_IMAGES), self._config.flow.condition_channels)
        decoder = Decoder(level.channels, self._config.flow, generator)
        precision = fitting_precision(self._config, schedule.fibres * level.channels)
        return Descent(decoder, fibres, schedule, generator, precision)


def _features(encoder: CompiledEncoder, config: DetectorConfig) -> Features:
    generator = seeded(0, "images")
    shape = (_TRIAL_IMAGES, 3, *config.size)
    images_I3HW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return encode(encoder, ((image_3HW, Layout.of(config.size, config.input)) for image_3HW in images_I3HW))


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
