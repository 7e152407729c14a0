"""`make bench-fit-all`: a run over 15 categories against their fits alone, and against a loop of the peer's fits."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.images import draw_factory
from benchmarks.options import parse, parser
from benchmarks.report import RESULTS, name_on, publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side
from cflow_ray.config import DataConfig
from cflow_ray.data.datasets import read_data_set

MVTEC_AD = (
    *((280, 117), (264, 78), (245, 124), (230, 117), (247, 79), (209, 83), (224, 150), (219, 132), (391, 110)),
    *((220, 115), (267, 167), (320, 160), (60, 42), (213, 100), (240, 151)),
)
"""Training and test images of its 15 categories, in the order of their names."""
_FEWER_EPOCHS = 20


def main() -> None:
    """Draw the images, fit each category alone, run all of them, then the peer on some of them."""
    options = parse(_flags())
    options.side = 64 if options.quick else options.side
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or _drawn(Path(folder) / "data", options)
        kept = _kept_peer(training_images(root), options.device) if options.reuse_peer else None
        detector = {"recipe": options.recipe, "input_size": options.side}
        configs = [
            {"data": str(root), "registry": str(Path(folder) / name), "defaults": detector} for name in ("alone", "run")
        ]
        shares = {} if options.device == "cpu" else {"resources": {"gpu": 1 / options.workers}}
        for config in configs:
            config["cluster"] = {"workers": options.workers, **shares}
        singles = run_side(OURS, "ours.singles", 1, config=configs[0], workers=options.workers)
        run = run_side(OURS, "ours.running", 1, config=configs[1])
        peer = kept or _peer(Path(folder), root, singles, options)
    result = _result(singles, run, peer, options)
    publish(result, options, {"singles": singles, "run": run, "peer": peer})


def _flags() -> ArgumentParser:
    flags = parser("fit 15 categories in one run", data="a data set's folder", rounds=0)
    flags.add_argument("--recipe", default="fast", help="our recipe")
    flags.add_argument("--side", type=int, default=256, help="our input size; the peer's is 256")
    flags.add_argument("--workers", type=int, default=os.cpu_count(), help="of our run; the peer gets as many threads")
    flags.add_argument("--categories", type=int, default=15, help="that are drawn, from the smallest of MVTec AD's on")
    flags.add_argument("--epochs", type=int, default=50, help="of the peer")
    flags.add_argument("--measured-epochs", type=int, default=1, help="of the peer that are run")
    flags.add_argument("--measured-categories", type=int, default=3, help="of the peer that are run, small to large")
    flags.add_argument("--peer-in-full", action="store_true", help="run all categories and epochs of the peer (a day)")
    flags.add_argument("--reuse-peer", action="store_true", help="take the peer's seconds from the last result")
    return flags


def _drawn(root: Path, options: Namespace) -> Path:
    """With the numbers of images unscaled: half of them would be folds, and thrice the work, for most categories."""
    sizes = ((10, 10), (12, 10), (16, 10)) if options.quick else spread(sorted(MVTEC_AD), options.categories)
    draw_factory(root, sizes, 256)
    return root


def _peer(work: Path, root: Path, singles: dict[str, Any], options: Namespace) -> dict[str, Any]:
    encoder = run_side(OURS, "ours.weights", options.workers, path=str(work / "encoder.pt"))
    by_size = sorted(singles["fits"], key=lambda name: singles["fits"][name]["images"]["train"])
    few = 1 if options.quick else options.measured_categories
    categories = by_size if options.peer_in_full else spread(by_size, few)
    epochs = options.epochs if options.peer_in_full else options.measured_epochs
    settings = {"categories": categories, "epochs": epochs, "device": options.device}
    return run_side(ANOMALIB, "peer.looping", options.workers, root=str(root), encoder=encoder, **settings)


def _kept_peer(images: dict[str, int], device: str) -> dict[str, Any]:
    path = RESULTS / f"{name_on('fit-all', device)}.json"
    if not path.is_file():
        sys.exit(f"--reuse-peer: there is no {path.name} yet; run without --reuse-peer")
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["detail"]
    refuse_another_peer(kept, images)
    peer: dict[str, Any] = kept["peer"]
    return peer


def training_images(root: Path) -> dict[str, int]:
    """How many every category of a data set has."""
    data_set = read_data_set(DataConfig(data=str(root)), {})
    return {category: len(data_set.normals(category)) for category in data_set.categories}


def refuse_another_peer(kept: dict[str, Any], images: dict[str, int]) -> None:
    """Ends a run whose categories are not those, with as many training images, that the kept peer was measured on."""
    of_peer = {name: kept["singles"]["fits"][name]["images"]["train"] for name in kept["peer"]["fits"]}
    if any(images.get(name) != count for name, count in of_peer.items()):
        sys.exit(f"--reuse-peer: the last result's peer was measured on {of_peer}; run without --reuse-peer")


def spread(ordered: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, evenly from its first to its last."""
    count = min(count, len(ordered))
    return [ordered[round(number * (len(ordered) - 1) / max(1, count - 1))] for number in range(count)]


def peer_seconds(peer: dict[str, Any], images: dict[str, int], epochs: int, unit: str = "wall") -> float:
    """Seconds of the peer's loop over all categories: epochs times those of an epoch, and what else a fit takes.

    A category that was not run takes the others' mean of an epoch for a training image, and of the rest of a fit.
    """
    fits = peer["fits"]
    an_image = sum(fit["epoch"][unit] for fit in fits.values()) / sum(images[name] for name in fits)
    other = sum(fit["other"][unit] for fit in fits.values()) / len(fits)
    assumed = sum(epochs * an_image * count + other for name, count in images.items() if name not in fits)
    return float(assumed + sum(epochs * fit["epoch"][unit] + fit["other"][unit] for fit in fits.values()))


def _result(singles: dict[str, Any], run: dict[str, Any], peer: dict[str, Any], options: Namespace) -> dict[str, Any]:
    images = {name: fit["images"]["train"] for name, fit in singles["fits"].items()}
    ideal = sum(fit["wall"] for fit in singles["fits"].values()) / options.workers
    peers, fewer = (peer_seconds(peer, images, epochs) for epochs in (options.epochs, _FEWER_EPOCHS))
    cpu = sum(fit["cpu"] for fit in singles["fits"].values())
    extrapolated = len(peer["fits"]) < len(images) or peer["epochs"] < options.epochs
    return {
        "name": "fit-all",
        "ours": run["wall"],
        "peer": round(peers),
        "ratio": significant(peers / run["wall"]),
        "unit": "wall s",
        "conditions": {
            "peer": f"anomalib: a loop of Engine.fit, {options.epochs} epochs, {options.workers} torch threads",
            "peer_extrapolated": extrapolated and f"{peer['epochs']} epochs of {len(peer['fits'])} categories were run",
            f"ratio_at_{_FEWER_EPOCHS}_epochs": significant(fewer / run["wall"]),
            "ratio_of_cpu_s": significant(peer_seconds(peer, images, options.epochs, "cpu") / cpu),
            "ours": f"fit, recipe {options.recipe}, {options.side} px, {options.workers} workers of one thread",
            "singles": f"each category alone, {options.workers} processes of one thread side by side",
            "singles_by_workers_s": round(ideal, 1),
            "start_up_s": run["start_up"],
            "run_less_start_up_to_singles": significant((run["wall"] - run["start_up"]) / ideal),
            "seconds_after_the_last_was_taken": round(run["last_finished"] - run["last_taken"], 1),
            "seconds_after_the_last_was_finished": round(run["wall"] - run["last_finished"], 1),
            "fits_in_the_run_to_singles": significant(sum(run["fits"].values()) / ideal / options.workers),
            "categories": len(images),
            "images": sum(images.values()),
            "data": options.data.name if options.data else "drawn textures, 256 px, MVTec AD's numbers of images",
            "peer_reused": options.reuse_peer,
        },
    }


if __name__ == "__main__":
    main()
