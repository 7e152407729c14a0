"""Fitting one level's decoder: where it starts, the steps it takes, and which of its states is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import FitError
from cflow_ray.model.context import ALONE, FitContext, State
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.fitted_parameters import FittedParameters
from cflow_ray.model.flow import Decoder
from cflow_ray.model.gradient import Gradient, GradientByAutograd, GradientByHand
from cflow_ray.model.grouped import grouped_likelihood
from cflow_ray.model.initialisation import initialise_from_data
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.recipes import LevelSchedule, PaperSchedule, level_schedule
from cflow_ray.model.seeds import seeded
from cflow_ray.model.team import SOLO, Team, own_share

# Shapes: N fibres of a step, P positions, C channels, D condition channels.

_INITIAL_FIBRES = 100_000  # enough for a covariance of 2048 channels, and a bound on its memory
_SELECTION_FIBRES = 1024  # looked at every few steps; 8192 choose the same steps of every level of screw


@dataclass(frozen=True)
class Level:
    """One level of the pyramid in a fit."""

    number: int
    of: int
    stride: float
    """Pixels of the input per position."""

    def __str__(self) -> str:
        return f"level {self.number} (stride {self.stride:g})"


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
        return _fit_as_the_paper(level, descent_of_paper, held_out, context)
    schedule = level_schedule(config.recipe, level.stride, len(train))
    initialise_from_data(decoder, train.spread(_INITIAL_FIBRES, generator)[0].flatten(0, 1))
    decoder.to(context.device)
    best = _Best(level, decoder, _on(context.device, held_out.spread(_SELECTION_FIBRES, generator)))
    descent = Descent(decoder, train, schedule, generator, fitting_precision(config, context.device), context.team)
    part = f"level{level.number}"
    if (kept := context.savepoints.load(part)) is not None:
        descent.restore(kept)
        best.restore(kept)
    _start_alike(decoder, context.team)
    while descent.taken < schedule.steps:
        loss = descent.step()
        _refuse_non_finite(loss, level, descent.taken)
        if descent.taken % schedule.check_every == 0 or descent.taken == schedule.steps:
            best.look()
            at = (level.number, level.of, descent.taken, schedule.steps)
            context.watch(FitProgress(*at, best.nll, loss=float(loss), rate=descent.rate), decoder)
            if context.savepoints.due(part):
                context.savepoints.save(part, descent.state() | best.state())
    return best.decoder()


def fitting_precision(config: DetectorConfig, device: str = "cpu") -> torch.dtype:
    """What the couplings' networks are computed in: bfloat16 where asked for, or where the device multiplies it."""
    if config.precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def _multiplies_bfloat16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Descent:
    """Adam along a schedule on random fibres. Loss: -log sigmoid(log p / C), paper section 5."""

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
        self._decoder = decoder
        self._fibres = fibres
        self._schedule = schedule
        self._generator = generator
        self._team = team
        self._parameters = FittedParameters(decoder)
        self._gradient = _gradient(decoder, self._parameters, precision)
        self._optimiser = torch.optim.Adam([self._parameters.vector], lr=schedule.rate, fused=True)

    def step(self) -> Tensor:
        """Take the next step; its loss, before it."""
        _set_rate(self._optimiser, self._schedule.rate_at(self.taken))
        drawn = self._fibres.draw(self._schedule.fibres, self._generator, self._schedule.positions)
        fibres_tpC, condition_pD = _on(self._parameters.vector.device, drawn)
        self.taken += 1
        mine = own_share(self._team)  # of the positions: each one's condition is computed once
        loss = self._gradient.compute(fibres_tpC[:, mine], condition_pD[mine], of=fibres_tpC[..., 0].numel())
        self._team.add_up([loss, self._parameters.vector_gradient])
        self._optimiser.step()
        return loss

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return _rate(self._optimiser)

    def state(self) -> State:
        """All that `restore` goes on from."""
        counters = {"taken": torch.tensor(self.taken), "generator": self._generator.get_state()}
        return counters | _state_of(self._decoder, self._optimiser)

    def restore(self, state: State) -> None:
        """Be where another descent was when it gave this state."""
        self.taken = int(state["taken"])
        self._generator.set_state(state["generator"])
        _restore(state, self._decoder, self._optimiser)


class PaperDescent:
    """The official code's steps (`train_meta_epoch`): passes over shuffled batches of images, in shuffled fibres."""

    def __init__(
        self,
        decoder: Decoder,
        fibres: Fibres,
        generator: torch.Generator,
        shuffles: torch.Generator,
        team: Team = SOLO,
    ) -> None:
        """`generator` shuffles the fibres of a batch of images, `shuffles` the images into batches."""
        self.schedule = PaperSchedule()
        self.decoder = decoder
        self.passes = 0
        """Ended."""
        self._fibres = fibres
        self._team = team
        self._device = next(decoder.parameters()).device
        self._generators = {"generator": generator, "shuffles": shuffles}
        self._optimiser = torch.optim.Adam(_fitted_parameters(decoder), lr=self.schedule.rate)

    def spread(self, fibres: Fibres, count: int) -> tuple[Tensor, Tensor]:
        """Some other fibres, drawn as those of the descent are."""
        return _on(self._device, fibres.spread(count, self._generators["generator"]))

    def one_pass(self) -> Iterator[Tensor]:
        """The next pass over the images; the loss of each of its steps."""
        meta_epoch, sub_epoch = divmod(self.passes, self.schedule.sub_epochs)
        batches = list(self._fibres.batches(self.schedule.images, self._generators["shuffles"]))
        for batch, tiles in enumerate(batches):
            of_epoch = (batch + sub_epoch * len(batches), self.schedule.sub_epochs * len(batches))
            _set_rate(self._optimiser, self.schedule.rate_at(meta_epoch, *of_epoch))
            for drawn in self._fibres.shuffled(tiles, self.schedule.fibres, self._generators["generator"]):
                fibres_NC, condition_ND = _on(self._device, drawn)
                mine = own_share(self._team)
                likelihood_N = self.decoder(fibres_NC[mine], condition_ND[mine])
                yield _step(self._optimiser, likelihood_N, len(fibres_NC), self._team)
        self.passes += 1

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return _rate(self._optimiser)

    def state(self) -> State:
        """All that `restore` goes on from, between two passes."""
        draws = {name: generator.get_state() for name, generator in self._generators.items()}
        return {"passes": torch.tensor(self.passes)} | draws | _state_of(self.decoder, self._optimiser)

    def restore(self, state: State) -> None:
        """Be where another descent was when it gave this state."""
        self.passes = int(state["passes"])
        for name, generator in self._generators.items():
            generator.set_state(state[name])
        _restore(state, self.decoder, self._optimiser)


def _fit_as_the_paper(level: Level, descent: PaperDescent, held_out: Fibres, context: FitContext) -> Decoder:
    """The last step's weights: nothing selects. The held-out likelihood is only shown, after every pass."""
    seen = descent.spread(held_out, _SELECTION_FIBRES)
    passes, part = descent.schedule.meta_epochs * descent.schedule.sub_epochs, f"level{level.number}"
    if (kept := context.savepoints.load(part)) is not None:
        descent.restore(kept)
    _start_alike(descent.decoder, context.team)
    while descent.passes < passes:
        for step, loss in enumerate(descent.one_pass(), start=1):
            _refuse_non_finite(loss, level, step, f" of pass {descent.passes + 1}")
        with torch.no_grad():
            nll = -float(grouped_likelihood(descent.decoder, *seen).mean())
        at = (level.number, level.of, descent.passes, passes)
        context.watch(FitProgress(*at, nll, loss=float(loss), rate=descent.rate), descent.decoder)
        if context.savepoints.due(part):
            context.savepoints.save(part, descent.state())
    if not all(torch.isfinite(parameter).all() for parameter in descent.decoder.parameters()):
        raise FitError(f"the weights stopped being finite at {level}, in the last step.")
    return descent.decoder


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
            self.nll, self._state = nll, {name: of.clone() for name, of in self._decoder.state_dict().items()}

    def state(self) -> State:
        return {"nll": torch.tensor(self.nll, dtype=torch.float64)} | {
            f"best.{name}": tensor for name, tensor in self._state.items()
        }

    def restore(self, state: State) -> None:
        self.nll, self._state = float(state["nll"]), _below("best.", state)

    def decoder(self) -> Decoder:
        if not self._state:
            raise FitError(f"the held-out likelihood was never finite at {self._level}; its features cannot be fitted.")
        self._decoder.load_state_dict(self._state)
        return self._decoder


def _on(device: str | torch.device, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Fibres and their condition, there."""
    fibres, condition = drawn
    return fibres.to(device), condition.to(device)


def _gradient(decoder: Decoder, parameters: FittedParameters, precision: torch.dtype) -> Gradient:
    """By hand where the networks keep the parameters' precision."""
    if precision == parameters.vector.dtype:
        return GradientByHand(decoder, parameters)
    return GradientByAutograd(decoder, parameters, precision)


def _step(optimiser: torch.optim.Optimizer, likelihood: Tensor, fibres: int, team: Team) -> Tensor:
    """One step by the mean loss of the `fibres` of all members, of which `likelihood` holds this one's share."""
    loss = -functional.logsigmoid(likelihood).sum() / fibres
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    total = loss.detach()
    team.add_up([total, *(p.grad for group in optimiser.param_groups for p in group["params"])])
    optimiser.step()
    return total


def _start_alike(decoder: Decoder, team: Team) -> None:
    """Every member goes on from the first one's weights: processors may differ in the last bit of a start."""
    for tensor in decoder.state_dict().values():
        team.take_from(0, tensor)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _rate(optimiser: torch.optim.Optimizer) -> float:
    return float(optimiser.param_groups[0]["lr"])


def _refuse_non_finite(loss: Tensor, level: Level, step: int, of: str = "") -> None:
    if not torch.isfinite(loss):
        raise FitError(f"the loss became {loss.item()} at {level}, step {step}{of}.")


def _fitted_parameters(decoder: Decoder) -> list[Tensor]:
    return [parameter for parameter in decoder.parameters() if parameter.requires_grad]


def _state_of(decoder: Decoder, optimiser: torch.optim.Optimizer) -> State:
    """Weights and moments, each named alike in every descent of such a decoder."""
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        state |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
    return state


def _restore(state: State, decoder: Decoder, optimiser: torch.optim.Optimizer) -> None:
    decoder.load_state_dict(_below("decoder.", state))
    moments: dict[int, State] = {}
    for name, tensor in _below("adam.", state).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _below(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
