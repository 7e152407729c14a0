"""The evaluator that scores: a fitted flow folded into fewer, larger linear maps; FrEIA's forward is its oracle.

Of every block, the position's part of the first linear layer becomes a bias a location, computed once per map size;
scale and offset fold into the rotation behind them, FrEIA's factor 0.1 into the last linear layer; the logarithms of
all scales are summed once. The last rotation is left out: it does not change the norm of the latent vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow_ray.config import FlowConfig
from cflow_ray.model.parameters import activated_scale, block_state, halves
from cflow_ray.model.position import position_encoding

if TYPE_CHECKING:
    from cflow_ray.model.flow import Decoder  # scoring does without FrEIA

# Shapes: B images, P = h * w positions, C channels (C_p passive + C_a active), D condition channels, H hidden units.

# Fibres of one pass: more fall out of the cache, fewer make small matrices. One thread, lite0 at 256 px: 15.7 CPU-ms an
# image at 64 rows of stride 32, 14.7 at 1024, 17.4 at 4096.
_FIBRES_AT_ONCE = 1024


@dataclass(frozen=True)
class FoldedBlock:
    """One block of the flow; the tensors are views into the evaluator's buffers."""

    first_CpH: Tensor
    condition_HD: Tensor
    first_bias_H: Tensor
    stretch_HCa: Tensor
    stretch_bias_Ca: Tensor
    shift_HCa: Tensor
    shift_bias_Ca: Tensor
    rotation_CC: Tensor | None
    """Scale and rotation, transposed; None for the last block, which only scales."""
    scale_C: Tensor
    offset_C: Tensor


class FoldedDecoder(nn.Module):
    """log p(fibre | position) / C of one level, equal to FrEIA's within 1e-5 nats per dimension; not differentiable."""

    def __init__(self, channels: int, config: FlowConfig, state: Mapping[str, Tensor]) -> None:
        """Fold the stored parameters of a decoder (see `Decoder.state`); half precision is widened to float32."""
        super().__init__()
        self.channels = channels
        self.config = config
        self._biases: dict[tuple[int, int], list[Tensor]] = {}
        log_scale = 0.0
        for index in range(config.blocks):
            block = {name: tensor.float() for name, tensor in block_state(state, index).items()}
            scale_C = activated_scale(block["global_scale"][0])
            log_scale += float(scale_C.double().log().sum())
            last = index == config.blocks - 1
            for name, tensor in _folded(block, scale_C, channels, last).items():
                self.register_buffer(f"{name}_{index}", tensor, persistent=False)
        self.constant = log_scale - 0.5 * channels * math.log(2 * math.pi)
        """What no fibre changes: the logarithms of all scales and of the normal distribution's constant, in nats."""
        self.requires_grad_(False)

    @classmethod
    def of(cls, decoder: Decoder) -> Self:
        """The evaluator of a decoder as it is now; later changes of the decoder do not reach it."""
        return cls(decoder.channels, decoder.config, decoder.state())

    @torch.no_grad()
    def forward(self, features_BChw: Tensor) -> Tensor:
        """Log-likelihoods per dimension (B, h, w), in nats, of features (B, C, h, w); float32 whatever comes in."""
        B, C, h, w = features_BChw.shape
        fibres_BPC = features_BChw.permute(0, 2, 3, 1).reshape(B, h * w, C).float()
        biases = self.position_biases(h, w)
        images = max(1, _FIBRES_AT_ONCE // (h * w))
        likelihoods = []
        for fibres_bPC in torch.split(fibres_BPC, images):
            spans = range(0, h * w, _FIBRES_AT_ONCE)
            parts = [
                self.likelihood(
                    fibres_bPC[:, at : at + _FIBRES_AT_ONCE], [bias[at : at + _FIBRES_AT_ONCE] for bias in biases]
                )
                for at in spans
            ]
            likelihoods.append(torch.cat(parts, dim=1))
        return torch.cat(likelihoods).view(B, h, w)

    def likelihood(self, fibres_BPC: Tensor, biases_PH: Sequence[Tensor]) -> Tensor:
        """Log-likelihoods per dimension (B, P) of fibres at the same positions of B images, with their biases."""
        P, C = fibres_BPC.shape[1:]
        passive, _ = halves(C)
        x_NC = fibres_BPC.reshape(-1, C)
        log_det_N = torch.zeros_like(x_NC[:, 0])
        for block, bias_PH in zip(self.blocks, biases_PH, strict=True):
            passive_N, active_N = x_NC[:, :passive], x_NC[:, passive:]
            of_fibre_BPH = torch.mm(passive_N, block.first_CpH).view(-1, P, bias_PH.shape[1])
            hidden_NH = functional.relu_(of_fibre_BPH.add_(bias_PH)).flatten(0, 1)
            stretch_N = torch.addmm(block.stretch_bias_Ca, hidden_NH, block.stretch_HCa)
            shift_N = torch.addmm(block.shift_bias_Ca, hidden_NH, block.shift_HCa)
            log_stretch_N = self.config.clamp * torch.tanh(stretch_N)
            log_det_N = log_det_N + log_stretch_N.sum(1)
            moved_N = torch.addcmul(shift_N, active_N, torch.exp(log_stretch_N))
            if block.rotation_CC is None:
                x_NC = torch.cat([passive_N, moved_N], dim=1) * block.scale_C + block.offset_C
            else:
                rotated_NC = torch.addmm(block.offset_C, passive_N, block.rotation_CC[:passive])
                x_NC = torch.addmm(rotated_NC, moved_N, block.rotation_CC[passive:])
        likelihood_N: Tensor = (self.constant + log_det_N - 0.5 * x_NC.square().sum(1)) / C
        return likelihood_N.view(-1, P)

    def position_biases(self, height: int, width: int) -> list[Tensor]:
        """For every block the bias (P, H) of each location of a map of this size; made once a size and kept."""
        if (height, width) not in self._biases:
            self._biases[height, width] = self.new_position_biases(height, width)
        return self._biases[height, width]

    def new_position_biases(self, height: int, width: int) -> list[Tensor]:
        """The same, made anew and not kept."""
        return [self._position_bias(block, height, width) for block in self.blocks]

    @property
    def blocks(self) -> list[FoldedBlock]:
        """The folded blocks, in the order in which a fibre meets them."""
        return [self._block(index) for index in range(self.config.blocks)]

    @property
    def bytes(self) -> int:
        """Memory of the folded weights and of the biases made so far."""
        biases = [bias for of_size in self._biases.values() for bias in of_size]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*self.buffers(), *biases])

    def _block(self, index: int) -> FoldedBlock:
        names = FoldedBlock.__dataclass_fields__
        return FoldedBlock(**{name: getattr(self, f"{name}_{index}") for name in names})

    def _position_bias(self, block: FoldedBlock, height: int, width: int) -> Tensor:
        if self.config.condition_channels == 0:
            return block.first_bias_H.expand(height * width, -1)
        condition_PD = position_encoding(self.config.condition_channels, height, width).to(block.condition_HD.device)
        return functional.linear(condition_PD, block.condition_HD, block.first_bias_H)


def _folded(block: Mapping[str, Tensor], scale_C: Tensor, channels: int, last: bool) -> dict[str, Tensor | None]:
    """One block's tensors, all of them new: a decoder that is fitted further must not change its evaluator."""
    passive, active = halves(channels)
    first_HX, offset_C = block["subnet.0.weight"], block["global_offset"][0]
    last_2CaH, last_bias_2Ca = 0.1 * block["subnet.2.weight"], 0.1 * block["subnet.2.bias"]
    return {
        "first_CpH": first_HX[:, :passive].T.clone(memory_format=torch.contiguous_format),
        "condition_HD": first_HX[:, passive:].contiguous(),
        "first_bias_H": block["subnet.0.bias"].clone(),
        "stretch_HCa": last_2CaH[:active].T.contiguous(),
        "stretch_bias_Ca": last_bias_2Ca[:active],
        "shift_HCa": last_2CaH[active:].T.contiguous(),
        "shift_bias_Ca": last_bias_2Ca[active:],
        "rotation_CC": None if last else (block["w_perm"] * scale_C).T.contiguous(),
        "scale_C": scale_C,
        "offset_C": offset_C.clone() if last else block["w_perm"] @ offset_C,
    }
