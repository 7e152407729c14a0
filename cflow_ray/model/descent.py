"""Fitting one level's decoder: where it starts, the steps it takes, and which of its states is kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import FitError
from cflow_ray.model.context import ALONE, FitContext, State
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import grouped_likelihood
from cflow_ray.model.initialisation import start_standardised, start_whitened
from cflow_ray.model.paper_descent import PaperDescent, fit_as_the_paper
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.recipes import LevelSchedule, schedule_of
from cflow_ray.model.seeds import seeded
from cflow_ray.model.stepping import Level, Stepper, below, on_device, refuse_non_finite, start_alike
from cflow_ray.model.team import SOLO, Team

# Shapes: t tiles, p positions, C channels, D condition channels.

_INITIAL_FIBRES = 100_000  # enough for a covariance of 2048 channels, and a bound on its memory
# The norm of a step's gradient; .03 to .46 in ordinary steps of every level of screw, tile, cookie and grass. Once in
# thousands of steps it starts to grow and comes to 2,800 within the next: Adam then hardly moves for a thousand steps
# (finest level of tile, 4800 steps: held-out NLL 2.417 at the end; 2.280 with a bound of .3, and .5 does as well).
_LARGEST_GRADIENT = 0.5
_SELECTION_FIBRES = 1024  # looked at every few steps; 8192 choose the same steps of every level of screw
# Of a step on a CPU, below which turning values into bfloat16 and back costs more than its products save. CPU-ms of a
# step in float32 and bfloat16 (AMD EPYC of family 25 model 17 at 100 GFLOP/s in float32): 40 channels x 512 fibres 9.3
# and 12.2, 40 x 1024 17.9 and 18.9, 112 x 256 14.0 and 15.5, 160 x 256 21.7 and 21.2, 112 x 512 25.2 and 23.3,
# 320 x 256 55 and 43.
_VALUES_WORTH_BFLOAT16 = 41_000


def fit_level(
    level: Level, train: Fibres, held_out: Fibres, config: DetectorConfig, seed: int, context: FitContext = ALONE
) -> Decoder:
    """The decoder of one level; raises FitError, naming level and step, where loss or weights stop being finite.

    Goes on from the context's savepoint of this level, if there is one, to the same weights as an undisturbed fit.
    """
    generator = seeded(seed, f"level{level.number}")
    decoder = Decoder(train.channels, config.flow, generator)
    if config.recipe == "paper":
        shuffles = seeded(seed, "order")  # all levels shuffle the images alike, as one loader would
        descent_of_paper = PaperDescent(decoder.to(context.device), train, generator, shuffles, context.team)
        return fit_as_the_paper(level, descent_of_paper, held_out, context)
    schedule = schedule_of(config.recipe, level.stride, train.tiles, train.positions)
    start = start_whitened if schedule.whitened else start_standardised
    start(decoder, train.spread(_INITIAL_FIBRES, generator)[0].flatten(0, 1))
    decoder.to(context.device)
    best = _Best(level, decoder, on_device(context.device, held_out.spread(_SELECTION_FIBRES, generator)))
    precision = fitting_precision(config, schedule.fibres * train.channels, context.device)
    descent = Descent(decoder, train, schedule, generator, precision, context.team)
    part = f"level{level.number}"
    if (kept := context.savepoints.load(part)) is not None:
        descent.restore(kept)
        best.restore(kept)
    start_alike(decoder, context.team)
    while descent.taken < schedule.steps:
        loss = descent.step()
        refuse_non_finite(loss, level, descent.taken)
        if descent.taken % schedule.check_every == 0 or descent.taken == schedule.steps:
            best.look()
            at = (level.number, level.of, descent.taken, schedule.steps)
            context.watch(FitProgress(*at, best.nll, loss=float(loss), rate=descent.rate), decoder)
            if context.savepoints.due(part):
                context.savepoints.save(part, descent.state() | best.state())
    return best.decoder()


def fitting_precision(config: DetectorConfig, values: int, device: str = "cpu") -> torch.dtype:
    """What the couplings' networks are computed in: bfloat16 where asked for, or where it makes a step faster.

    `values` of features are in a step. The paper's recipe is float32 throughout, as in the official code.
    """
    if config.recipe == "paper":
        return torch.float32
    if config.precision == "auto":
        pays = _multiplies_bfloat16(device) and (device != "cpu" or values >= _VALUES_WORTH_BFLOAT16)
        return torch.bfloat16 if pays else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def _multiplies_bfloat16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Descent:
    """Steps along a schedule on random fibres."""

    def __init__(
        self,
        decoder: Decoder,
        fibres: Fibres,
        schedule: LevelSchedule,
        generator: torch.Generator,
        precision: torch.dtype,
        team: Team = SOLO,
    ) -> None:
        self.taken = 0
        """Steps."""
        self._fibres = fibres
        self._schedule = schedule
        self._generator = generator
        self._stepper = Stepper(decoder, precision, team, _LARGEST_GRADIENT)

    def step(self) -> Tensor:
        """Take the next step; its loss, before it."""
        rate = self._schedule.rate_at(self.taken)
        fibres_tpC, condition_pD = self._fibres.draw(self._schedule.fibres, self._generator, self._schedule.positions)
        self.taken += 1
        return self._stepper.step(fibres_tpC, condition_pD, rate)

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return self._stepper.rate

    def state(self) -> State:
        """All that `restore` goes on from."""
        counters = {"taken": torch.tensor(self.taken), "generator": self._generator.get_state()}
        return counters | self._stepper.state()

    def restore(self, state: State) -> None:
        """Be where another descent was when it gave this state."""
        self.taken = int(state["taken"])
        self._generator.set_state(state["generator"])
        self._stepper.restore(state)


class _Best:
    """The state of a decoder at which the held-out fibres were likeliest; rotations are fixed, and not kept."""

    def __init__(self, level: Level, decoder: Decoder, held_out: tuple[Tensor, Tensor]) -> None:
        self._level = level
        self._decoder = decoder
        self._held_out = held_out
        self._fitted = {name: of for name, of in decoder.named_parameters() if of.requires_grad}
        self.nll = math.inf
        self._state: dict[str, Tensor] = {}
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        nll = -float(grouped_likelihood(self._decoder, *self._held_out).mean())
        if nll < self.nll:
            self.nll, self._state = nll, {name: of.clone() for name, of in self._fitted.items()}

    def state(self) -> State:
        return {"nll": torch.tensor(self.nll, dtype=torch.float64)} | {
            f"best.{name}": tensor for name, tensor in self._state.items()
        }

    def restore(self, state: State) -> None:
        self.nll, self._state = float(state["nll"]), below("best.", state)

    @torch.no_grad()
    def decoder(self) -> Decoder:
        if not self._state:
            raise FitError(f"the held-out likelihood was never finite at {self._level}; its features cannot be fitted.")
        for name, parameter in self._fitted.items():
            parameter.copy_(self._state[name])
        return self._decoder
