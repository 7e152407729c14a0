"""`make bench-score`: images per CPU-second at batch 32, ours against anomalib's `Engine.predict` and its bare model."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import parse, parser
from benchmarks.prepared import Prepared, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side

_WAYS = ("predict", "predict_with_pictures", "by_hand")


def main() -> None:
    """Rounds of ours and the peer in turn, a process each."""
    options = parse(parser("score decoded images"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), options)
        rounds = [_round(prepared, options) for _ in range(options.rounds)]
    _refuse_another_encoder(rounds[0])
    publish(_result(rounds, prepared, options), options, {"rounds": rounds})


def _round(prepared: Prepared, options: Namespace) -> dict[str, Any]:
    ours = run_side(OURS, "ours.speed", options.threads, **prepared.shared, scoring=prepared.scoring)
    peer = run_side(
        ANOMALIB, "peer.speed", options.threads, **prepared.shared, encoder=prepared.encoder, device=options.device
    )
    return {"ours": ours, "peer": peer}


def _refuse_another_encoder(figures: dict[str, Any]) -> None:
    """The comparison holds only if both sides see the same features."""
    pairs = zip(figures["ours"]["feature_norms"], figures["peer"]["feature_norms"], strict=True)
    for ours, peer in pairs:
        if abs(ours - peer) > 1e-4 * peer:
            raise SystemExit(f"the sides' features differ: norms {ours} and {peer}")


def _result(rounds: list[dict[str, Any]], prepared: Prepared, options: Namespace) -> dict[str, Any]:
    count = rounds[0]["ours"]["images"]
    ours = median(count / figures["ours"][options.clock] for figures in rounds)
    peers = {way: median(count / figures["peer"][way][options.clock] for figures in rounds) for way in _WAYS}
    return {
        "name": "score",
        "ours": significant(ours),
        "peer": significant(peers["predict"]),
        "ratio": significant(ours / peers["predict"]),
        "unit": f"images/{options.seconds}",
        "conditions": {
            "peer": "anomalib Engine.predict, pictures off",
            "ratio_to_predict_with_pictures": significant(ours / peers["predict_with_pictures"]),
            "ratio_to_model_by_hand": significant(ours / peers["by_hand"]),
            "batch": prepared.shared["batch"],
            "images": count,
            "rounds": len(rounds),
            "data": prepared.images.source,
            "runtime": prepared.scoring["runtime"],
            "images_per_wall_s": [
                significant(median(count / figures["ours"]["wall"] for figures in rounds)),
                significant(median(count / figures["peer"]["predict"]["wall"] for figures in rounds)),
            ],
        },
    }


if __name__ == "__main__":
    main()
