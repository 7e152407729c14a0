"""The benchmark's command on a miniature that bears two of MVTec AD's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cflow_ray.benchmark import benchmark_config
from cflow_ray.cli import main
from cflow_ray.errors import ConfigError
from cflow_ray.evaluation.published import MVTEC_AD

pytestmark = pytest.mark.ray


def test_the_benchmark_fits_its_categories_in_the_order_of_the_tables(
    cluster: None, miniature: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, texture in (("zipper", "brick"), ("grid", "grass")):
        (data / name).symlink_to(miniature / texture)
    config = tmp_path / "fit.yaml"
    config.write_text(
        "defaults: {recipe: fast, input_size: 96, calibration: split}\ncategories: {zipper: {}, grid: {}}\n"
    )
    flags = ["--data", str(data), "--registry", str(tmp_path / "registry"), "--workers", "2"]
    command = ["benchmark", "mvtec_ad", "--config", str(config), *flags]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    for shown in ("Image-Level AUC", "Pixel-Level AUC", "Pixel F1 Score"):
        assert shown in result.stdout
    assert result.stdout.count("unseen test set") == result.stdout.count("best epoch on test") == 3
    again = CliRunner().invoke(main, [*command, "--json"])  # which reuses what is fitted
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout.splitlines()[-1])
    assert list(found["categories"]) == ["grid", "zipper"]
    assert all(0 <= of_category["image_auroc"] <= 1 for of_category in found["categories"].values())
    assert found["paper_wrn50_best_epoch_on_test"]["image_auroc"]["grid"] == 0.996
    assert json.loads((tmp_path / "registry" / "benchmark.json").read_text()) == found


def test_its_own_configuration_has_the_fifteen_categories_at_the_papers_sizes() -> None:
    config = benchmark_config("mvtec_ad", None, {"data": "d", "registry": "r"})
    assert set(config.categories) == set(MVTEC_AD)
    sizes = {name: config.detector(name).size[0] for name in MVTEC_AD}
    assert {name for name, size in sizes.items() if size == 256} == {
        "cable",
        "capsule",
        "hazelnut",
        "metal_nut",
        "pill",
    }
    assert sizes["transistor"] == 128
    assert sum(size == 512 for size in sizes.values()) == 9


def test_another_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'visa'.*mvtec_ad"):
        benchmark_config("visa", None, {})
