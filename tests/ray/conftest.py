"""One small Ray cluster for the session, and a miniature of the demo's data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cflow_ray.config import DataConfig, DetectorConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.synthetic import CATEGORIES, DemoSize, demo_files
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.task import FitSite, FitTask

MINIATURE = DemoSize(train=16, test_good=4, test_per_defect=1, side=96)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The session's only Ray cluster in this process."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def elsewhere() -> Iterator[dict[str, str]]:
    """An environment in which Ray keeps its files in a folder of its own, where a dead cluster has left its address.

    The folder's name is short because the paths of Ray's sockets must be.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray_current_cluster").write_text("127.0.0.1:1")
        yield {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's five categories with few small images, in MVTec AD layout."""
    root = tmp_path_factory.mktemp("miniature")
    for path, content in demo_files(CATEGORIES, MINIATURE, seed=1):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


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
