"""Fitting one level's decoder: where it starts, the steps it takes, and which of its states is kept."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import FitError
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import grouped_likelihood
from cflow_ray.model.initialisation import initialise_from_data
from cflow_ray.model.recipes import LevelSchedule, PaperSchedule, level_schedule

# Shapes: N fibres of a step, P positions, C channels, D condition channels.

_INITIAL_FIBRES = 100_000  # enough for a covariance of 2048 channels, and a bound on its memory
_SELECTION_FIBRES = 2048  # looked at every few steps; more cost time and choose the same steps


@dataclass(frozen=True)
class Level:
    """One level of the pyramid in a fit."""

    number: int
    of: int
    stride: float
    """Pixels of the input per position."""

    def __str__(self) -> str:
        return f"level {self.number} (stride {self.stride:g})"


@dataclass(frozen=True)
class FitProgress:
    """Where a fit is: level and step, of how many, and the held-out negative log-likelihood per dimension (nats).

    A cross-calibrated category is fitted `models` times, the last time for good.
    """

    level: int
    levels: int
    step: int
    steps: int
    nll: float
    model: int = 0
    models: int = 1


Watch = Callable[[FitProgress, Decoder], None]
"""Sees how far a level is, and its decoder as it is then."""


def fit_level(
    level: Level, train: Fibres, held_out: Fibres, config: DetectorConfig, seed: int, watch: Watch
) -> Decoder:
    """The decoder of one level; raises FitError, naming level and step, where loss or weights stop being finite."""
    generator = seeded(seed, f"level{level.number}")
    decoder = Decoder(train.channels, config.flow, generator)
    if config.recipe == "paper":
        draws = (generator, seeded(seed, "order"))  # all levels shuffle the images alike, as one loader would
        return _fit_as_the_paper(level, decoder, train, held_out, draws, watch)
    schedule = level_schedule(config.recipe, level.stride, len(train))
    initialise_from_data(decoder, train.spread(_INITIAL_FIBRES, generator)[0].flatten(0, 1))
    best = _Best(level, decoder, held_out.spread(_SELECTION_FIBRES, generator))
    for step, loss in descend(decoder, train, schedule, generator, fitting_precision(config)):
        _refuse_non_finite(loss, level, step)
        if step % schedule.check_every == 0 or step == schedule.steps:
            best.look()
            watch(FitProgress(level.number, level.of, step, schedule.steps, best.nll), decoder)
    return best.decoder()


def seeded(seed: int, use: str) -> torch.Generator:
    """A generator of its own for every use of a seed, so that none disturbs another's draws."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{use}".encode()))


def fitting_precision(config: DetectorConfig) -> torch.dtype:
    """What the couplings' networks are computed in: bfloat16 where asked for, or where the processor multiplies it."""
    if config.precision == "auto":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def descend(
    decoder: Decoder, fibres: Fibres, schedule: LevelSchedule, generator: torch.Generator, precision: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Take the schedule's steps; yields (steps taken, loss). Loss: -log sigmoid(log p / C), paper section 5."""
    optimiser = torch.optim.Adam([p for p in decoder.parameters() if p.requires_grad], lr=schedule.rate, fused=True)
    for step in range(schedule.steps):
        _set_rate(optimiser, schedule.rate_at(step))
        fibres_tpC, condition_pD = fibres.draw(schedule.fibres, generator, schedule.positions)
        likelihood_tp = grouped_likelihood(decoder, fibres_tpC, condition_pD, precision)
        yield step + 1, _step(optimiser, likelihood_tp)


def descend_as_the_paper(
    decoder: Decoder, fibres: Fibres, schedule: PaperSchedule, draws: tuple[torch.Generator, torch.Generator]
) -> Iterator[tuple[int, Tensor]]:
    """Take the official code's steps (`train_meta_epoch`); yields (passes over the images ended, loss) a step.

    `draws` shuffle the fibres of a batch of images, and the images into batches.
    """
    optimiser = torch.optim.Adam([p for p in decoder.parameters() if p.requires_grad], lr=schedule.rate)
    for number in range(schedule.meta_epochs * schedule.sub_epochs):
        meta_epoch, sub_epoch = divmod(number, schedule.sub_epochs)
        batches = list(fibres.batches(schedule.images, draws[1]))
        for batch, tiles in enumerate(batches):
            of_epoch = (batch + sub_epoch * len(batches), schedule.sub_epochs * len(batches))
            _set_rate(optimiser, schedule.rate_at(meta_epoch, *of_epoch))
            for fibres_NC, condition_ND in fibres.shuffled(tiles, schedule.fibres, draws[0]):
                yield number, _step(optimiser, decoder(fibres_NC, condition_ND))


def _fit_as_the_paper(
    level: Level,
    decoder: Decoder,
    train: Fibres,
    held_out: Fibres,
    draws: tuple[torch.Generator, torch.Generator],
    watch: Watch,
) -> Decoder:
    """The last step's weights: nothing selects. The held-out likelihood is only shown, after every pass."""
    schedule = PaperSchedule()
    seen = held_out.spread(_SELECTION_FIBRES, draws[0])
    passes, ended = schedule.meta_epochs * schedule.sub_epochs, 0

    def look(passes_ended: int) -> None:
        with torch.no_grad():
            nll = -float(grouped_likelihood(decoder, *seen).mean())
        watch(FitProgress(level.number, level.of, passes_ended, passes, nll), decoder)

    for step, (now, loss) in enumerate(descend_as_the_paper(decoder, train, schedule, draws), start=1):
        _refuse_non_finite(loss, level, step)
        if now > ended:  # the weights seen are one step into the next pass
            look(now)
            ended = now
    look(passes)
    if not all(torch.isfinite(parameter).all() for parameter in decoder.parameters()):
        raise FitError(f"the weights stopped being finite at {level}, in the last step.")
    return decoder


class _Best:
    """The state of a decoder at which the held-out fibres were likeliest."""

    def __init__(self, level: Level, decoder: Decoder, held_out: tuple[Tensor, Tensor]) -> None:
        self._level = level
        self._decoder = decoder
        self._held_out = held_out
        self.nll = math.inf
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


def _step(optimiser: torch.optim.Optimizer, likelihood: Tensor) -> Tensor:
    loss = -functional.logsigmoid(likelihood).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _refuse_non_finite(loss: Tensor, level: Level, step: int) -> None:
    if not torch.isfinite(loss):
        raise FitError(f"the loss became {loss.item()} at {level}, step {step}.")
