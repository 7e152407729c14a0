"""Altered copies of a training image: mirrored, turned by a small angle."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import AugmentationConfig
from cflow_ray.model.seeds import seeded


def altered_copies(image_3HW: Tensor, config: AugmentationConfig, seed: int) -> list[Tensor]:
    """`config.copies` copies of a uint8 image (3, H, W), each altered in its own way.

    Seed and image decide the angles, whichever images came before and whoever encodes it.
    """
    generator = seeded(seed, f"copies of {zlib.crc32(image_3HW.numpy().tobytes()):08x}")
    copies = []
    for number in range(config.copies):
        copy_3HW = image_3HW.flip(2) if config.horizontal_flip and number % 2 == 0 else image_3HW
        if config.rotation:
            share = 2 * torch.rand((), generator=generator).item() - 1
            copy_3HW = rotated(copy_3HW, share * config.rotation)
        copies.append(copy_3HW)
    return copies


def rotated(image_3HW: Tensor, degrees: float) -> Tensor:
    """A uint8 image turned counter-clockwise about its middle, bilinear, the border mirrored; its size stays."""
    _, height, width = image_3HW.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid works in [-1, 1] on both axes, so the aspect has to be undone for a rigid turn.
    matrix_123 = torch.tensor([[[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]])
    grid_1HW2 = functional.affine_grid(matrix_123, [1, 3, height, width], align_corners=False)
    turned_13HW = functional.grid_sample(
        image_3HW[None].float(), grid_1HW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return turned_13HW[0].round().clamp(0, 255).byte()
