"""One small Ray cluster for the session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cflow_ray.serve.run import PATIENT_PROXY


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The session's only Ray cluster in this process."""
    os.environ.update(PATIENT_PROXY)
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
