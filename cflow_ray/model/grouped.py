"""The likelihood of fibres at shared positions: FrEIA's forward with the condition's part computed once a position.

The first linear layer of every coupling sees the fibre's passive half beside its position's encoding. That of the
encoding is the same for all images, so it is computed P times instead of B * P. FrEIA's own forward is the oracle.
"""

from __future__ import annotations

import math

import torch
from FrEIA.modules import AllInOneBlock
from torch import Tensor
from torch.nn import functional

from cflow_ray.model.flow import Decoder

# Shapes: B images, P positions, C channels, D condition channels, N = B * P fibres, H hidden units.


def grouped_likelihood(
    decoder: Decoder, fibres_BPC: Tensor, condition_PD: Tensor, precision: torch.dtype = torch.float32
) -> Tensor:
    """Log-likelihoods per dimension (B, P), in nats, of fibres at the same P positions of B images; differentiable.

    `precision` is that of the couplings' networks; scales, rotations and the likelihood are float32 in any case.
    """
    B, P, C = fibres_BPC.shape
    x_NC = fibres_BPC.reshape(B * P, C)
    log_det_N = x_NC.new_zeros(B * P)
    for block in decoder.blocks:
        passive, active = block.splits
        passive_N, active_N = torch.split(x_NC, [passive, active], dim=1)
        moves_N = _moves(block, passive_N.view(B, P, passive), condition_PD, precision).flatten(0, 1)
        stretch_N, shift_N = torch.split(0.1 * moves_N.to(x_NC.dtype), active, dim=1)
        log_stretch_N = decoder.config.clamp * torch.tanh(stretch_N)
        coupled_NC = torch.cat([passive_N, active_N * torch.exp(log_stretch_N) + shift_N], dim=1)
        scale_1C = block.global_scale_activation(block.global_scale)
        x_NC = functional.linear(coupled_NC * scale_1C + block.global_offset, block.w_perm)
        log_det_N = log_det_N + log_stretch_N.sum(1) + scale_1C.log().sum()
    constant = -0.5 * C * math.log(2 * math.pi)
    return ((constant - 0.5 * x_NC.square().sum(1) + log_det_N) / C).view(B, P)


def _moves(block: AllInOneBlock, passive_BP: Tensor, condition_PD: Tensor, precision: torch.dtype) -> Tensor:
    """What the network of a coupling says of the active channels, (B, P, 2 * active)."""
    passive = passive_BP.shape[2]
    first, _, last = block.subnet
    exact = precision == torch.float32  # then parameters stay as they are, float64 in tests included

    def cast(tensor: Tensor) -> Tensor:
        return tensor if exact else tensor.to(precision)

    first_HX = cast(first.weight)
    of_position_PH = functional.linear(cast(condition_PD), first_HX[:, passive:], cast(first.bias))
    of_fibre_BPH = functional.linear(cast(passive_BP), first_HX[:, :passive])
    return functional.linear(functional.relu(of_fibre_BPH + of_position_PH), cast(last.weight), cast(last.bias))
