"""What a person looks at: heat maps drawn over their images."""

from __future__ import annotations

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cflow_ray.data.images import encode_png


def overlay(
    image_HW3: NDArray[np.uint8], map_HW: NDArray[np.float32], floor: float, opacity: float = 0.6
) -> NDArray[np.uint8]:
    """The map over the image, (H, W, 3): values up to `floor` stay clear, those above go from yellow to dark red."""
    strength_HW = np.clip((map_HW - floor) / max(1e-6, 1 - floor), 0, 1)
    colour_HW3 = matplotlib.colormaps["YlOrRd"](0.3 + 0.7 * strength_HW)[..., :3] * 255
    alpha_HW1 = (opacity * np.clip(3 * strength_HW, 0, 1))[..., None]
    blended_HW3: NDArray[np.uint8] = np.round(image_HW3 * (1 - alpha_HW1) + colour_HW3 * alpha_HW1).astype(np.uint8)
    return blended_HW3


def heat_map_panel(
    image_HW3: NDArray[np.uint8],
    map_HW: NDArray[np.float32],
    floor: float,
    mask_HW: NDArray[np.bool_] | None,
    caption: str,
) -> bytes:
    """PNG with image, heat map and, where known, the true defect's outline, side by side under a caption."""
    panels = [image_HW3, overlay(image_HW3, map_HW, floor)]
    if mask_HW is not None:
        panels.append(outlined(image_HW3, mask_HW))
    gap = np.full((image_HW3.shape[0], 4, 3), 255, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    canvas = Image.new("RGB", (row.shape[1], row.shape[0] + 18), "white")
    ImageDraw.Draw(canvas).text((2, 3), caption, fill="black")
    canvas.paste(Image.fromarray(row), (0, 18))
    return encode_png(np.array(canvas))


def outlined(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image with the mask's border in cyan."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn_HW3 = image_HW3.copy()
    drawn_HW3[mask_HW & ~inner] = (0, 220, 255)
    return drawn_HW3
