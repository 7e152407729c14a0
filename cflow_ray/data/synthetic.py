"""Demo data that needs no download: crops of photographs in scikit-image's wheel, with drawn defects and exact masks.

A category is one photograph split into two rectangles without a common pixel: training crops come from one, all test
crops from the other. Brick, grass and gravel are CC0, stars (NASA) is public domain, tissue has no known restrictions;
`skimage.data` documents each. Shapes: S is an image's side; an image is (S, S, 3) uint8, a mask (S, S) uint8, 0 or 255.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from cflow_ray.data.defects import DEFECTS, NOISE, Pixels, draw_defect, grid, is_grey, to_pixels
from cflow_ray.errors import ConfigError, DataError

Region = Literal["train", "test"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the photograph; right and bottom excluded


@dataclass(frozen=True)
class DemoSize:
    """Images per category (`test_per_defect` of each kind of `DEFECTS`) and their side in pixels, 32 or more."""

    train: int = 120
    test_good: int = 24
    test_per_defect: int = 8
    side: int = 256

    def __post_init__(self) -> None:
        if self.side < 32:
            raise ConfigError(f"side {self.side}: a defect needs at least 32 pixels. Ask for 32 or more, such as 256.")


@dataclass(frozen=True)
class Source:
    """A photograph of the wheel and how to cut it; `window` is a crop's side in its pixels, `turn` is in radians.

    The boxes and windows were chosen by the false alarms on good test crops (ImageNet features, Gaussian density).
    """

    file: str
    train: Box
    test: Box
    window: int
    turn: float = 0.10
    upside_down: bool = True  # whether a vertical flip still looks like the same surface


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
    "brick": Source("brick.png", (0, 0, 310, 512), (310, 0, 512, 512), 160, turn=0.05, upside_down=False),
    "grass": Source("grass.png", (202, 0, 512, 512), (0, 0, 202, 512), 100),
    "gravel": Source("gravel.png", (0, 0, 512, 310), (0, 310, 512, 512), 100),
    "stars": Source("hubble_deep_field.jpg", (0, 332, 1000, 872), (0, 0, 1000, 332), 256),
    "tissue": Source("ihc.png", (0, 0, 512, 310), (0, 310, 512, 512), 130),
}
CATEGORIES: tuple[str, ...] = tuple(SOURCES)
DEMO = DemoSize()

SCALE = 0.06  # a crop's side varies by this share
REACH = 2.0  # pixels that bicubic interpolation reads beyond a crop


def demo_files(
    categories: Sequence[str] = CATEGORIES, size: DemoSize = DEMO, seed: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Yield (path relative to the data root, PNG bytes) of the demo data set in MVTec AD layout.

    `<category>/train/good/000.png`, `<category>/test/<good|defect>/000.png` and, 8 bit of 0 and 255,
    `<category>/ground_truth/<defect>/000_mask.png`. Same arguments, same bytes; a category's files do not depend on the
    other categories asked for. Raises ConfigError for an unknown category, before the first file.
    """
    for category in categories:
        _source(category)
    for category in categories:
        good: tuple[tuple[Region, int], ...] = (("train", size.train), ("test", size.test_good))
        for region, count in good:
            for index, image in enumerate(normal_images(category, count, region, seed, size.side)):
                yield f"{category}/{region}/good/{index:03d}.png", _png(image)
        for kind in DEFECTS:
            pairs = islice(defective_images(category, kind, seed, size.side), size.test_per_defect)
            for index, (image, mask) in enumerate(pairs):
                yield f"{category}/test/{kind}/{index:03d}.png", _png(image)
                yield f"{category}/ground_truth/{kind}/{index:03d}_mask.png", _png(mask)


def normal_images(category: str, count: int, region: Region, seed: int = 0, side: int = 256) -> Iterator[Pixels]:
    """Yield `count` crops of one region without a defect; another `seed` gives fresh ones of the same surface."""
    generator = _generator(seed, category, region)
    return (_crop(category, region, generator, side) for _ in range(count))


def defective_images(category: str, kind: str, seed: int = 0, side: int = 256) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield, without end, crops of the test region with one drawn defect, each with its mask."""
    generator = _generator(seed, category, kind)
    while True:
        yield draw_defect(
            _crop(category, "test", generator, side), kind, generator, partial(_other_surface, category, side)
        )


def _other_surface(category: str, side: int, generator: np.random.Generator) -> Pixels:
    """A crop of a category other than this one."""
    other = str(generator.choice([name for name in CATEGORIES if name != category]))
    return _crop(other, "test", generator, side)


def source_file(category: str) -> Traversable:
    """The category's photograph inside the installed scikit-image: read from there, never fetched."""
    file = resources.files("skimage") / "data" / _source(category).file
    if not file.is_file():
        raise DataError(f"no {file}; scikit-image's wheel carries it. Run: pip install --force-reinstall scikit-image")
    return file


def sample_pose(source: Source, region: Region, generator: np.random.Generator) -> Pose:
    """A random pose whose whole footprint, with the pixels that interpolation reads around it, lies in the region."""
    left, top, right, bottom = source.train if region == "train" else source.test
    side = source.window * (1 + generator.uniform(-SCALE, SCALE))
    angle = generator.uniform(-source.turn, source.turn)
    reach = side / 2 * (math.cos(angle) + math.sin(abs(angle))) + REACH
    x, y = generator.uniform(left + reach, right - reach), generator.uniform(top + reach, bottom - reach)
    flip_x, flip_y = (int(sign) for sign in generator.choice([-1, 1], 2))
    return Pose(x, y, side, angle, flip_x, flip_y if source.upside_down else 1)


def cut(photograph: Image.Image, pose: Pose, side: int) -> Image.Image:
    """The crop at `pose`, resampled (bicubic) to `side` pixels; any mode of image."""
    step = pose.side / side
    cos, sin = math.cos(pose.angle) * step, math.sin(pose.angle) * step
    a, b, d, e = cos * pose.flip_x, -sin * pose.flip_y, sin * pose.flip_x, cos * pose.flip_y
    matrix = (a, b, pose.x - (a + b) * side / 2, d, e, pose.y - (d + e) * side / 2)
    return photograph.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _crop(category: str, region: Region, generator: np.random.Generator, side: int) -> Pixels:
    """One crop under another lamp: contrast, brightness, a slight gradient across the image, sensor noise."""
    photograph = cut(_photograph(category), sample_pose(_source(category), region, generator), side)
    image = np.asarray(photograph, dtype=np.float32)
    slope = np.exp(1j * generator.uniform(0, 2 * math.pi)) * generator.uniform(0, 0.06) / side
    light = generator.uniform(0.95, 1.05) + (grid(side) * slope).real
    lit = image.mean() + generator.uniform(0.95, 1.05) * (image - image.mean())
    return to_pixels(lit * light[..., None] + generator.normal(0, NOISE, (side, side))[..., None])


@cache
def _photograph(category: str) -> Image.Image:
    with source_file(category).open("rb") as stream:
        return Image.open(stream).convert("RGB")


def _source(category: str) -> Source:
    if category not in SOURCES:
        raise ConfigError(f"no demo category {category!r}; there are {', '.join(CATEGORIES)}. Ask for one of these.")
    return SOURCES[category]


def _generator(seed: int, category: str, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(category.encode()), zlib.crc32(stream.encode())])


def _png(image: Pixels) -> bytes:
    """PNG bytes; grey images get one channel, as MVTec AD writes its grey categories."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.ndim == 3 and is_grey(image) else image)
    picture.save(buffer, "PNG", compress_level=3)  # colour: 7 ms and 109 kB, against 23 ms and 106 kB at 6
    return buffer.getvalue()
