"""Demo data that needs no download: crops of the photographs in scikit-image's wheel, with drawn defects and exact masks.

Legend: S side of an image; images are (S, S, 3) uint8 RGB, opacities (S, S) float32 in [0, 1], masks (S, S) uint8 0/255.

Every category is one photograph, split into two rectangles that share no pixel: normal training crops come from one, all
test crops from the other. Sources: brick and grass and gravel (CC0), stars (NASA, public domain), tissue (no known
copyright restrictions); the notes of each are in `skimage.data`.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cflow_ray.errors import ConfigError, DataError

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]
Region = Literal["train", "test"]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the photograph; right and bottom excluded


@dataclass(frozen=True)
class DemoSize:
    """Images per category (`test_per_defect` of each kind of `DEFECTS`) and their side in pixels."""

    train: int = 120
    test_good: int = 24
    test_per_defect: int = 8
    side: int = 256


@dataclass(frozen=True)
class Source:
    """One photograph of the wheel and how to cut it: `window` is the side of a crop in its pixels, before scaling."""

    file: str
    train: Box
    test: Box
    window: int
    turn: float  # largest rotation, radians
    upside_down: bool  # whether a vertical flip still looks like the same surface


@dataclass(frozen=True)
class Pose:
    """Where a crop lies in its photograph: centre and side in pixels, rotation in radians, flips as signs."""

    x: float
    y: float
    side: float
    angle: float
    flip_x: int
    flip_y: int


SOURCES: dict[str, Source] = {
    "brick": Source("brick.png", (0, 0, 310, 512), (310, 0, 512, 512), 160, 0.05, False),
    "grass": Source("grass.png", (202, 0, 512, 512), (0, 0, 202, 512), 100, 0.10, True),
    "gravel": Source("gravel.png", (0, 0, 512, 310), (0, 310, 512, 512), 112, 0.10, True),
    "stars": Source("hubble_deep_field.jpg", (0, 332, 1000, 872), (0, 0, 1000, 332), 256, 0.15, True),
    "tissue": Source("ihc.png", (0, 0, 512, 310), (0, 310, 512, 512), 130, 0.10, True),
}
CATEGORIES: tuple[str, ...] = tuple(SOURCES)
DEFECTS: tuple[str, ...] = ("crack", "foreign", "hole", "scratch", "stain")

SCALE = 0.06  # a crop's side varies by this share
NOISE = 2.0  # standard deviation of the sensor noise, grey levels
EDGE = 0.1  # opacity at which a defect starts: less changes nothing and is outside the mask
APART = 45.0  # least difference in mean grey level of a foreign patch and the surface it lies on
OVERSAMPLE = 4  # lines are drawn at this multiple of the side, then averaged down for soft edges


def demo_files(
    categories: Sequence[str] = CATEGORIES, size: DemoSize = DemoSize(), seed: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Yield (path relative to the data root, PNG bytes) of the demo data set in MVTec AD layout.

    `<category>/train/good/000.png`, `<category>/test/<good|defect>/000.png`, `<category>/ground_truth/<defect>/000_mask.png`
    (8 bit, 0/255). Same arguments, same bytes; a category's images do not depend on which others are asked for.
    """
    for category in categories:
        _source(category)
    for category in categories:
        for index, image in enumerate(normal_images(category, size.train, "train", seed, size.side)):
            yield f"{category}/train/good/{index:03d}.png", _png(image)
        for index, image in enumerate(normal_images(category, size.test_good, "test", seed, size.side)):
            yield f"{category}/test/good/{index:03d}.png", _png(image)
        for kind in DEFECTS:
            pairs = islice(defective_images(category, kind, seed, size.side), size.test_per_defect)
            for index, (image, mask) in enumerate(pairs):
                yield f"{category}/test/{kind}/{index:03d}.png", _png(image)
                yield f"{category}/ground_truth/{kind}/{index:03d}_mask.png", _png(mask)


def normal_images(category: str, count: int, region: Region, seed: int = 0, side: int = 256) -> Iterator[Pixels]:
    """Yield `count` crops without a defect from one region; another `seed` gives fresh ones of the same surface."""
    generator = _generator(seed, category, region)
    return (_crop(category, region, generator, side) for _ in range(count))


def defective_images(category: str, kind: str, seed: int = 0, side: int = 256) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield, without end, crops of the test region with one drawn defect, each with its mask."""
    generator = _generator(seed, category, kind)
    while True:
        yield draw_defect(_crop(category, "test", generator, side), kind, generator, category)


def draw_defect(
    image: Pixels, kind: str, generator: np.random.Generator, category: str | None = None
) -> tuple[Pixels, Pixels]:
    """The image with one defect of `kind` and its mask; outside the mask the image is unchanged, byte for byte.

    The mask is where the defect covers at least a tenth of a pixel's light (`EDGE`). `category` is the image's own, so that
    a foreign patch shows another one's texture. A grey image stays grey.
    """
    if kind not in _PAINTERS:
        raise ConfigError(f"no defect {kind!r}; there are {', '.join(DEFECTS)}. Ask for one of these.")
    paint, opacity = _PAINTERS[kind](image.astype(np.float32), generator, category)
    if _is_grey(image):
        paint = paint.mean(axis=2, keepdims=True)
    inside = opacity >= EDGE
    grain = generator.normal(0.0, NOISE, opacity.shape).astype(np.float32)
    damaged = image + (opacity * inside)[..., None] * (paint + grain[..., None] - image)
    return damaged.clip(0, 255).round().astype(np.uint8), inside.astype(np.uint8) * np.uint8(255)


def source_file(category: str) -> Traversable:
    """The category's photograph inside the installed scikit-image: read from there, never fetched."""
    file = resources.files("skimage") / "data" / _source(category).file
    if not file.is_file():
        raise DataError(
            f"scikit-image carries no {file}; the demo needs its wheel. Do: pip install --force-reinstall scikit-image"
        )
    return file


def sample_pose(source: Source, region: Region, generator: np.random.Generator) -> Pose:
    """A random pose whose whole footprint, with the two pixels that interpolation reaches over, lies in the region."""
    left, top, right, bottom = source.train if region == "train" else source.test
    side = source.window * (1 + generator.uniform(-SCALE, SCALE))
    angle = generator.uniform(-source.turn, source.turn)
    reach = side / 2 * (math.cos(angle) + math.sin(abs(angle))) + 2
    x, y = generator.uniform(left + reach, right - reach), generator.uniform(top + reach, bottom - reach)
    flip_x, flip_y = (int(sign) for sign in generator.choice([-1, 1], 2))
    return Pose(x, y, side, angle, flip_x, flip_y if source.upside_down else 1)


def cut(photograph: Image.Image, pose: Pose, side: int) -> Image.Image:
    """The crop at `pose`, resampled (bicubic) to `side` pixels; any mode of image."""
    step = pose.side / side
    cos, sin = math.cos(pose.angle) * step, math.sin(pose.angle) * step
    a, b, d, e = cos * pose.flip_x, -sin * pose.flip_y, sin * pose.flip_x, cos * pose.flip_y
    half = side / 2
    matrix = (a, b, pose.x - (a + b) * half, d, e, pose.y - (d + e) * half)
    return photograph.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _crop(category: str, region: Region, generator: np.random.Generator, side: int) -> Pixels:
    pose = sample_pose(_source(category), region, generator)
    image = np.asarray(cut(_photograph(category), pose, side), dtype=np.float32)
    return _expose(image, generator)


def _expose(image: Field, generator: np.random.Generator) -> Pixels:
    """Another lamp and another shot: contrast, brightness, a slight gradient across the image, sensor noise."""
    side = image.shape[0]
    mean = image.mean()
    x, y = _grid(side)
    direction = generator.uniform(0, 2 * math.pi)
    gradient = generator.uniform(0, 0.06) * (x * math.cos(direction) + y * math.sin(direction)) / side
    light = generator.uniform(0.95, 1.05) + gradient
    noise = generator.normal(0.0, NOISE, (side, side)).astype(np.float32)
    lit = (mean + generator.uniform(0.95, 1.05) * (image - mean)) * light[..., None] + noise[..., None]
    return lit.clip(0, 255).round().astype(np.uint8)


def _paint_crack(image: Field, generator: np.random.Generator, category: str | None) -> tuple[Field, Field]:
    """A jagged dark line that thins out, with one to three branches."""
    side = image.shape[0]
    heading = generator.uniform(0, 2 * math.pi)
    trunk = _walk(generator.uniform(0.3, 0.7, 2) * side, heading, int(generator.integers(12, 20)), side, generator)
    back = _walk(trunk[0], heading + math.pi, int(generator.integers(5, 12)), side, generator)
    lines = [trunk, back]
    for _ in range(generator.integers(1, 4)):
        start = trunk[generator.integers(2, len(trunk) - 3)]
        turn = generator.choice([-1, 1]) * generator.uniform(0.5, 1.1)
        lines.append(_walk(start, heading + turn, int(generator.integers(4, 9)), side, generator))
    width = generator.uniform(2.2, 4.2) * _emphasis(image) * side / 256
    opacity = _draw_lines([(line, width * (1.0 if n < 2 else 0.6)) for n, line in enumerate(lines)], side)
    return _contrast(image, opacity, generator.uniform(0.7, 0.85)), opacity * np.float32(0.92)


def _paint_scratch(image: Field, generator: np.random.Generator, category: str | None) -> tuple[Field, Field]:
    """One to three nearly parallel, slightly bowed grooves of uneven depth: a bright flank and its shadow."""
    side = image.shape[0]
    heading = generator.uniform(0, 2 * math.pi)
    along, across = _axes(heading)
    length, bow = generator.uniform(0.35, 0.7) * side, generator.uniform(-0.08, 0.08)
    middle = generator.uniform(0.35, 0.65, 2) * side
    t = np.linspace(-0.5, 0.5, 24)[:, None]
    lines = []
    width = generator.uniform(1.7, 3.0) * _emphasis(image) * side / 256
    for _ in range(generator.integers(1, 4)):
        shift = middle + across * generator.normal(0, 0.018 * side) + along * generator.normal(0, 0.06 * side)
        reach = length * generator.uniform(0.6, 1.0)
        lines.append((shift + along * t * reach + across * bow * reach * 4 * t**2, width * generator.uniform(0.7, 1.0)))
    depth = 0.8 + 0.2 * _smooth_noise(side, 12, generator)
    bright = _draw_lines(lines, side)
    burr = _draw_lines([(line + across * 0.8 * thick * _taper(line)[:, None], thick) for line, thick in lines], side)
    paint = _contrast(image, bright, generator.uniform(-0.85, -0.65))
    return _over(paint, bright, image * 0.45, 0.8 * burr, depth)


def _paint_hole(image: Field, generator: np.random.Generator, category: str | None) -> tuple[Field, Field]:
    """A rounded pit: shaded on the side of the lamp, a lit rim opposite."""
    side = image.shape[0]
    radius = generator.uniform(0.04, 0.085) * side
    centre = generator.uniform(0.15, 0.85, 2) * side
    depth = _blob(side, centre, radius, generator, rough=0.06)  # > 0 inside, in pixels
    opacity = _soft(depth, 1.5 * side / 256)
    x, y = _grid(side)
    lamp = generator.uniform(0, 2 * math.pi)
    facing = ((x - centre[0] + side / 2) * math.cos(lamp) + (y - centre[1] + side / 2) * math.sin(lamp)) / radius
    return _contrast(image, opacity, 0.8) + (18 * facing)[..., None], opacity


def _paint_stain(image: Field, generator: np.random.Generator, category: str | None) -> tuple[Field, Field]:
    """A spilled liquid: the surface shows through, darker towards the dried rim."""
    side = image.shape[0]
    radius = generator.uniform(0.09, 0.18) * side
    depth = _blob(side, generator.uniform(0.2, 0.8, 2) * side, radius, generator, rough=0.13)
    opacity = _soft(depth, 5 * side / 256) * (0.85 + 0.15 * _smooth_noise(side, 8, generator))
    rim = np.exp(-((depth / (0.12 * radius)) ** 2)) * 0.25
    tint = (np.array([0.62, 0.52, 0.38]) * generator.uniform(0.85, 1.1)) ** _emphasis(image)
    if _mean_colour(image, opacity).mean() < 70:
        return image * 0.5 + 255 * (tint + 0.2) * (0.35 + rim[..., None]), opacity
    film = 0.4 * image + 0.6 * _mean_colour(image, opacity)
    return film * tint * (1 - rim[..., None]), opacity


def _paint_foreign(image: Field, generator: np.random.Generator, category: str | None) -> tuple[Field, Field]:
    """A shred of another category's surface, lying on top with a narrow shadow."""
    side = image.shape[0]
    other = str(generator.choice([name for name in CATEGORIES if name != category]))
    texture = _crop(other, "test", generator, side).astype(np.float32)
    centre, radius = generator.uniform(0.2, 0.8, 2) * side, generator.uniform(0.07, 0.12) * side * _emphasis(image)
    depth = _blob(side, centre, radius, generator, rough=0.12)
    cover = _soft(depth, 1.5 * side / 256)
    down, right = (int(step) for step in np.rint(generator.uniform(0.008, 0.016, 2) * side))
    moved = np.pad(depth, ((down, 0), (right, 0)), mode="edge")[:side, :side]
    texture *= _gain(_mean_colour(texture, cover).mean(), _mean_colour(image, cover).mean(), generator)
    return _over(texture, cover, image * 0.3, 0.6 * _soft(moved, 4 * side / 256), np.ones_like(cover))


_Painter = Callable[[Field, np.random.Generator, str | None], tuple[Field, Field]]
_PAINTERS: dict[str, _Painter] = {
    "crack": _paint_crack,
    "foreign": _paint_foreign,
    "hole": _paint_hole,
    "scratch": _paint_scratch,
    "stain": _paint_stain,
}


def _contrast(image: Field, opacity: Field, strength: float) -> Field:
    """A flat paint that differs from the surface under it: darker for `strength` > 0 unless the surface is dark itself."""
    colour = _mean_colour(image, opacity)
    level = float(colour.mean())
    dark = strength > 0
    if (dark and level < 70) or (not dark and level > 150):
        dark = not dark
    target = colour * (1 - abs(strength)) if dark else colour + abs(strength) * (235 - colour)
    return np.broadcast_to(target.astype(np.float32), image.shape)


def _over(top: Field, cover: Field, under: Field, shade: Field, depth: Field) -> tuple[Field, Field]:
    """Paint and opacity of `top` laid over `under`: where both reach, `top` takes its share of the light first."""
    opacity = np.maximum(cover, shade)
    share = (cover / np.maximum(opacity, 1e-6))[..., None]
    return top * share + under * (1 - share), opacity * depth


def _gain(level: float, ground: float, generator: np.random.Generator) -> float:
    """A factor that puts a grey level at least `APART` from the ground's: 1 where it is already."""
    if abs(level - ground) >= APART:
        return 1.0
    return (ground + generator.choice([-1, 1]) * generator.uniform(1.0, 1.4) * APART) / max(level, 1.0)


def _mean_colour(image: Field, opacity: Field) -> Field:
    """The colour, (3,), of the surface under a defect."""
    weight = opacity[..., None] / max(float(opacity.sum()), 1e-6)
    return np.asarray((image * weight).sum(axis=(0, 1)))


def _emphasis(image: Field) -> float:
    """How much wider or darker a flaw must be to be seen on this surface: near 1 on brick, 1.5 on grass."""
    grey = image.mean(axis=2)
    step = max(1, grey.shape[0] // 64)
    return min(0.6 + float(np.abs(grey[:, step:] - grey[:, :-step]).mean()) / 40, 1.5)


def _blob(side: int, centre: Field, radius: float, generator: np.random.Generator, rough: float) -> Field:
    """Signed distance (pixels, positive inside) to an ellipse whose outline is bent by random harmonics."""
    x, y = _grid(side)
    dx, dy = x + side / 2 - centre[0], y + side / 2 - centre[1]
    turn, aspect = generator.uniform(0, math.pi), generator.uniform(0.65, 1.0)
    u = dx * math.cos(turn) + dy * math.sin(turn)
    v = (dy * math.cos(turn) - dx * math.sin(turn)) / aspect
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    for k in range(2, 8):
        outline += rough * generator.normal() * 1.5 / k * np.cos(k * angle + generator.uniform(0, 2 * math.pi))
    return (radius * outline - np.hypot(u, v)).astype(np.float32)


def _soft(depth: Field, width: float) -> Field:
    return (depth / width + 0.5).clip(0, 1).astype(np.float32)


def _walk(start: Field, heading: float, steps: int, side: int, generator: np.random.Generator) -> Field:
    """A path of `steps` + 1 points (x, y) whose direction wanders about `heading`."""
    directions = heading + generator.normal(0, 0.45, steps)
    lengths = generator.uniform(0.02, 0.045, steps) * side
    moves = np.stack([np.cos(directions) * lengths, np.sin(directions) * lengths], axis=1)
    return np.concatenate([start[None], start + moves.cumsum(axis=0)])


def _draw_lines(lines: Sequence[tuple[Field, float]], side: int) -> Field:
    """Opacity of lines (points, widest width in pixels) that taper to a third towards their end."""
    canvas = Image.new("L", (side * OVERSAMPLE, side * OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        scaled = points * OVERSAMPLE
        for (x0, y0), (x1, y1), share in zip(scaled[:-1], scaled[1:], _taper(points)[:-1], strict=True):
            thick = max(1, round(width * share * OVERSAMPLE))
            pen.line([(x0, y0), (x1, y1)], fill=255, width=thick)
            pen.ellipse([x1 - thick / 2, y1 - thick / 2, x1 + thick / 2, y1 + thick / 2], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


def _taper(points: Field) -> Field:
    return np.linspace(1.0, 0.35, len(points))


def _smooth_noise(side: int, cells: int, generator: np.random.Generator) -> Field:
    """A smooth field in [-1, 1] with `cells` bumps a side."""
    coarse = Image.fromarray(generator.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32).clip(-1, 1)


def _axes(heading: float) -> tuple[Field, Field]:
    return np.array([math.cos(heading), math.sin(heading)]), np.array([-math.sin(heading), math.cos(heading)])


@cache
def _grid(side: int) -> tuple[Field, Field]:
    """x and y of every pixel, from the middle of the image."""
    line = np.arange(side, dtype=np.float32) + 0.5 - side / 2
    x, y = np.meshgrid(line, line)
    return x, y


def _source(category: str) -> Source:
    if category not in SOURCES:
        raise ConfigError(f"no demo category {category!r}; there are {', '.join(CATEGORIES)}. Ask for one of these.")
    return SOURCES[category]


@cache
def _photograph(category: str) -> Image.Image:
    with source_file(category).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def _generator(seed: int, category: str, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(category.encode()), zlib.crc32(stream.encode())])


def _is_grey(image: Pixels) -> bool:
    return bool((image[..., :1] == image).all())


def _png(image: Pixels) -> bytes:
    """Grey images are written with one channel, as MVTec AD writes its grey categories."""
    buffer = io.BytesIO()
    flat = image[..., 0] if image.ndim == 3 and _is_grey(image) else image
    Image.fromarray(np.ascontiguousarray(flat)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
