"""The demo on a miniature: its summary, and a second run that does nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from cflow_ray.demo import PARITY_BOUND

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def written(output: Path) -> dict[str, int]:
    """Times at which checkpoints and score parts were written."""
    paths = [*output.glob("registry/*/*/manifest.json"), *output.glob("scores/*/shard=*/*.parquet")]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def test_a_second_run_takes_up_where_the_first_stopped(miniature: Path, tmp_path: Path):
    output, data = tmp_path / "demo", tmp_path / "data"
    shutil.copytree(miniature / "brick", data / "brick")
    shutil.copytree(miniature / "brick" / "train", data / "untested" / "train")
    arguments = ["demo", "--data", str(data), "--output", str(output), "--json"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)

    assert summary == json.loads((output / "summary.json").read_text())
    assert summary["categories"].keys() == {"brick"}
    assert summary["categories"]["brick"].keys() == {"image_auroc", "pixel_auroc", "pixel_f1", "fit_seconds"}
    assert (summary["rows"], summary["errors"]) == (9, 0)
    assert summary["parity_max_abs_diff"] <= PARITY_BOUND
    assert summary["seconds"] > 0
    assert {path.name for path in output.glob("heatmaps/*.png")} >= {"brick-crack.png", "brick-good.png"}

    before = written(output)
    next(output.glob("scores/*/shard=*/*.parquet")).unlink()  # as if it had been stopped there
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 0, second.output
    after = written(output)
    assert after.keys() == before.keys()
    assert sum(after[path] != before[path] for path in before) == 1
    assert json.loads(second.stdout)["categories"] == summary["categories"]
