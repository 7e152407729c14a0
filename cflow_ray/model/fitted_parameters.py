"""All that is fitted of a decoder in one vector, so that an optimiser moves one tensor instead of dozens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cflow_ray.model.flow import Decoder

# Shapes: K blocks, C channels of which A are active (moved by a coupling), D condition channels, H hidden units.


class Stacked(NamedTuple):
    """What is fitted of every block, by kind, blocks first."""

    first_weight: Tensor
    """(K, H, C - A + D): passive channels, then the condition's."""
    first_bias: Tensor
    """(K, H)."""
    last_weight: Tensor
    """(K, 2A, H): stretches, then shifts."""
    last_bias: Tensor
    """(K, 2A)."""
    scale: Tensor
    """(K, 1, C), before its activation."""
    offset: Tensor
    """(K, 1, C)."""


_NAMES = ("subnet.0.weight", "subnet.0.bias", "subnet.2.weight", "subnet.2.bias", "global_scale", "global_offset")
"""Of FrEIA's parameters, in the order of Stacked."""


class FittedParameters:
    """A decoder's parameters, which become views of `vector`, and their gradient.

    A decoder follows the vector that was made of it last.
    """

    def __init__(self, decoder: Decoder) -> None:
        kinds = [[block.get_parameter(name) for block in decoder.blocks] for name in _NAMES]
        self.of_decoder = [parameter for kind in kinds for parameter in kind]
        """The decoder's parameters, in the order in which they stand in the vector."""
        self.vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in self.of_decoder]))
        self.vector.grad = self.vector_gradient = torch.zeros_like(self.vector)
        self.values = _stacked(self.vector.detach(), kinds)
        self.gradient = _stacked(self.vector_gradient, kinds)
        for kind, values in zip(kinds, self.values, strict=True):
            for parameter, view in zip(kind, values, strict=True):
                parameter.data = view


def _stacked(vector: Tensor, kinds: list[list[Tensor]]) -> Stacked:
    """Views of the vector's parts in the shapes of the kinds."""
    parts = torch.split(vector, [len(kind) * kind[0].numel() for kind in kinds])
    return Stacked(*(part.view(len(kind), *kind[0].shape) for part, kind in zip(parts, kinds, strict=True)))
