"""The images of a measurement: a data set in a temporary folder, of one category, real where there are real ones, or many."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from benchmarks.options import REAL_DATA
from cflow_ray.data.defects import DEFECTS
from cflow_ray.data.synthetic import CATEGORIES, DemoSize, demo_files

_TEXTURE = "brick"


@dataclass(frozen=True)
class Images:
    """A category in MVTec AD layout at `<root>/<category>`."""

    root: Path
    category: str
    source: str

    def files(self, split: str, count: int | None = None) -> list[str]:
        """Paths of a split's images below the root, in order, repeated where `count` asks for more than there are."""
        found = sorted(str(path.relative_to(self.root)) for path in self.root.glob(f"{self.category}/{split}/*/*.*"))
        return list(islice(cycle(found), len(found) if count is None else count))


def gather(work: Path, train: int, test: int, data: Path | None = None) -> Images:
    """The first `train` training images and `test` test images of every kind, copied below `work` (anomalib follows no links).

    From `data`, or the screw images beside the checkout, or, where neither is there, textures that the project draws.
    """
    source = data or REAL_DATA
    root = work / "data"
    if not source.is_dir():
        _draw(root, train, test)
        return Images(root, _TEXTURE, f"drawn texture {_TEXTURE!r}, 256 px")
    for kind in sorted((source / "train").iterdir()):
        _copy(sorted(kind.iterdir())[:train], source, root / source.name)
    for kind in sorted((source / "test").iterdir()):
        _copy(sorted(kind.iterdir())[:test], source, root / source.name)
        _copy(sorted((source / "ground_truth" / kind.name).glob("*"))[:test], source, root / source.name)
    return Images(root, source.name, f"{source.parent.name}/{source.name}")


def draw_factory(root: Path, images: Sequence[tuple[int, int]], side: int) -> list[str]:
    """A data set with a category for every pair of numbers of training and test images; returns the categories' names.

    The project's textures in turn, with a seed of its own for each, half of the test images defective.
    """
    names = []
    for number, (train, test) in enumerate(images):
        texture = CATEGORIES[number % len(CATEGORIES)]
        names.append(f"{texture}-{number:03d}")
        size = DemoSize(train, test - test // 2, round(test / 2 / len(DEFECTS)), side)
        _write(root, ((path.replace(texture, names[-1], 1), png) for path, png in demo_files((texture,), size, number)))
    return names


def repeat(images: Images, folder: Path, count: int) -> list[str]:
    """Fill a folder with `count` images, the test images over and over under new names; returns the names."""
    folder.mkdir()
    names = []
    for number, file in enumerate(images.files("test", count)):
        names.append(f"{number:05d}{Path(file).suffix}")
        shutil.copyfile(images.root / file, folder / names[-1])
    return names


def _draw(root: Path, train: int, test: int) -> None:
    _write(root, demo_files((_TEXTURE,), DemoSize(train=train, test_good=test, test_per_defect=test)))


def _write(root: Path, files: Iterable[tuple[str, bytes]]) -> None:
    for path, content in files:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _copy(files: list[Path], source: Path, target: Path) -> None:
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
