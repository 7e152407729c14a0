"""A registry of three categories, and a server over it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from torch import Tensor

from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.serving import Served, add_version, png, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def fitted_registry(
    lite0_state: dict[str, Tensor], photographs: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """cat with two versions of which the first is the best, cup and rocket with one. Not to be changed."""
    root = tmp_path_factory.mktemp("registry")
    registry = Registry.create(Storage(str(root)))
    for seed, category in enumerate(("cat", "cup", "rocket")):
        registry.promote(category, add_version(registry, category, lite0_state, photographs, seed))
    add_version(registry, "cat", lite0_state, photographs, seed=7)
    return root


@pytest.fixture
def own_registry(fitted_registry: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(fitted_registry, tmp_path / "registry")


@pytest.fixture(scope="module")
async def served(fitted_registry: Path, anyio_backend: str) -> AsyncIterator[Served]:
    """A server with small limits."""
    async with serving(fitted_registry, max_body_mb=0.2, max_images=4, max_pixels=200_000) as served:
        yield served


@pytest.fixture(scope="session")
def images(photographs: Tensor) -> list[bytes]:
    """Sixteen different files."""
    return [png(photograph) for photograph in photographs]
