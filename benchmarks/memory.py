"""`make bench-memory`: the peak of a process that scores 1,000 images, ours as a stream, anomalib's from a folder."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.images import repeat
from benchmarks.options import parse, parser
from benchmarks.prepared import BATCH, Prepared, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side


def main() -> None:
    """One run each, ours at a fifth of the images as well."""
    options = parse(parser("peak memory of scoring 1,000 images"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), options)
        result, detail = _measured(Path(folder) / "thousand", prepared, options)
    publish(result, options, detail)


def _measured(folder: Path, prepared: Prepared, options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    names = repeat(prepared.images, folder, 20 if options.quick else 1000)
    few, many = (
        run_side(
            OURS, "ours.memory", options.threads, root=str(folder), files=files, batch=BATCH, scoring=prepared.scoring
        )
        for files in (names[: len(names) // 5], names)
    )
    peer = run_side(
        ANOMALIB, "peer.memory", options.threads, folder=str(folder), encoder=prepared.encoder, device=options.device
    )
    result = {
        "name": "memory",
        "ours": many["peak_mb"],
        "peer": peer["peak_mb"],
        "ratio": significant(peer["peak_mb"] / many["peak_mb"]),
        "unit": "MB",
        "conditions": {
            "peer": "anomalib Engine.predict(data_path=folder), pictures off",
            "ours": f"load_images and DetectorBank.score_batch, batch {BATCH}",
            "images": many["images"],
            f"ours_at_{few['images']}_images": few["peak_mb"],
            "before_the_first_image": [many["before_mb"], peer["before_mb"]],
            "data": prepared.images.source,
            "runtime": prepared.scoring["runtime"],
        },
    }
    return result, {"ours_few": few, "ours": many, "peer": peer}


if __name__ == "__main__":
    main()
