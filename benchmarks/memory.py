"""`make bench-memory`: the peak of a process that scores 1,000 images, ours as a stream, anomalib's from a folder."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.images import repeat
from benchmarks.options import parse, parser
from benchmarks.prepared import BATCH, Prepared, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side


def main() -> None:
    """Both sides in every round, ours at a fifth of the images as well."""
    options = parse(parser("peak memory of scoring 1,000 images"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), options)
        thousand = Path(folder) / "thousand"
        names = repeat(prepared.images, thousand, 20 if options.quick else 1000)
        rounds = [_round(thousand, names, prepared, options) for _ in range(options.rounds)]
    publish(_result(rounds, prepared), options, {"rounds": rounds})


def _round(folder: Path, names: list[str], prepared: Prepared, options: Namespace) -> dict[str, Any]:
    few, many = (
        run_side(
            OURS, "ours.memory", options.threads, root=str(folder), files=files, batch=BATCH, scoring=prepared.scoring
        )
        for files in (names[: len(names) // 5], names)
    )
    peer = run_side(
        ANOMALIB, "peer.memory", options.threads, folder=str(folder), encoder=prepared.encoder, device=options.device
    )
    return {"ours_few": few, "ours": many, "peer": peer}


def _result(rounds: list[dict[str, Any]], prepared: Prepared) -> dict[str, Any]:
    few, many, peer = (rounds[0][side] for side in ("ours_few", "ours", "peer"))

    def middle(side: str, figure: str = "peak_mb") -> float:
        return median(one[side][figure] for one in rounds)

    return {
        "name": "memory",
        "ours": middle("ours"),
        "peer": middle("peer"),
        "ratio": significant(middle("peer") / middle("ours")),
        "unit": "MB",
        "conditions": {
            "peer": "anomalib Engine.predict(data_path=folder), pictures off",
            "ours": f"load_images and DetectorBank.score_batch, batch {BATCH}",
            "images": many["images"],
            "images_of_the_peer": peer["images"],
            "rounds": len(rounds),
            f"ours_at_{few['images']}_images": middle("ours_few"),
            "before_the_first_image": [middle("ours", "before_mb"), middle("peer", "before_mb")],
            "data": prepared.images.source,
            "runtime": prepared.scoring["runtime"],
        },
    }


if __name__ == "__main__":
    main()
