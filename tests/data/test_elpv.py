"""The solar cells of the package elpv-dataset: layout, caps, disjoint parts, determinism, its absence."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image

from cflow_ray.data import elpv
from cflow_ray.data.elpv import ElpvSize, elpv_files
from cflow_ray.errors import ConfigError, DataError

SMALL = ElpvSize(train=12, test_good=5, test_defect=7)


@pytest.fixture(scope="module")
def labels() -> dict[str, tuple[float, str]]:
    """Defect probability and category by file name, read here from the package a second way."""
    package = pytest.importorskip("elpv_dataset", reason="the package elpv-dataset is not installed (extra 'elpv')")
    with open(f"{package.__path__[0]}/data/labels.csv", encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter=" ", skipinitialspace=True))
    return {path.split("/")[1]: (float(probability), kind) for path, probability, kind in rows}


def _parts(files: dict[str, bytes]) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    for path in files:
        part, _, name = path.rpartition("/")
        parts.setdefault(part, set()).add(name)
    return parts


def test_parts_hold_the_cells_they_promise(labels: dict[str, tuple[float, str]]):
    parts = _parts(dict(elpv_files(size=SMALL)))
    wanted = {"train/good": (12, 0.0), "test/good": (5, 0.0), "test/defect": (7, 1.0)}
    assert set(parts) == {f"{category}/{part}" for category in elpv.CATEGORIES for part in wanted}
    for name, cells in parts.items():
        category, _, part = name.partition("/")
        count, probability = wanted[part]
        assert len(cells) == count
        assert {labels[cell] for cell in cells} == {(probability, category)}
    for category in elpv.CATEGORIES:
        assert not parts[f"{category}/train/good"] & parts[f"{category}/test/good"]


def test_the_default_size_is_there(labels: dict[str, tuple[float, str]]):
    assert {name: len(cells) for name, cells in _parts(dict(elpv_files(("mono",)))).items()} == {
        "mono/train/good": 150,
        "mono/test/good": 40,
        "mono/test/defect": 60,
    }


def test_same_seed_same_bytes_whatever_else_is_asked_for(labels: dict[str, tuple[float, str]]):
    alone, both = dict(elpv_files(("poly",), size=SMALL)), dict(elpv_files(size=SMALL))
    assert alone.items() <= both.items()
    assert set(alone) != {path for path, _ in elpv_files(("poly",), seed=1, size=SMALL)}


def test_files_are_grey_pngs(labels: dict[str, tuple[float, str]]):
    for _, data in elpv_files(("mono",), size=ElpvSize(1, 1, 1)):
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("PNG", "L", (300, 300))


def test_more_cells_than_there_are(labels: dict[str, tuple[float, str]]):
    with pytest.raises(ConfigError, match="there are 588 good ones"):
        next(elpv_files(("mono",), size=ElpvSize(train=600)))


def test_an_unknown_category():
    with pytest.raises(ConfigError, match=r"'amorphous'.*mono, poly"):
        next(elpv_files(("amorphous",)))


def test_an_absent_package_is_told_with_the_command_to_install_it():
    with pytest.raises(DataError, match=r"pip install 'cflow-ray\[elpv\]'"):
        elpv.elpv_folder("a_package_that_is_not_here")


def test_the_licence_is_one_line():
    assert "CC BY-NC-SA 4.0" in elpv.LICENCE
    assert "\n" not in elpv.LICENCE
