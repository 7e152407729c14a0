"""From the bytes of an image file to the network's input, in one way for every path: fit, archive job and server."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cflow_ray.config import MAX_PIXELS, InputConfig, MapFormat, Resampling
from cflow_ray.errors import ImageError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
"""File names that are taken for images, in any case."""
_FILTERS: dict[Resampling, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


_NUMPY = b"\x93NUMPY"

Frame = tuple[int, int, int, int]
"""A rectangle of an original image: left, top, width, height."""
Window = tuple[float, float, float, float]
"""The same for an image of any size: left, top, right, bottom as shares of its sides."""
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the encoder takes it, with the size of the original after its EXIF rotation."""

    pixels_3HW: NDArray[np.uint8]
    """RGB at the input size or, with tiling, at the size it is cut at; contiguous. An array, for who reads needs no torch."""
    width: int
    height: int
    frame: Frame
    """What of the original the pixels show."""

    @property
    def window(self) -> Window:
        """The frame as shares of the original's sides."""
        return as_window(self.frame, self.width, self.height)


def as_window(frame: Frame, width: int, height: int) -> Window:
    """A frame of an image of width x height as shares of its sides."""
    left, top, inner_width, inner_height = frame
    return left / width, top / height, (left + inner_width) / width, (top + inner_height) / height


def is_image_name(path: str) -> bool:
    """Whether a file's name says that it is an image."""
    return path.lower().endswith(EXTENSIONS)


def prepare(content: bytes, config: InputConfig, max_pixels: int = MAX_PIXELS) -> PreparedImage:
    """Decode, turn upright, convert to 8-bit RGB, crop and resize as a detector's input is configured.

    Both sides are resized to the input's (aspect is not kept, as in the paper); with tiling the image keeps its aspect
    and is only scaled, but for a side shorter than a tile, which is stretched to one. 16-bit and float images are
    scaled by fixed constants, never by their own range, so that brightness keeps its meaning; transparency is dropped.
    Raises ImageError where the bytes are no whole image of a known format, or too large to be scaled.
    """
    image = decode(content, max_pixels)
    frame = centre_frame(image.width, image.height, config.crop)
    height, width = _target(frame, config, max(max_pixels, MAX_PIXELS))
    left, top, right, bottom = frame[0], frame[1], frame[0] + frame[2], frame[1] + frame[3]
    resized = image.resize((width, height), _FILTERS[config.resampling], box=(left, top, right, bottom))
    pixels_3HW = np.asarray(resized).transpose(2, 0, 1).copy()  # contiguous, and writable, which torch wants
    return PreparedImage(pixels_3HW, image.width, image.height, frame)


def centre_frame(width: int, height: int, share: float) -> Frame:
    """The middle of an image, `share` of both sides."""
    inner_width, inner_height = max(1, round(share * width)), max(1, round(share * height))
    return (width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height


def centre_window(share: float) -> Window:
    """The middle of an image of any size, `share` of both sides."""
    return (1 - share) / 2, (1 - share) / 2, (1 + share) / 2, (1 + share) / 2


def _target(frame: Frame, config: InputConfig, most: int) -> tuple[int, int]:
    """Height and width to which a frame is resized, `most` pixels unless it is the input's size."""
    if config.tiling is None:
        return config.size
    scaled = (max(1, round(frame[3] * config.tiling.scale)), max(1, round(frame[2] * config.tiling.scale)))
    height, width = (max(side, tile) for side, tile in zip(scaled, config.size, strict=True))
    if height * width > most:
        scaled_to = f"{width} x {height} pixels once scaled by {config.tiling.scale:g}"
        raise ImageError(f"{scaled_to}; at most {most}", "too_large")
    return height, width


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright 8-bit RGB image; raises ImageError."""
    with _opened(content, max_pixels) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def decode_mask(content: bytes, size: tuple[int, int], window: Window = WHOLE) -> NDArray[np.bool_]:
    """A window of a mask at size (H, W), nearest neighbour; every value above 0 is defect. Raises ImageError.

    It is turned upright as the image that it lies over (`decode`).
    """
    with _opened(content) as lying:
        image = ImageOps.exif_transpose(lying)
        colours = [number for number, band in enumerate(image.getbands()) if band != "A"]
        width, height = image.size
        box = (window[0] * width, window[1] * height, window[2] * width, window[3] * height)
        pixels_HWC = np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST, box=box)).reshape(*size, -1)
    mask_HW: NDArray[np.bool_] = pixels_HWC[..., colours].max(axis=2) > 0
    return mask_HW


def has_defect(content: bytes) -> bool:
    """Whether any pixel of a mask is above 0. Raises ImageError."""
    with _opened(content) as image:
        bands = zip(image.getbands(), image.split(), strict=True)
        return any(bool((np.array(band) > 0).any()) for name, band in bands if name != "A")


@dataclass(frozen=True)
class ImageFacts:
    """What can be said of an image before it is prepared."""

    width: int
    height: int
    """Of the image upright, as `decode` gives it."""
    mode: str
    """Pillow's name for its channels and depth: L, RGB, RGBA, P, I;16, ..."""


def examine(content: bytes) -> ImageFacts:
    """The facts of an image, all of which is decoded so that damage anywhere is an ImageError."""
    with _opened(content) as image:
        mode = image.mode
        image.load()
        upright = ImageOps.exif_transpose(image)
        return ImageFacts(upright.width, upright.height, mode)


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """PNG of grey (H, W), 8 or 16 bit, or RGB (H, W, 3) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_map(map_HW: NDArray[np.float32], kind: MapFormat = "png16", longest: int | None = None) -> bytes:
    """An anomaly map in [0, 1) as bytes: a grey PNG, value x 65535 or x 255, or float16 as NumPy writes an array.

    With `longest` a larger map is first averaged down to that many pixels on its longer side.
    """
    if longest is not None and longest < max(map_HW.shape):
        height, width = (max(1, round(side * longest / max(map_HW.shape))) for side in map_HW.shape)
        map_HW = np.asarray(Image.fromarray(map_HW).resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    if kind == "float16":
        buffer = io.BytesIO()
        np.save(buffer, map_HW.astype(np.float16), allow_pickle=False)
        return buffer.getvalue()
    if kind == "png8":
        return encode_png(np.round(map_HW * 255).astype(np.uint8))
    return encode_png(np.round(map_HW * 65535).astype(np.uint16))


def decode_map(content: bytes) -> NDArray[np.float32]:
    """What `encode_map` wrote, within half a step: 1 / 131070, 1 / 510, or the 2^-12 of float16."""
    if content.startswith(_NUMPY):
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False), dtype=np.float32)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        steps = 255 if image.mode == "L" else 65535
        return (np.array(image).astype(np.float32) / steps).astype(np.float32)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.clip(np.array(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_float_to_8_bit(np.array(image))).convert("RGB")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _float_to_8_bit(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float pixels are taken as 0 to 1, what is not finite as 0."""
    return np.round(np.clip(np.nan_to_num(pixels, posinf=0, neginf=0), 0, 1) * 255).astype(np.uint8)


@contextmanager
def _opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image of a known format and allowed size; what Pillow raises on damaged or hostile bytes is an ImageError."""
    if not content:
        raise ImageError("empty file", "empty_file")
    _let_pillow_open(max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    size = f"{image.width} x {image.height} pixels"
                    raise ImageError(f"{size}; at most {max_pixels} are decoded (max_pixels)", "too_large")
                yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # before the size could be looked at here
        raise ImageError(
            f"more than {max_pixels} pixels; at most that many are decoded (max_pixels)", "too_large"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"no image of a known format ({', '.join(FORMATS)})", "no_image") from error
    except Exception as error:  # Pillow's decoders raise almost anything: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"damaged image: {' '.join(str(error).split()) or type(error).__name__}") from error


def _let_pillow_open(max_pixels: int) -> None:
    """Raise Pillow's own limit where it would refuse what may be decoded, which it does above twice its limit.

    Pillow has one for the whole process, and looks at it while it decodes, too. So it is left alone until a larger one is
    asked for, and never taken back: other threads may be decoding.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
