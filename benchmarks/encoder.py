"""`make bench-encoder`: our whole detector against timm's eager forward of the encoder alone."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import parse, parser
from benchmarks.prepared import Network, Prepared, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side


def main() -> None:
    """Rounds of ours and the encoder in turn, a process each."""
    flags = parser("score decoded images against the encoder alone")
    flags.add_argument("--encoder", default=Network.name, help="timm's name; weights are drawn, but the default's")
    flags.add_argument("--side", type=int, default=Network.side, help="input size")
    options = parse(flags)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), options, Network(options.encoder, options.side))
        rounds = [_round(prepared, options) for _ in range(options.rounds)]
    publish(_result(rounds, prepared, options), options, {"rounds": rounds})


def _round(prepared: Prepared, options: Namespace) -> dict[str, Any]:
    ours = run_side(OURS, "ours.speed", options.threads, **prepared.shared, scoring=prepared.scoring)
    peer = run_side(
        OURS, "peer.encoder", options.threads, **prepared.shared, encoder=prepared.encoder, device=options.device
    )
    return {"ours": ours, "peer": peer}


def _result(rounds: list[dict[str, Any]], prepared: Prepared, options: Namespace) -> dict[str, Any]:
    network, count = prepared.network, rounds[0]["ours"]["images"]
    ours, peer = (median(count / figures[side][options.clock] for figures in rounds) for side in ("ours", "peer"))
    return {
        "name": "encoder" if network == Network() else f"encoder-{network.name}-{network.side}",
        "ours": significant(ours),
        "peer": significant(peer),
        "ratio": significant(ours / peer),
        "unit": f"images/{options.seconds}",
        "conditions": {
            "network": f"{network.name}, {network.side} px",
            "peer": "timm features_only network, eager, default memory format; no decoders, no map",
            "batch": prepared.shared["batch"],
            "images": count,
            "rounds": len(rounds),
            "data": prepared.images.source,
            "runtime": prepared.scoring["runtime"],
            "images_per_wall_s": [
                significant(median(count / figures[side]["wall"] for figures in rounds)) for side in ("ours", "peer")
            ],
        },
    }


if __name__ == "__main__":
    main()
