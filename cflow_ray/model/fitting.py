"""The fit of one category: features once, every level's decoder on shuffled fibres, then the calibration."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import ConfigError, DataError, FitError
from cflow_ray.model.detector import Detector
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import grouped_likelihood, level_likelihood
from cflow_ray.model.initialisation import initialise_from_data
from cflow_ray.model.recipes import LevelSchedule, level_schedule
from cflow_ray.model.scoring import Calibration

# Shapes: I images, P = h * w positions of a level, C channels, N fibres of a step, D condition channels.

SMALLEST_CATEGORY = 8
"""Fewest normal images a detector is fitted from."""
_PEAK_QUANTILE = 0.99  # of the held-out likelihoods; as good as the maximum and unmoved by one odd image
_INITIAL_FIBRES = 100_000  # enough for a covariance of 2048 channels, and a bound on its memory
_SELECTION_FIBRES = 2048  # looked at every few steps; more cost time and choose the same steps


@dataclass(frozen=True)
class FitProgress:
    """Where a fit is: level and step, of how many, and the held-out negative log-likelihood per dimension (nats)."""

    level: int
    levels: int
    step: int
    steps: int
    nll: float


Report = Callable[[FitProgress], None]


@dataclass(frozen=True)
class Split:
    """Which of a category's normal images train, which choose steps and peaks, and which only calibrate."""

    train: tuple[int, ...]
    selection: tuple[int, ...]
    calibration: tuple[int, ...]


def split_normals(count: int, config: DetectorConfig, generator: torch.Generator) -> Split:
    """A random split of `count` normal images; DataError below 8, ConfigError where the shares leave none to train."""
    if count < SMALLEST_CATEGORY:
        raise DataError(
            f"{count} normal training images; at least {SMALLEST_CATEGORY} are needed to fit and calibrate."
        )
    selection = max(min(4, count // 4), round(config.selection_fraction * count))
    calibration = max(min(4, count // 4), round(config.calibration_fraction * count))
    if selection + calibration >= count:
        raise ConfigError(
            f"selection_fraction {config.selection_fraction:g} and calibration_fraction {config.calibration_fraction:g} "
            f"leave none of {count} normal images to train on; lower them."
        )
    order = torch.randperm(count, generator=generator).tolist()
    return Split(
        train=tuple(sorted(order[selection + calibration :])),
        selection=tuple(sorted(order[:selection])),
        calibration=tuple(sorted(order[selection : selection + calibration])),
    )


def category_seed(run_seed: int, category: str) -> int:
    """The seed of a category, from the run's seed and its name, so that neither order nor company matters."""
    return zlib.crc32(f"{run_seed}/{category}".encode())


def encode(encoder: Encoder, batches: Iterable[Tensor]) -> list[Tensor]:
    """Features (I, C_l, h_l, w_l) of every level for batches of uint8 images (B, 3, H, W)."""
    pyramids = [[level.cpu() for level in encoder(images_B3HW)] for images_B3HW in batches]
    return [torch.cat(level) for level in zip(*pyramids, strict=True)]


def fit_detector(
    pyramid: Sequence[Tensor], config: DetectorConfig, seed: int, report: Report = lambda progress: None
) -> Detector:
    """Fit and calibrate a detector from the features (I, C_l, h_l, w_l) of a category's normal images.

    The same arguments on the same machine give the same weights. Raises DataError where there are too few images and
    FitError where features or weights stop being finite, naming the level and the step.
    """
    generator = torch.Generator().manual_seed(seed)
    split = split_normals(len(pyramid[0]), config, generator)
    levels = [_Level(number, len(pyramid), stride) for number, stride in enumerate(config.encoder.strides)]
    for level, features in zip(levels, pyramid, strict=True):
        if not torch.isfinite(features).all():
            raise FitError(f"the encoder gave features that are not finite at {level}, before the first step.")
    decoders = [
        _fit_level(
            level,
            Fibres(features[list(split.train)], config.flow.condition_channels),
            Fibres(features[list(split.selection)], config.flow.condition_channels),
            config,
            generator,
            report,
        )
        for level, features in zip(levels, pyramid, strict=True)
    ]
    return _calibrated(decoders, pyramid, split, config)


@dataclass(frozen=True)
class _Level:
    number: int
    of: int
    stride: int

    def __str__(self) -> str:
        return f"level {self.number} (stride {self.stride})"


def _fit_level(
    level: _Level,
    fibres: Fibres,
    held_out: Fibres,
    config: DetectorConfig,
    generator: torch.Generator,
    report: Report,
) -> Decoder:
    schedule = level_schedule(config.recipe, level.stride, len(fibres))
    rows_NC = fibres.spread(_INITIAL_FIBRES, generator)[0].flatten(0, 1)
    decoder = Decoder(rows_NC.shape[1], config.flow, generator)
    initialise_from_data(decoder, rows_NC)
    best = _Best(level, decoder, held_out.spread(_SELECTION_FIBRES, generator))
    for step, loss in _descend(decoder, fibres, schedule, generator):
        if not torch.isfinite(loss):
            raise FitError(f"the loss became {loss.item()} at {level}, step {step}.")
        if step % schedule.check_every == 0 or step == schedule.steps:
            best.look()
            report(FitProgress(level.number, level.of, step, schedule.steps, best.nll))
    return best.decoder()


def _descend(
    decoder: Decoder, fibres: Fibres, schedule: LevelSchedule, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Take the schedule's steps; yields (steps taken, loss). Loss: -log sigmoid(log p / C), paper section 5."""
    optimiser = torch.optim.Adam([p for p in decoder.parameters() if p.requires_grad], lr=schedule.rate, fused=True)
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        fibres_bpC, condition_pD = fibres.draw(schedule.fibres, generator)
        loss = -functional.logsigmoid(grouped_likelihood(decoder, fibres_bpC, condition_pD)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield step + 1, loss.detach()


class _Best:
    """The state of a decoder at which the held-out fibres were likeliest."""

    def __init__(self, level: _Level, decoder: Decoder, held_out: tuple[Tensor, Tensor]) -> None:
        self._level = level
        self._decoder = decoder
        self._held_out = held_out
        self.nll = float("inf")
        self._state: dict[str, Tensor] = {}
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        nll = -float(grouped_likelihood(self._decoder, *self._held_out).mean())
        if nll < self.nll:
            self.nll, self._state = nll, copy.deepcopy(self._decoder.state_dict())

    def decoder(self) -> Decoder:
        if not self._state:
            raise FitError(f"the held-out likelihood was never finite at {self._level}; its features cannot be fitted.")
        self._decoder.load_state_dict(self._state)
        return self._decoder


def _calibrated(
    decoders: Sequence[Decoder], pyramid: Sequence[Tensor], split: Split, config: DetectorConfig
) -> Detector:
    """The detector with peaks from the selection images and scores of the calibration images, as scoring gives them."""
    selection = [features[list(split.selection)] for features in pyramid]
    peaks = tuple(
        _quantile(level_likelihood(decoder.requires_grad_(False), features), _PEAK_QUANTILE)
        for decoder, features in zip(decoders, selection, strict=True)
    )
    uncalibrated = Detector(config, decoders, Calibration(peaks, ()))
    scores = [
        float(uncalibrated.scores(uncalibrated.maps([features[[index]] for features in pyramid]))[0])
        for index in split.calibration
    ]
    return Detector(config, decoders, Calibration.of(peaks, scores))


def _quantile(values: Tensor, share: float) -> float:
    rank = max(1, round(share * values.numel()))
    return float(values.flatten().kthvalue(rank).values)
