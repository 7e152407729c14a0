"""`make bench-archive-memory`: peak memory of an archive job over 20,000 and over 200,000 small images."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from pathlib import Path

from benchmarks.options import parse, parser
from benchmarks.references import Night
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side

_BLOBS = 30


def main() -> None:
    """A job over few images and one over ten times as many, each in a process and a cluster of its own."""
    options = parse(_flags())
    few, many = (100, 200) if options.quick else (options.images // 10, options.images)
    with tempfile.TemporaryDirectory() as folder:
        night = Night.prepare(Path(folder), _BLOBS, options.side)
        small, large = (run_side(OURS, "ours.archiving", 1, config=night.job(count)) for count in (few, many))
    result = {
        "name": "archive-memory",
        "ours": large["driver_peak_mb"],
        "peer": small["driver_peak_mb"],
        "ratio": significant(small["driver_peak_mb"] / large["driver_peak_mb"]),
        "unit": "MB",
        "conditions": {
            "ours": f"driver of a job over {many} images of {options.side} px",
            "peer": f"the same over {few}",
            "worker_peak_mb": [small["worker_peak_mb"], large["worker_peak_mb"]],
            "worker_ratio": significant(small["worker_peak_mb"] / large["worker_peak_mb"]),
            "spilled_files": [small["spilled_files"], large["spilled_files"]],
            "images_per_second": [small["images_per_second"], large["images_per_second"]],
            "seconds_to_the_first_chunk": [small["first_chunk"], large["first_chunk"]],
            "wall_s": [small["wall"], large["wall"]],
            "data": f"{_BLOBS} drawn textures, over and over by reference",
        },
    }
    publish(result, options, {"small": small, "large": large})


def _flags() -> ArgumentParser:
    flags = parser("peak memory of an archive job", rounds=0)
    flags.add_argument("--images", type=int, default=200_000, help="of the large job; the small one has a tenth")
    flags.add_argument("--side", type=int, default=64, help="of images and network")
    return flags


if __name__ == "__main__":
    main()
