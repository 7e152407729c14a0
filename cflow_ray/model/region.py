"""The region of interest of a detector: what lies outside is grey to the network and nothing to the map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.model.scoring import LARGEST, smoothed

# Shapes: H x W pixels of the network's input, h x w locations of a feature map.

_GREY = 127


def covered(image_3HW: Tensor, region_HW: Tensor | None) -> Tensor:
    """A uint8 image with everything outside the region made grey, so that it cannot reach a receptive field inside."""
    if region_HW is None:
        return image_3HW
    return torch.where(region_HW.to(image_3HW.device), image_3HW, _GREY).to(image_3HW.dtype)


def inside(region_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """The locations (h, w) of a feature map that have a pixel of the region in their cell."""
    return functional.adaptive_max_pool2d(region_HW[None, None].float(), size)[0, 0] > 0


def read_from(region_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """The locations (h, w) that the region's map is interpolated from: those inside, and their neighbours."""
    inside_11hw = inside(region_HW, size)[None, None].float()
    return functional.max_pool2d(inside_11hw, kernel_size=3, stride=1, padding=1)[0, 0] > 0


def cut_out(map_BHW: Tensor, region_HW: Tensor | None, sigma: float) -> Tensor:
    """Maps smoothed by a Gaussian of `sigma` pixels (0: not at all), from the region's own values, and 0 outside."""
    if region_HW is None:
        return smoothed(map_BHW, sigma) if sigma else map_BHW
    kept_BHW = map_BHW * region_HW
    if not sigma:
        return kept_BHW
    share_1HW = smoothed(region_HW[None].to(map_BHW.dtype), sigma).clamp_min(1e-6)
    return (smoothed(kept_BHW, sigma) / share_1HW).clamp_max(LARGEST) * region_HW
