"""Real inspection images - MVTec AD screw, magnetic tiles, cookies - fitted in one run. Minutes, so marked slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cflow_ray.config import DetectorConfig, FitConfig
from cflow_ray.train.run import fit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

# What a prototype of ours reached with the same steps, less three standard errors of its AUROC.
LEAST_IMAGE_AUROC = {"screw": 0.75, "tile": 0.80, "cookie": 0.85}


def test_three_real_categories_in_one_run(
    inspection_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
):
    """One root with a folder a category, as links to the three data sets; the figures are printed and recorded."""
    root = tmp_path / "data"
    root.mkdir()
    for data_set, category in (("screw", "screw"), ("magnetic_tile", "tile"), ("cookie", "cookie")):
        (root / category).symlink_to(inspection_data / data_set / category)
    config = FitConfig(data=str(root), registry=str(tmp_path / "registry"), defaults=DetectorConfig(recipe="fast"))

    outcomes = {outcome.category: outcome for outcome in fit(config)}

    figures = {name: outcome.as_dict() for name, outcome in outcomes.items()}
    print(json.dumps(figures, indent=1))
    record_property("figures", figures)
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(LEAST_IMAGE_AUROC, "fitted")
    for name, least in LEAST_IMAGE_AUROC.items():
        assert figures[name]["image_auroc"] >= least
        assert figures[name]["pixel_auroc"] is not None
