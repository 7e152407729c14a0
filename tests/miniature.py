"""A miniature of the demo's data, and a registry with a detector that was fitted on it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from cflow_ray.config import DataConfig, DetectorConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.synthetic import CATEGORIES, DemoSize, demo_files
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.task import FitSite, FitTask

MINIATURE = DemoSize(train=16, test_good=4, test_per_defect=1, side=96)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's five categories with few small images, in MVTec AD layout."""
    root = tmp_path_factory.mktemp("miniature")
    write_files(root, demo_files(CATEGORIES, MINIATURE, seed=1))
    return root


def write_files(root: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Files by their path below a folder."""
    for path, content in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@pytest.fixture(scope="session")
def registry(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one fitted category, brick."""
    root = tmp_path_factory.mktemp("registry")
    Registry.create(Storage(str(root)))
    data_set = read_data_set(DataConfig(data=str(miniature)), {})
    detector = DetectorConfig(recipe="fast", input_size=MINIATURE.side, target_fpr=0.3)
    task = FitTask("brick", tuple(data_set.of("brick")), detector, data_digest="")
    outcome = fit_category(task, FitSite(str(miniature), str(root), {}), lambda progress: None)
    assert outcome.status == "fitted", outcome.error
    return root


def archive_of(count: int, miniature: Path, folder: Path) -> Path:
    """A tar of the test images of brick over and over, under a key of its own each."""
    path = folder / "night.tar"
    images = sorted((miniature / "brick" / "test").rglob("*.png"))
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            tar.add(images[number % len(images)], f"brick/{number:06}.png")
    return path
