"""The loss of a step and its gradient: by autograd in any precision, or by hand, as exact and sooner.

By hand is the derivative of `grouped_likelihood`, its oracle, in half as many operations over buffers that are made
once. Fibres are columns there: half of the channels is then one piece of memory. A step of lite0's levels in `fast`,
one thread: 19, 24 and 91 CPU-ms where autograd takes 32, 38 and 111.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.model.fitted_parameters import FittedParameters, Stacked
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import grouped_likelihood

# Shapes: K blocks, B images, P positions, N = B * P fibres, C channels of which Q are passive and A active (moved by a
# coupling), M = 2A moves, D condition channels, H hidden units. A name with G is the loss's gradient by what is named.

_SMALL = 0.1  # FrEIA's factor on what the network of a coupling says


class Gradient(Protocol):
    """Of the loss -log sigmoid(log p / C) (paper section 5), written over the fitted parameters' gradient."""

    def compute(self, fibres_BPC: Tensor, condition_PD: Tensor, of: int) -> Tensor:
        """Write the gradient of the sum of these fibres' losses divided by `of`; returns that loss."""


class GradientByAutograd:
    """With the networks of the couplings in any precision."""

    def __init__(self, decoder: Decoder, parameters: FittedParameters, precision: torch.dtype) -> None:
        self._decoder = decoder
        self._parameters = parameters
        self._precision = precision

    def compute(self, fibres_BPC: Tensor, condition_PD: Tensor, of: int) -> Tensor:
        """See Gradient."""
        likelihood_BP = grouped_likelihood(self._decoder, fibres_BPC, condition_PD, self._precision)
        loss = -functional.logsigmoid(likelihood_BP).sum() / of
        views = [view for kind in self._parameters.gradient for view in kind]
        for view, gradient in zip(views, torch.autograd.grad(loss, self._parameters.of_decoder), strict=True):
            view.copy_(gradient)
        return loss.detach()


class GradientByHand:
    """In the parameters' own precision."""

    def __init__(self, decoder: Decoder, parameters: FittedParameters) -> None:
        self._decoder = decoder
        self._parameters = parameters
        self._passage: _Passage | None = None

    @torch.no_grad()
    def compute(self, fibres_BPC: Tensor, condition_PD: Tensor, of: int) -> Tensor:
        """See Gradient."""
        grid = (fibres_BPC.shape[0], fibres_BPC.shape[1])
        if self._passage is None or self._passage.grid != grid:
            self._passage = _Passage(self._decoder, self._parameters, grid)
        return self._passage.compute(fibres_BPC, condition_PD, of)


def gradient_of(decoder: Decoder, parameters: FittedParameters, precision: torch.dtype) -> Gradient:
    """By hand where the networks keep the parameters' precision."""
    if precision == parameters.vector.dtype:
        return GradientByHand(decoder, parameters)
    return GradientByAutograd(decoder, parameters, precision)


class _Passage:
    """The way through a flow and back, for fibres of so many images and positions."""

    def __init__(self, decoder: Decoder, parameters: FittedParameters, grid: tuple[int, int]) -> None:
        self.grid = grid
        self._clamp: float = decoder.config.clamp
        self._activation = decoder.blocks[0].global_scale_activation
        values, gradient = parameters.values, parameters.gradient
        K, H = values.first_bias.shape
        Q, A = decoder.blocks[0].splits
        B, P = grid
        self._scale_KC1, self._scale_G_KC1 = values.scale.mT, gradient.scale.mT
        self._first_bias_H1 = values.first_bias.view(K * H, 1)  # of all blocks: one product for all is faster
        self._of_condition_HD = values.first_weight.view(K * H, -1)[:, Q:]
        self._of_condition_G_HD = gradient.first_weight.view(K * H, -1)[:, Q:]
        empty = values.offset.new_empty
        self._fibres_CN = empty(Q + A, B * P)
        scratch = _Scratch(empty(2 * A, B * P), empty(H, B, P), empty(Q + A, B * P))
        self._blocks: list[_BlockPassage] = []
        for number in range(K):
            fibres_CN = self._blocks[-1].output_CN if self._blocks else self._fibres_CN
            self._blocks.append(_BlockPassage(decoder, parameters, number, fibres_CN, scratch))

    def compute(self, fibres_BPC: Tensor, condition_PD: Tensor, of: int) -> Tensor:
        """See Gradient."""
        active_scale_KC1, slope_KC1 = self._active_scale()
        likelihood_N = self._forward(fibres_BPC, condition_PD, active_scale_KC1)
        log_density_G_N = torch.sigmoid(-likelihood_N) / (-of * fibres_BPC.shape[2])
        self._back(log_density_G_N, condition_PD)
        by_coupling_KC1 = torch.stack([block.active_scale_G_C1 for block in self._blocks])
        by_log_det_KC1 = log_density_G_N.sum() / active_scale_KC1
        torch.mul(by_coupling_KC1 + by_log_det_KC1, slope_KC1, out=self._scale_G_KC1)
        loss: Tensor = -functional.logsigmoid(likelihood_N).sum() / of
        return loss

    @torch.enable_grad()
    def _active_scale(self) -> tuple[Tensor, Tensor]:
        """The scales (K, C, 1) after FrEIA's activation, and its slope there."""
        scale_KC1 = self._scale_KC1.detach().requires_grad_()
        active_scale_KC1 = self._activation(scale_KC1)
        return active_scale_KC1.detach(), torch.autograd.grad(active_scale_KC1.sum(), scale_KC1)[0]

    def _forward(self, fibres_BPC: Tensor, condition_PD: Tensor, active_scale_KC1: Tensor) -> Tensor:
        """Log-likelihoods per dimension (N,), in nats."""
        B, P, C = fibres_BPC.shape
        self._fibres_CN.view(C, B, P).copy_(fibres_BPC.permute(2, 0, 1))
        of_positions_HP = torch.addmm(self._first_bias_H1, self._of_condition_HD, condition_PD.T)
        of_blocks = zip(self._blocks, of_positions_HP.chunk(len(self._blocks)), active_scale_KC1, strict=True)
        bends_N = torch.stack(
            [block.forward(of_position_HP, scale_C1) for block, of_position_HP, scale_C1 in of_blocks]
        ).sum(0)
        log_det_N = self._clamp * bends_N + active_scale_KC1.log().sum()
        constant = -0.5 * C * math.log(2 * math.pi)
        return (constant - 0.5 * self._blocks[-1].output_CN.square().sum(0) + log_det_N) / C

    def _back(self, log_density_G_N: Tensor, condition_PD: Tensor) -> None:
        """Writes the gradient, less that of the scales."""
        output_G_CN = self._blocks[-1].output_CN * -log_density_G_N
        for block in reversed(self._blocks):
            output_G_CN = block.back(output_G_CN, log_density_G_N)
        of_positions_G_HP = torch.cat([block.of_position_G_HP for block in self._blocks])
        torch.mm(of_positions_G_HP, condition_PD, out=self._of_condition_G_HD)


class _Scratch(NamedTuple):
    """Buffers that blocks use one after the other, so that they stay in the processor's cache."""

    moves_MN: Tensor
    hidden_G_HBP: Tensor
    scaled_CN: Tensor


class _BlockPassage:
    """The way through one block and back. Making a view takes as long as a small operation, so they are made once."""

    def __init__(
        self, decoder: Decoder, parameters: FittedParameters, number: int, fibres_CN: Tensor, scratch: _Scratch
    ) -> None:
        """`fibres_CN` is where the fibres will be."""
        block = decoder.blocks[number]
        Q, A = block.splits
        H, B, P = scratch.hidden_G_HBP.shape
        C, N = fibres_CN.shape
        own, gradient = (Stacked(*(kind[number] for kind in of)) for of in (parameters.values, parameters.gradient))
        empty = fibres_CN.new_empty
        self._clamp: float = decoder.config.clamp
        self._rotation_CC: Tensor = block.w_perm
        self._of_passive_HQ, self._of_passive_G_HQ = own.first_weight[:, :Q], gradient.first_weight[:, :Q]
        self._first_bias_G_H = gradient.first_bias
        self._last_MH, self._last_G_MH = own.last_weight, gradient.last_weight
        self._last_bias_M1, self._last_bias_G_M = own.last_bias[:, None], gradient.last_bias
        self._offset_C1, self._offset_G_C1 = own.offset.T, gradient.offset.T
        self._fibres_CN, self._passive_QN, self._active_AN = fibres_CN, fibres_CN[:Q], fibres_CN[Q:]
        self._fibres_G_CN = empty(C, N)
        self._passive_G_QN, self._active_G_AN = self._fibres_G_CN[:Q], self._fibres_G_CN[Q:]
        self._hidden_HN = empty(H, N)
        self._hidden_HBP = self._hidden_HN.view(H, B, P)
        self._hidden_G_HBP, self._hidden_G_HN = scratch.hidden_G_HBP, scratch.hidden_G_HBP.view(H, N)
        self._moves_MN = scratch.moves_MN
        self._bend_move_AN, self._shift_AN = scratch.moves_MN[:A], scratch.moves_MN[A:]
        self._bend_AN, self._stretch_AN, self._stretched_AN = empty(A, N), empty(A, N), empty(A, N)
        self._scaled_CN = scratch.scaled_CN
        self.output_CN = empty(C, N)
        self.of_position_G_HP = empty(H, P)
        self.active_scale_G_C1 = empty(C, 1)
        """Less what the log-determinant adds."""

    def forward(self, of_position_HP: Tensor, active_scale_C1: Tensor) -> Tensor:
        """Fills `output_CN`, and moves the fibres' active half in place; the sum of the bends (N,)."""
        self._active_scale_C1 = active_scale_C1
        self._hidden_HBP.copy_(of_position_HP[:, None])
        self._hidden_HN.addmm_(self._of_passive_HQ, self._passive_QN).relu_()
        torch.addmm(self._last_bias_M1, self._last_MH, self._hidden_HN, beta=_SMALL, alpha=_SMALL, out=self._moves_MN)
        torch.tanh(self._bend_move_AN, out=self._bend_AN)
        torch.mul(self._bend_AN, self._clamp, out=self._stretch_AN).exp_()
        torch.mul(self._active_AN, self._stretch_AN, out=self._stretched_AN)
        torch.add(self._stretched_AN, self._shift_AN, out=self._active_AN)
        torch.addcmul(self._offset_C1, self._fibres_CN, active_scale_C1, out=self._scaled_CN)
        torch.mm(self._rotation_CC, self._scaled_CN, out=self.output_CN)
        return self._bend_AN.sum(0)

    def back(self, output_G_CN: Tensor, log_density_G_N: Tensor) -> Tensor:
        """Writes the gradient of the block's parameters; returns that of the fibres (C, N)."""
        fibres_G_CN = torch.mm(self._rotation_CC.T, output_G_CN, out=self._fibres_G_CN)
        torch.sum(fibres_G_CN, 1, keepdim=True, out=self._offset_G_C1)
        torch.mul(fibres_G_CN, self._fibres_CN, out=self._scaled_CN)
        torch.sum(self._scaled_CN, 1, keepdim=True, out=self.active_scale_G_C1)
        fibres_G_CN.mul_(self._active_scale_C1)
        bend_slope_AN = self._bend_AN.square_().sub_(1).mul_(-_SMALL * self._clamp)
        torch.addcmul(log_density_G_N, self._active_G_AN, self._stretched_AN, out=self._bend_move_AN)
        self._bend_move_AN.mul_(bend_slope_AN)
        torch.mul(self._active_G_AN, _SMALL, out=self._shift_AN)
        torch.sum(self._moves_MN, 1, out=self._last_bias_G_M)
        torch.mm(self._moves_MN, self._hidden_HN.T, out=self._last_G_MH)
        torch.mm(self._last_MH.T, self._moves_MN, out=self._hidden_G_HN)
        torch.ops.aten.threshold_backward.grad_input(
            self._hidden_G_HN, self._hidden_HN, 0, grad_input=self._hidden_G_HN
        )
        torch.sum(self._hidden_G_HBP, 1, out=self.of_position_G_HP)
        torch.sum(self.of_position_G_HP, 1, out=self._first_bias_G_H)
        torch.mm(self._hidden_G_HN, self._passive_QN.T, out=self._of_passive_G_HQ)
        self._active_G_AN.mul_(self._stretch_AN)
        self._passive_G_QN.addmm_(self._of_passive_HQ.T, self._hidden_G_HN)
        return fibres_G_CN
