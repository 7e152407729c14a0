"""A miniature category pair in MVTec AD layout, and a fit of it that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cflow_ray.config import FitConfig

CATEGORIES = ("grid", "weave")
FitConfigOf = Callable[..., FitConfig]


def picture(seed: int, period: float) -> Image.Image:
    rows, columns = np.mgrid[:64, :64]
    grid = 120 + 40 * np.sin(rows / period) * np.sin(columns / period)
    noisy = grid[..., None] + np.random.default_rng(seed).normal(0, 6, (64, 64, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, `weave` with fewer images."""
    root = tmp_path_factory.mktemp("pair")
    for category, period, count in (("grid", 3.0, 16), ("weave", 5.0, 12)):
        for number in range(count):
            path = root / category / "train" / "good" / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number, period).save(path)
        (root / category / "test" / "good").mkdir(parents=True)
        picture(100, period).save(root / category / "test" / "good" / "000.png")
    return root


@pytest.fixture
def fit_config(pair: Path, tmp_path: Path) -> FitConfigOf:
    """A configuration of a small, quick fit into a registry of the test's own, with changes."""

    def make(**changes: Any) -> FitConfig:
        defaults = {
            "encoder": {"strides": [8, 16]},
            "flow": {"blocks": 2, "condition_channels": 8},
            "input_size": 64,
            "recipe": "fast",
            "calibration": "split",
            "target_fpr": 0.3,
        }
        given = {"data": str(pair), "registry": str(tmp_path / "registry"), "defaults": defaults}
        return FitConfig.model_validate(given | changes)

    return make
