"""`make bench-load`: loading a WRN50-sized detector against building FrEIA's soft permutations to load into."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.images import gather
from benchmarks.options import parse, parser
from benchmarks.prepared import SMALL_FIT
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side

_BLOCKS, _CONDITION = 8, 128


def main() -> None:
    """Our loads, a process each, and one construction of the peer."""
    options = parse(parser("load a WRN50-sized detector from local disk"))
    network, channels = ("resnet18", [128, 256, 512]) if options.quick else ("wide_resnet50_2", [512, 1024, 2048])
    with tempfile.TemporaryDirectory() as folder:
        place = _large_registry(Path(folder), network, options)
        rounds = [run_side(OURS, "ours.loading", options.threads, **place) for _ in range(options.rounds)]
    peer = run_side(OURS, "peer.construction", options.threads, channels=channels, blocks=_BLOCKS, condition=_CONDITION)
    publish(_result(rounds, peer, network), options, {"rounds": rounds, "peer": peer})


def _large_registry(work: Path, network: str, options: Namespace) -> dict[str, str]:
    """A checkpoint of the right size: fitted on few small images over a network without training."""
    images = gather(work, train=24, test=0, data=options.data)
    weights = str(work / "network.safetensors")
    run_side(OURS, "ours.untrained", options.threads, name=network, path=weights)
    detector = {"encoder": {"name": network, "weights": weights}, "input_size": 64, **SMALL_FIT}
    place = {"registry": str(work / "registry"), "category": images.category}
    run_side(OURS, "ours.fitting", options.threads, root=str(images.root), detector=detector, **place)
    return place


def _result(rounds: list[dict[str, Any]], peer: dict[str, Any], network: str) -> dict[str, Any]:
    ours = median(figures["cpu"] for figures in rounds)
    return {
        "name": "load",
        "ours": significant(ours),
        "peer": peer["cpu"],
        "ratio": significant(peer["cpu"] / ours),
        "unit": "CPU-s",
        "conditions": {
            "peer": f"FrEIA blocks with permute_soft=True; one block a level built, times {_BLOCKS}",
            "scipy": version("scipy"),
            "ours": "Registry.detector from local disk, in the page cache",
            "network": network,
            "detector_mb": rounds[0]["mb"],
            "rounds": len(rounds),
            "wall_s": [significant(median(figures["wall"] for figures in rounds)), peer["wall"]],
        },
    }


if __name__ == "__main__":
    main()
