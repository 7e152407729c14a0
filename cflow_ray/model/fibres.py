"""The fibres of one level: every location of every image's feature map as a row, drawn in groups of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow_ray.model.position import position_encoding

# Shapes: I images, P = h * w positions, C channels, D condition channels.

_POSITIONS_OF_A_DRAW = 64


class Fibres:
    """Features (I, C, h, w) as rows (I, P, C), with the condition (P, D) of every position."""

    def __init__(self, features_IChw: Tensor, condition_channels: int) -> None:
        images, channels, height, width = features_IChw.shape
        self.rows_IPC = features_IChw.permute(0, 2, 3, 1).reshape(images, height * width, channels)
        self.condition_PD = position_encoding(condition_channels, height, width)

    def __len__(self) -> int:
        """How many fibres there are, I * P."""
        return self.rows_IPC.shape[0] * self.rows_IPC.shape[1]

    def draw(
        self, count: int, generator: torch.Generator, positions: int = _POSITIONS_OF_A_DRAW
    ) -> tuple[Tensor, Tensor]:
        """About `count` fibres (b, p, C), at p random positions of b random images, and the condition (p, D)."""
        images, all_positions = self.rows_IPC.shape[:2]
        at_P = torch.randperm(all_positions, generator=generator)[:positions]
        of_I = torch.randperm(images, generator=generator)[: max(1, count // len(at_P))]
        return self.rows_IPC[of_I[:, None], at_P], self.condition_PD[at_P]

    def spread(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """About `count` fibres from all images, at as many random positions as that takes."""
        return self.draw(count, generator, positions=max(1, count // self.rows_IPC.shape[0]))
