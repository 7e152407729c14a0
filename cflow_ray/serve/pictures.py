"""What a person looks at: the anomaly map as a picture, and laid over its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cflow_ray.data.images import PreparedImage, decode, encode_png
from cflow_ray.evaluation.heat_maps import outlined, overlay

_LONGEST = 2048
"""Pixels of an overlay's longer side at most: colours take some hundred bytes a pixel."""
_FLOOR = 0.5
"""Of the map, from where on it is drawn, without a threshold."""


def map_picture(map_HW: NDArray[np.float32], image: PreparedImage) -> bytes:
    """PNG, 8-bit grey, of a map in the size of what it covers of its image; 0 to 1 is 0 to 255."""
    grey = Image.fromarray(np.round(map_HW * 255).astype(np.uint8))
    return encode_png(np.asarray(grey.resize(image.frame[2:], Image.Resampling.BILINEAR)))


def overlay_picture(
    content: bytes, image: PreparedImage, map_HW: NDArray[np.float32], threshold: float | None, max_pixels: int
) -> bytes:
    """PNG of an image with the map above its threshold in colour and the regions outlined.

    The image is whole; one of more than 2048 pixels on its longer side is drawn smaller.
    """
    upright = decode(content, max_pixels)
    left, top, width, height = image.frame
    share = min(1.0, _LONGEST / max(upright.size))
    size = (max(1, round(upright.width * share)), max(1, round(upright.height * share)))
    whole_HW = Image.new("F", size)
    right, bottom = round((left + width) * share), round((top + height) * share)
    left, top = round(left * share), round(top * share)
    inner = (max(1, right - left), max(1, bottom - top))
    whole_HW.paste(Image.fromarray(map_HW).resize(inner, Image.Resampling.BILINEAR), (left, top))
    map_hw = np.asarray(whole_HW, dtype=np.float32)
    floor = _FLOOR if threshold is None else threshold
    image_hw3 = np.asarray(upright.resize(size, Image.Resampling.BOX))
    coloured_hw3 = overlay(image_hw3, map_hw, floor)
    return encode_png(coloured_hw3 if threshold is None else outlined(coloured_hw3, map_hw > threshold))
