"""What the driver of a run loads: a plan does without torch, the run without what only fits need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import cflow_ray.cli.fit
from cflow_ray.config import FitConfig
from cflow_ray.train.plan import plan_fit

plan = plan_fit(FitConfig(data=sys.argv[1], registry=sys.argv[2]))
print(len(plan.due), "torch" in sys.modules)
import cflow_ray.train.display
import cflow_ray.train.run
print([name for name in ("timm", "FrEIA", "torchmetrics", "scipy", "onnxruntime") if name in sys.modules])
import cflow_ray.train.category
print([name for name in ("timm", "FrEIA", "torchmetrics", "scipy") if name in sys.modules])
"""


def test_who_plans_and_drives_a_run_imports_nothing_that_fits(miniature: Path, tmp_path: Path):
    command = [sys.executable, "-c", PROGRAM, str(miniature), str(tmp_path / "registry")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    planned, driver, fitting = done.stdout.splitlines()
    assert planned == "5 False"
    assert driver == "[]"
    assert fitting == "['timm', 'FrEIA', 'torchmetrics', 'scipy']"
