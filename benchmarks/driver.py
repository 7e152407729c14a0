"""`make bench-driver`: the memory of the process that runs a fit, at 15 categories and at 300."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.images import draw_factory
from benchmarks.options import parse, parser
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side

_DETECTOR = {"recipe": "fast", "calibration": "split", "input_size": 32}
_IMAGES = (10, 0)
_SIDE = 32


def main() -> None:
    """A run of miniature categories for each number, in a process of its own."""
    flags = parser("memory of a run's driver", rounds=0)
    flags.add_argument("--few", type=int, default=15, help="categories of the first run")
    flags.add_argument("--many", type=int, default=300, help="categories of the second")
    flags.add_argument("--workers", type=int, default=os.cpu_count(), help="of both runs")
    options = parse(flags)
    if options.quick:
        options.few, options.many = 2, 6
    few, many = (_run(count, options) for count in (options.few, options.many))
    publish(_result(few, many, options), options, {"few": few, "many": many})


def _run(categories: int, options: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        draw_factory(Path(folder) / "data", [_IMAGES] * categories, _SIDE)
        place = {"data": f"{folder}/data", "registry": f"{folder}/registry"}
        config = place | {"defaults": _DETECTOR, "cluster": {"workers": options.workers}}
        return run_side(OURS, "ours.running", 1, config=config)


def _result(few: dict[str, Any], many: dict[str, Any], options: Namespace) -> dict[str, Any]:
    return {
        "name": "driver",
        "ours": many["driver_peak_mb"],
        "peer": few["driver_peak_mb"],
        "ratio": significant(few["driver_peak_mb"] / many["driver_peak_mb"]),
        "unit": "MB",
        "conditions": {
            "peer": f"the same driver with {options.few} categories",
            "ours": f"the driver of `fit` with {options.many} categories, {options.workers} workers",
            "driver_growth_mb": round(many["driver_peak_mb"] - few["driver_peak_mb"], 1),
            "queue_peak_mb": [few["queue_peak_mb"], many["queue_peak_mb"]],
            "queue_growth_mb": round(many["queue_peak_mb"] - few["queue_peak_mb"], 1),
            "worker_peak_mb": [few["worker_peak_mb"], many["worker_peak_mb"]],
            "wall_s": [few["wall"], many["wall"]],
            "start_up_s": [few["start_up"], many["start_up"]],
            "images": _IMAGES[0],
            "side": _SIDE,
            "data": "drawn textures",
        },
    }


if __name__ == "__main__":
    main()
