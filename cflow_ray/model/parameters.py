"""A decoder's parameters as checkpoints hold them: FrEIA's names, shapes and arithmetic, without FrEIA.

Importing FrEIA takes a second and 60 MB, mostly for scipy; who only scores needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from cflow_ray.config import FlowConfig

_BLOCK = "flow.module_list.{}."


def state_shapes(channels: int, config: FlowConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of `Decoder.state()`, without building a decoder."""
    passive, active = halves(channels)
    inputs = passive + config.condition_channels
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(config.blocks):
        shapes |= {
            f"{_BLOCK.format(index)}global_scale": (1, channels),
            f"{_BLOCK.format(index)}global_offset": (1, channels),
            f"{_BLOCK.format(index)}w_perm": (channels, channels),
            f"{_BLOCK.format(index)}subnet.0.weight": (2 * inputs, inputs),
            f"{_BLOCK.format(index)}subnet.0.bias": (2 * inputs,),
            f"{_BLOCK.format(index)}subnet.2.weight": (2 * active, 2 * inputs),
            f"{_BLOCK.format(index)}subnet.2.bias": (2 * active,),
        }
    return shapes


def block_state(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The tensors of one block of a decoder's state, under FrEIA's names within the block."""
    prefix = _BLOCK.format(index)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def halves(channels: int) -> tuple[int, int]:
    """How FrEIA splits the channels: passive ones, which pass and steer, and active ones, which are moved."""
    return channels - channels // 2, channels // 2


def activated_scale(parameter: Tensor) -> Tensor:
    """The scale that FrEIA makes of its parameter: 0.1 softplus(beta = 0.5)."""
    return 0.1 * functional.softplus(parameter, beta=0.5)
