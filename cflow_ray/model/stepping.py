"""What every descent does around its steps: learning rates, the state it can go on from, where its tensors are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow_ray.errors import FitError
from cflow_ray.model.context import State
from cflow_ray.model.flow import Decoder
from cflow_ray.model.team import Team


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


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Of all parameters, from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def rate_of(optimiser: torch.optim.Optimizer) -> float:
    """Of the last step."""
    return float(optimiser.param_groups[0]["lr"])


def state_of(decoder: Decoder, optimiser: torch.optim.Optimizer) -> State:
    """Weights and moments, each named alike in every descent of such a decoder."""
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        state |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
    return state


def restore_from(state: State, decoder: Decoder, optimiser: torch.optim.Optimizer) -> None:
    """Take over what `state_of` gave, of a decoder and an optimiser made alike."""
    decoder.load_state_dict(below("decoder.", state))
    moments: dict[int, State] = {}
    for name, tensor in below("adam.", state).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def below(prefix: str, state: State) -> State:
    """The part of a state whose names start like this, named by the rest."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
