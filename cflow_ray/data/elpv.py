"""Real inspection data without a web site: electroluminescence images of solar cells from the package `elpv-dataset`.

Every cell has a defect probability given by experts: 0, 1/3, 2/3 or 1. Probability 0 is good, 1 is defect; the cells
between (117 + 56 mono, 178 + 50 poly), on which the experts were unsure, are left out. There are no masks.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np

from cflow_ray.errors import ConfigError, DataError

LICENCE: str = (
    "ELPV data set (solar cells), ZAE Bayern, CC BY-NC-SA 4.0 (no commercial use): "
    "https://github.com/zae-bayern/elpv-dataset"
)
CATEGORIES: tuple[str, ...] = ("mono", "poly")


@dataclass(frozen=True)
class ElpvSize:
    """The most images per category; there are 588 + 313 (good + defect) mono and 920 + 402 poly cells."""

    train: int = 150
    test_good: int = 40
    test_defect: int = 60


ELPV = ElpvSize()


def elpv_files(
    categories: Sequence[str] = CATEGORIES, seed: int = 0, size: ElpvSize = ELPV
) -> Iterator[tuple[str, bytes]]:
    """Yield (path relative to the data root, PNG bytes, 300 x 300 grey) in MVTec AD layout, without ground truth.

    `<category>/train/good`, `<category>/test/good` (no cell of the training set) and `<category>/test/defect`, drawn at
    random by `seed` and named as in the source, `cell0042.png`. Raises ConfigError for an unknown category or more good
    cells than there are, DataError if the package is absent.
    """
    for category in categories:
        if category not in CATEGORIES:
            raise ConfigError(
                f"no elpv category {category!r}; there are {', '.join(CATEGORIES)}. Ask for one of these."
            )
    folder = elpv_folder()
    cells = _read_cells(folder)
    for category in categories:
        generator = np.random.default_rng([seed, zlib.crc32(category.encode())])
        good = _shuffled(cells, category, 0.0, generator)
        defect = _shuffled(cells, category, 1.0, generator)
        if min(size.train, size.test_good, size.test_defect) < 0 or size.train + size.test_good > len(good):
            raise ConfigError(
                f"{size.train} training and {size.test_good} good test cells of {category!r} asked for; "
                f"there are {len(good)} good ones. Ask for fewer."
            )
        parts = {
            "train/good": good[: size.train],
            "test/good": good[size.train : size.train + size.test_good],
            "test/defect": defect[: size.test_defect],
        }
        for part, names in parts.items():
            for name in names:
                yield f"{category}/{part}/{name.rpartition('/')[2]}", (folder / name).read_bytes()


def elpv_folder(package: str = "elpv_dataset") -> Traversable:
    """The folder of the installed package that holds `labels.csv` and `images`; DataError where it is not installed."""
    try:
        return resources.files(package) / "data"
    except ModuleNotFoundError as error:
        raise DataError(
            f"no package {package!r}, which carries the solar cells; the drawn textures need no package. "
            "Run: pip install 'cflow-ray[elpv]'"
        ) from error


def _read_cells(folder: Traversable) -> list[tuple[str, float, str]]:
    """Path in the folder, defect probability and category of every cell."""
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.reader(lines, delimiter=" ", skipinitialspace=True)
    return [(path, float(probability), category) for path, probability, category in rows]


def _shuffled(
    cells: Sequence[tuple[str, float, str]], category: str, probability: float, generator: np.random.Generator
) -> list[str]:
    names = [path for path, given, kind in cells if kind == category and given == probability]
    return [names[index] for index in generator.permutation(len(names))]
