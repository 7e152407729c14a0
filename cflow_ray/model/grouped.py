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
from cflow_ray.model.position import position_encoding

# Shapes: B images, P positions, C channels, D condition channels, N = B * P fibres.


def grouped_likelihood(decoder: Decoder, fibres_BPC: Tensor, condition_PD: Tensor) -> Tensor:
    """Log-likelihoods per dimension (B, P), in nats, of fibres at the same P positions of B images; differentiable."""
    B, P, C = fibres_BPC.shape
    x_NC = fibres_BPC.reshape(B * P, C)
    log_det_N = x_NC.new_zeros(B * P)
    for block in decoder.blocks:
        x_NC, log_det_of_block_N = _through_block(block, x_NC, condition_PD, decoder.config.clamp)
        log_det_N = log_det_N + log_det_of_block_N
    constant = -0.5 * C * math.log(2 * math.pi)
    return ((constant - 0.5 * x_NC.square().sum(1) + log_det_N) / C).view(B, P)


def level_likelihood(decoder: Decoder, features_BChw: Tensor) -> Tensor:
    """Log-likelihoods per dimension (B, h, w), in nats, of one level's features (B, C, h, w)."""
    B, C, h, w = features_BChw.shape
    condition_PD = position_encoding(decoder.config.condition_channels, h, w).to(features_BChw.device)
    fibres_BPC = features_BChw.permute(0, 2, 3, 1).reshape(B, h * w, C)
    return grouped_likelihood(decoder, fibres_BPC, condition_PD).view(B, h, w)


def _through_block(block: AllInOneBlock, x_NC: Tensor, condition_PD: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
    """FrEIA 0.2's `AllInOneBlock.forward`: coupling, then scale, offset and rotation; log|det J| beside it."""
    passive, active = block.splits
    passive_N, active_N = torch.split(x_NC, [passive, active], dim=1)
    first, _, last = block.subnet
    of_position_PH = functional.linear(condition_PD, first.weight[:, passive:], first.bias)
    of_fibre_BPH = functional.linear(passive_N, first.weight[:, :passive]).view(-1, *of_position_PH.shape)
    hidden_NH = functional.relu(of_fibre_BPH + of_position_PH).flatten(0, 1)
    stretch_N, shift_N = torch.split(0.1 * last(hidden_NH), active, dim=1)
    log_stretch_N = clamp * torch.tanh(stretch_N)
    coupled_NC = torch.cat([passive_N, active_N * torch.exp(log_stretch_N) + shift_N], dim=1)
    scale_1C = block.global_scale_activation(block.global_scale)
    rotated_NC = functional.linear(coupled_NC * scale_1C + block.global_offset, block.w_perm)
    return rotated_NC, log_stretch_N.sum(1) + scale_1C.log().sum()
