"""Running one side of a measurement: a module in a process and an environment of its own, its figures as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
OURS = Path(sys.executable)
ANOMALIB = Path(__file__).parent / ".venv-anomalib" / "bin" / "python"

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_side(python: Path, module: str, threads: int, **settings: Any) -> dict[str, Any]:
    """The figures of `benchmarks.<module>` under the same thread setting for every side; its stderr passes through."""
    if not python.exists():
        sys.exit(f"no {python.relative_to(CHECKOUT)}; run: make bench-peer")
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-m", f"benchmarks.{module}", json.dumps(settings)],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"benchmarks.{module} failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
