"""The step that every descent takes, and what all of them do before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow_ray.errors import FitError
from cflow_ray.model.context import State
from cflow_ray.model.fitted_parameters import FittedParameters
from cflow_ray.model.flow import Decoder
from cflow_ray.model.gradient import gradient_of
from cflow_ray.model.team import SOLO, Team, own_share

# Shapes: B images, P positions, C channels, D condition channels.


@dataclass(frozen=True)
class Level:
    """One level of the pyramid in a fit."""

    number: int
    of: int
    stride: float
    """Pixels of the input per position."""

    def __str__(self) -> str:
        return f"level {self.number} (stride {self.stride:g})"


def refuse_non_finite(loss: Tensor, level: Level, step: int, of: str = "") -> None:
    """Raises FitError, naming level and step, where a loss is not finite."""
    if not torch.isfinite(loss):
        raise FitError(f"the loss became {loss.item()} at {level}, step {step}{of}.")


def on_device(device: str | torch.device, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Fibres and their condition, there."""
    fibres, condition = drawn
    return fibres.to(device), condition.to(device)


def start_alike(decoder: Decoder, team: Team) -> None:
    """Every member goes on from the first one's weights: processors may differ in the last bit of a start."""
    for tensor in decoder.state_dict().values():
        team.take_from(0, tensor)


class Stepper:
    """Adam on all that is fitted of a decoder, by the loss -log sigmoid(log p / C) (paper section 5)."""

    def __init__(
        self,
        decoder: Decoder,
        precision: torch.dtype = torch.float32,
        team: Team = SOLO,
        largest_gradient: float = math.inf,
    ) -> None:
        """`precision` is that of the couplings' networks; `team` shares the fibres of every step.

        A gradient of a larger norm than `largest_gradient` is shortened to it.
        """
        self._decoder = decoder
        self._team = team
        self._largest_gradient = largest_gradient
        self._parameters = FittedParameters(decoder)
        self._gradient = gradient_of(decoder, self._parameters, precision)
        self._optimiser = torch.optim.Adam([self._parameters.vector], fused=True)

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return float(self._optimiser.param_groups[0]["lr"])

    def step(self, fibres_BPC: Tensor, condition_PD: Tensor, rate: float) -> Tensor:
        """Take a step by the mean loss of the team's fibres at P positions of B images; that loss, before the step."""
        mine = own_share(self._team)  # of the positions: each one's condition is computed once
        own = on_device(self._parameters.vector.device, (fibres_BPC[:, mine], condition_PD[mine]))
        loss = self._gradient.compute(*own, of=fibres_BPC[..., 0].numel())
        self._team.add_up([loss, self._parameters.vector_gradient])
        if math.isfinite(self._largest_gradient):
            torch.nn.utils.clip_grad_norm_(self._parameters.vector, self._largest_gradient)
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()
        return loss

    def state(self) -> State:
        """All that `restore` goes on from, after a step at least: weights and moments."""
        weights, moments = self._decoder.state(), self._optimiser.state_dict()["state"][0]
        of_decoder = {f"decoder.{name}": tensor for name, tensor in weights.items()}
        return of_decoder | {f"adam.{name}": tensor for name, tensor in moments.items()}

    def restore(self, state: State) -> None:
        """Be where another stepper was, of a decoder made alike, when it gave this state."""
        self._decoder.load_state(below("decoder.", state))
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": {0: below("adam.", state)}, "param_groups": groups})


def below(prefix: str, state: State) -> State:
    """The part of a state whose names start like this, named by the rest."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
