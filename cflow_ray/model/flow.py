"""The decoder: a conditional normalising flow of one pyramid level, built from FrEIA's blocks (paper section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from cflow_ray.config import FlowConfig, StoredType

# Shapes: N fibres (pixels of a feature map), C channels, D condition channels.


class Decoder(nn.Module):
    """p(fibre | position) of one level: FrEIA's `SequenceINN` of `AllInOneBlock`s over single fibres.

    Each block couples one half of the channels to the other and the position, scales and shifts every channel, and
    rotates them by a fixed matrix. `generator` draws the rotations and the linear layers' weights; without one the
    decoder is for loading weights into.
    """

    def __init__(self, channels: int, config: FlowConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.config = config
        self.flow = SequenceINN(channels)
        for _ in range(config.blocks):
            # permute_soft=True would sample SO(C) with scipy, minutes for a wide network. The hard permutation has
            # the same parameters and the same forward; the rotation is written over it below.
            self.flow.append(
                AllInOneBlock,
                **_condition_arguments(config),
                subnet_constructor=_subnet,
                affine_clamping=config.clamp,
                global_affine_type="SOFTPLUS",
                permute_soft=False,
            )
        if generator is not None:
            self._draw(generator)

    def forward(self, fibres_NC: Tensor, condition_ND: Tensor) -> Tensor:
        """Log-likelihood per dimension (N,) in nats: log p(fibre | condition) / C; an unconditional flow ignores it."""
        condition = [condition_ND] if self.config.condition_channels else None
        latent_NC, log_det_N = self.flow(fibres_NC, condition)
        constant = -0.5 * self.channels * math.log(2 * math.pi)
        likelihood: Tensor = (constant - 0.5 * latent_NC.square().sum(1) + log_det_N) / self.channels
        return likelihood

    @property
    def blocks(self) -> list[AllInOneBlock]:
        """FrEIA's blocks, in the order in which a fibre meets them."""
        blocks: list[AllInOneBlock] = list(self.flow)
        return blocks

    @torch.no_grad()
    def set_rotation(self, block: int, rotation_CC: Tensor) -> None:
        """Make `rotation_CC` (orthogonal) the matrix that follows the coupling of a block, and its inverse with it."""
        self.blocks[block].w_perm.copy_(rotation_CC)
        self.blocks[block].w_perm_inv.copy_(rotation_CC.T)

    def state(self, dtype: StoredType = "float32") -> dict[str, Tensor]:
        """What has to be stored: every parameter but the inverse rotations, which are the transposes of the others.

        float16 halves the matrices only: scales reach 1e5 before their activation, and vectors weigh nothing. A rotation
        that is rounded changes norms a little, and the last one's norm is all that counts: it becomes the identity.
        """
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith("w_perm_inv")}
        if dtype == "float32":
            return state
        rounded = {
            name: tensor.half() if name.endswith(("weight", "w_perm")) else tensor for name, tensor in state.items()
        }
        last = f"flow.module_list.{len(self.blocks) - 1}.w_perm"
        return rounded | {last: torch.eye(self.channels, dtype=torch.float16, device=state[last].device)}

    def round_to(self, dtype: StoredType) -> None:
        """Take the values that a stored decoder will have, so that it scores before as it will after."""
        self.load_state({name: tensor.float() for name, tensor in self.state(dtype).items()})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state()` gave; raises RuntimeError (torch's) where names or shapes differ."""
        inverses = {f"{name}_inv": tensor.mT for name, tensor in state.items() if name.endswith("w_perm")}
        self.load_state_dict({**state, **inverses})

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        for index, block in enumerate(self.blocks):
            self.set_rotation(index, sample_rotation(self.channels, generator))
            for layer in (block.subnet[0], block.subnet[2]):
                bound = 1 / math.sqrt(layer.in_features)  # torch's own initialisation of nn.Linear
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)


def sample_rotation(channels: int, generator: torch.Generator) -> Tensor:
    """A matrix (channels, channels) drawn uniformly from SO(channels): QR of a Gaussian, signs fixed (Mezzadri 2007)."""
    gaussian = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(gaussian)
    rotation: Tensor = orthogonal * upper.diagonal().sign()
    if torch.linalg.det(rotation) < 0:
        rotation[:, 0].neg_()
    return rotation.float()


def _condition_arguments(config: FlowConfig) -> dict[str, Any]:
    if config.condition_channels == 0:
        return {}
    return {"cond": 0, "cond_shape": (config.condition_channels,)}


def _subnet(channels_in: int, channels_out: int) -> nn.Module:
    """The network of a coupling: Linear, ReLU, Linear with a hidden layer twice as wide as its input."""
    return nn.Sequential(nn.Linear(channels_in, 2 * channels_in), nn.ReLU(), nn.Linear(2 * channels_in, channels_out))
