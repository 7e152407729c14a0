"""`make bench-mixed`: a chunk in which 15 categories alternate against chunks of one category each."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.images import draw_factory
from benchmarks.options import parse, parser
from benchmarks.prepared import copy_category
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side

_CATEGORIES = 15


def main() -> None:
    """Make the categories, score the same images in both orders."""
    flags = parser("score mixed categories")
    flags.add_argument("--chunk-records", type=int, default=64, help="records of a chunk")
    flags.add_argument("--batch-size", type=int, default=16, help="images of a pass")
    options = parse(flags)
    side, chunks = (64, 2) if options.quick else (256, 15)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = draw_factory(root / "data", [(12, 10)] * _CATEGORIES, side)
        detector = {"recipe": "fast", "input_size": side, "calibration": "split"}
        first = {"root": str(root / "data"), "category": names[0], "registry": str(root / "registry")}
        run_side(OURS, "ours.fitting", 1, detector=detector, **first)
        for name in names[1:]:
            copy_category(root / "registry", names[0], name)
        job = {
            "registry": str(root / "registry"),
            "chunk_records": options.chunk_records,
            "runtime": options.runtime,
            "batch_size": options.batch_size,
        }
        settings = {"root": str(root / "data"), "rounds": options.rounds, "chunks": chunks, "job": job}
        figures = run_side(OURS, "ours.mixing", options.threads, **settings)
    publish(_result(figures, options.chunk_records, options.batch_size), options, figures)


def _result(figures: dict[str, Any], chunk: int, batch: int) -> dict[str, Any]:
    mixed, by_category = (statistics.median(figures[order]) for order in ("mixed", "sorted"))
    return {
        "name": "mixed",
        "ours": significant(mixed),
        "peer": significant(by_category),
        "ratio": significant(by_category / mixed),
        "unit": "CPU-s",
        "conditions": {
            "ours": f"chunks of {chunk} images in which {_CATEGORIES} categories alternate, batches of {batch}",
            "peer": "the same images sorted by category",
            "mixed_to_sorted": significant(mixed / by_category),
            "images": figures["images"],
        },
    }


if __name__ == "__main__":
    main()
