"""Flaws drawn on photographs of surfaces - crack, foreign patch, hole, scratch, stain - with exact masks.

Shapes: S is an image's side; an image is (S, S, 3) uint8, a mask (S, S) uint8 of 0 and 255, a paint (S, S, 3) and an
opacity (S, S) in [0, 1]; points of lines are complex, x + iy, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from cflow_ray.errors import ConfigError

Pixels = NDArray[np.uint8]
Field = NDArray[np.floating[Any]]
Points = NDArray[np.complexfloating[Any, Any]]
Texture = Callable[[np.random.Generator], Pixels]
Painter = Callable[[Field, np.random.Generator, Texture], tuple[Field, Field]]

DEFECTS: tuple[str, ...] = ("crack", "foreign", "hole", "scratch", "stain")

NOISE = 2.0  # standard deviation of the sensor noise, grey levels
SEEN = 6.0  # least change that counts as defect, grey levels: three times the noise
APART = 45.0  # least difference in mean grey level between a foreign patch and the surface it lies on
DARK = 70.0  # surfaces below this mean grey level show their flaws bright
OVERSAMPLE = 4  # lines are drawn at this multiple of the side and averaged down, for soft edges


def draw_defect(image: Pixels, kind: str, generator: np.random.Generator, texture: Texture) -> tuple[Pixels, Pixels]:
    """The image with one defect of `kind`, and its mask: outside it the image is unchanged, byte for byte.

    A pixel is in the mask if the defect changes it by `SEEN` grey levels or more, or if such pixels enclose it.
    `texture` gives another surface of the same side, for the foreign patch. A grey image stays grey.
    """
    if kind not in _PAINTERS:
        raise ConfigError(f"no defect {kind!r}; there are {', '.join(DEFECTS)}. Ask for one of these.")
    before = image.astype(np.float32)
    paint, opacity = _PAINTERS[kind](before, generator, texture)
    if is_grey(image):
        paint = paint.mean(axis=2, keepdims=True)
    change = opacity[..., None] * (paint - before)
    inside = ndimage.binary_fill_holes(np.abs(change).max(axis=2) >= SEEN) & (opacity > 0)
    grain = generator.normal(0, NOISE, opacity.shape) * opacity
    return to_pixels(before + (change + grain[..., None]) * inside[..., None]), np.where(inside, 255, 0).astype(
        np.uint8
    )


def to_pixels(levels: Field) -> Pixels:
    """Grey levels rounded and kept within 0 to 255."""
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def is_grey(image: Pixels) -> bool:
    """Whether all channels are the same."""
    return bool((image[..., :1] == image).all())


@cache
def grid(side: int) -> Points:
    """x + iy of every pixel's centre, (S, S), from the middle of the image."""
    line = np.arange(side) + 0.5 - side / 2
    return line[None, :] + 1j * line[:, None]


def _paint_crack(image: Field, generator: np.random.Generator, texture: Texture) -> tuple[Field, Field]:
    """A jagged dark line that thins out, with one to three branches."""
    side = len(image)
    heading = generator.uniform(0, 2 * math.pi)
    trunk = _walk(_place(0.3, side, generator), heading, generator.integers(12, 20), side, generator)
    tail = _walk(trunk[0], heading + math.pi, generator.integers(5, 12), side, generator)
    width = generator.uniform(2.2, 4.2) * _emphasis(image) * side / 256
    lines = [(trunk, width), (tail, width)]
    for _ in range(generator.integers(1, 4)):
        turned = heading + generator.choice([-1, 1]) * generator.uniform(0.5, 1.1)
        start = trunk[generator.integers(2, len(trunk) - 3)]
        lines.append((_walk(start, turned, generator.integers(4, 9), side, generator), 0.6 * width))
    opacity = _draw_lines(lines, side)
    return _contrast(image, opacity, -generator.uniform(0.7, 0.85)), 0.92 * opacity


def _paint_foreign(image: Field, generator: np.random.Generator, texture: Texture) -> tuple[Field, Field]:
    """A shred of another surface, lying on top with a narrow shadow."""
    side = len(image)
    shred = texture(generator).astype(np.float32)
    depth = _blob(side, 0.2, generator.uniform(0.07, 0.12) * side * _emphasis(image), 0.12, generator)
    cover = _soft(depth, 1.5 * side / 256)
    level, ground = _mean_colour(shred, cover).mean(), _mean_colour(image, cover).mean()
    if abs(level - ground) < APART:  # another exposure, or grass on gravel would be hidden
        shred *= (ground + generator.choice([-1, 1]) * generator.uniform(1.0, 1.4) * APART) / max(level, 1.0)
    down, right = np.rint(generator.uniform(0.008, 0.016, 2) * side).astype(int)
    moved = np.pad(depth, ((down, 0), (right, 0)), mode="edge")[:side, :side]
    return _over(shred, cover, 0.3 * image, 0.6 * _soft(moved, 4 * side / 256))


def _paint_hole(image: Field, generator: np.random.Generator, texture: Texture) -> tuple[Field, Field]:
    """A rounded pit, one side of it lit."""
    side = len(image)
    opacity = _soft(_blob(side, 0.15, generator.uniform(0.04, 0.085) * side, 0.06, generator), 1.5 * side / 256)
    middle = (grid(side) * opacity).sum() / opacity.sum()
    lamp = np.exp(1j * generator.uniform(0, 2 * math.pi))
    facing = ((grid(side) - middle) * lamp).real / math.sqrt(opacity.sum() / math.pi)  # -1 to 1 across the pit
    return _contrast(image, opacity, -0.8) + 18 * facing[..., None], opacity


def _paint_scratch(image: Field, generator: np.random.Generator, texture: Texture) -> tuple[Field, Field]:
    """One to three nearly parallel, slightly bowed grooves of uneven depth: a bright flank and its shadow."""
    side = len(image)
    along = np.exp(1j * generator.uniform(0, 2 * math.pi))
    length, bow = generator.uniform(0.35, 0.7) * side, generator.uniform(-0.08, 0.08)
    middle = _place(0.35, side, generator)
    width = generator.uniform(1.7, 3.0) * _emphasis(image) * side / 256
    t = np.linspace(-0.5, 0.5, 24)
    bright, shadow = [], []
    for _ in range(generator.integers(1, 4)):
        shift = along * complex(*generator.normal(0, (0.06 * side, 0.018 * side)))
        line = middle + shift + along * (t + 4j * bow * t**2) * length * generator.uniform(0.6, 1.0)
        thick = width * generator.uniform(0.7, 1.0)
        bright.append((line, thick))
        shadow.append((line + 0.8j * along * thick * _taper(line), thick))
    flank = _draw_lines(bright, side)
    paint = _contrast(image, flank, generator.uniform(0.65, 0.85))
    paint, opacity = _over(paint, flank, 0.45 * image, 0.8 * _draw_lines(shadow, side))
    return paint, opacity * (0.8 + 0.2 * _smooth_noise(side, 12, generator))


def _paint_stain(image: Field, generator: np.random.Generator, texture: Texture) -> tuple[Field, Field]:
    """A dried liquid: a film that hides part of the surface, strongest at its rim."""
    side = len(image)
    radius = generator.uniform(0.09, 0.18) * side
    depth = _blob(side, 0.2, radius, 0.13, generator)
    opacity = _soft(depth, 4 * side / 256) * (0.85 + 0.15 * _smooth_noise(side, 8, generator))
    rim = 0.4 * np.exp(-((depth / (0.1 * radius)) ** 2))[..., None]
    tint = (np.array([0.62, 0.52, 0.38]) * generator.uniform(0.85, 1.1)) ** _emphasis(image)
    ground = _mean_colour(image, opacity)
    if ground.mean() < DARK:
        return 0.5 * image + 255 * (tint + 0.2) * (0.35 + rim), opacity
    return (0.4 * image + 0.6 * ground) * tint * (1 - rim), opacity


_PAINTERS: dict[str, Painter] = {
    "crack": _paint_crack,
    "foreign": _paint_foreign,
    "hole": _paint_hole,
    "scratch": _paint_scratch,
    "stain": _paint_stain,
}


def _contrast(image: Field, opacity: Field, strength: float) -> Field:
    """A flat paint, brighter (> 0) or darker (< 0) than the surface, turned round where that would not show."""
    ground = _mean_colour(image, opacity)
    bright = ground.mean() < (150 if strength > 0 else DARK)
    colour = ground + abs(strength) * (235 - ground) if bright else ground * (1 - abs(strength))
    return np.broadcast_to(colour, image.shape)


def _over(top: Field, cover: Field, under: Field, shade: Field) -> tuple[Field, Field]:
    """Paint and opacity of `top` laid over `under`: where both reach, `top` takes its share of the light first."""
    opacity = np.maximum(cover, shade)
    share = (cover / np.maximum(opacity, 1e-6))[..., None]
    return top * share + under * (1 - share), opacity


def _mean_colour(image: Field, opacity: Field) -> Field:
    """The colour, (3,), of the surface under a defect."""
    return np.asarray(np.einsum("yxc,yx->c", image, opacity) / max(float(opacity.sum()), 1e-6))


def _emphasis(image: Field) -> float:
    """How much wider or darker a flaw must be to be seen on this surface: near 1 on brick, 1.5 on grass."""
    grey = image.mean(axis=2)
    step = len(grey) // 64 or 1
    return min(0.6 + float(np.abs(grey[:, step:] - grey[:, :-step]).mean()) / 40, 1.5)


def _blob(side: int, margin: float, radius: float, rough: float, generator: np.random.Generator) -> Field:
    """Depth in pixels, positive inside, of an ellipse at a random place whose outline random harmonics bend."""
    offset = grid(side) + (1 + 1j) * side / 2 - _place(margin, side, generator)
    turned = offset * np.exp(1j * generator.uniform(0, math.pi))
    z = turned.real + 1j * turned.imag / generator.uniform(0.65, 1.0)
    outline: Field = np.ones((side, side))
    for k in range(2, 8):
        outline += rough * generator.normal() * 1.5 / k * np.cos(k * np.angle(z) + generator.uniform(0, 2 * math.pi))
    return np.asarray(radius * outline - np.abs(z))


def _soft(depth: Field, width: float) -> Field:
    return np.asarray(np.clip(depth / width + 0.5, 0, 1))


def _place(margin: float, side: int, generator: np.random.Generator) -> complex:
    """A random point at least `margin` (a share of the side) from every edge."""
    return complex(*generator.uniform(margin, 1 - margin, 2)) * side


def _walk(
    start: complex, heading: float, steps: int | np.integer[Any], side: int, generator: np.random.Generator
) -> Points:
    """A path of `steps` + 1 points whose direction wanders about `heading`."""
    moves = generator.uniform(0.02, 0.045, steps) * side * np.exp(1j * (heading + generator.normal(0, 0.45, steps)))
    return np.concatenate([[start], start + moves.cumsum()])


def _draw_lines(lines: Sequence[tuple[Points, float]], side: int) -> Field:
    """Opacity of lines, each with its widest width in pixels, that taper towards their end."""
    canvas = Image.new("L", (side * OVERSAMPLE, side * OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        corners = [(point.real, point.imag) for point in points * OVERSAMPLE]
        for start, (x, y), share in zip(corners[:-1], corners[1:], _taper(points)[:-1], strict=True):
            thick = max(1, round(width * share * OVERSAMPLE))
            pen.line([start, (x, y)], fill=255, width=thick)
            pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


def _taper(points: Points) -> Field:
    return np.linspace(1.0, 0.35, len(points))


def _smooth_noise(side: int, cells: int, generator: np.random.Generator) -> Field:
    """A smooth field in [-1, 1] with `cells` bumps a side."""
    coarse = Image.fromarray(generator.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32).clip(-1, 1)
