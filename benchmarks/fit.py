"""`make bench-fit`: CPU-seconds to fit one category, and the peer's to reach the same image AUROC."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.images import Images, gather
from benchmarks.options import parse, parser
from benchmarks.report import RESULTS, publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side

_PATIENCE = 2


def main() -> None:
    """Fit ours, then the peer epoch by epoch; the ratio is at the peer's first epoch that is as good."""
    flags = parser("fit one category to equal image AUROC")
    flags.add_argument("--recipe", default="fast", help="our recipe")
    flags.add_argument("--images", type=int, default=200, help="training images")
    flags.add_argument("--epochs", type=int, default=20, help="most epochs of the peer")
    kept = flags.add_mutually_exclusive_group()
    kept.add_argument("--reuse-peer", action="store_true", help="take the peer's epochs from the last result")
    kept.add_argument("--peer-log", type=Path, help="take them from what a run that was cut off wrote to stderr")
    options = parse(flags)
    train, test = (16, 3) if options.quick else (options.images, 10**6)
    options.epochs = 1 if options.quick else options.epochs
    with tempfile.TemporaryDirectory() as folder:
        images = gather(Path(folder), train, test, options.data)
        ours = _fit_ours(Path(folder), images, options)
        peer = _kept_peer(options) or _fit_peer(Path(folder), images, options)
        publish(_result(ours, peer, images, options), options, {"ours": ours, "peer": peer})


def _fit_ours(work: Path, images: Images, options: Namespace) -> dict[str, Any]:
    root, place = str(images.root), {"category": images.category, "registry": str(work / "registry")}
    fitted = run_side(OURS, "ours.fitting", options.threads, root=root, detector={"recipe": options.recipe}, **place)
    scoring = place | {"device": options.device, "runtime": options.runtime}
    return fitted | run_side(OURS, "ours.accuracy", options.threads, root=root, scoring=scoring)


def _fit_peer(work: Path, images: Images, options: Namespace) -> dict[str, Any]:
    encoder = run_side(OURS, "ours.weights", options.threads, path=str(work / "encoder.pt"))
    place = {"root": str(images.root), "category": images.category, "encoder": encoder}
    settings = {"epochs": options.epochs, "device": options.device}
    return run_side(ANOMALIB, "peer.fitting", options.threads, **place, **settings)


def _kept_peer(options: Namespace) -> dict[str, Any] | None:
    """The peer's epochs of an earlier run, where one is wanted."""
    if options.peer_log:
        lines = options.peer_log.read_text(encoding="utf-8").splitlines()
        return {"epochs": [json.loads(line) for line in lines if line.startswith('{"epoch"')]}
    if options.reuse_peer:
        kept: dict[str, Any] = json.loads((RESULTS / "fit.json").read_text(encoding="utf-8"))["detail"]["peer"]
        return kept
    return None


def _result(ours: dict[str, Any], peer: dict[str, Any], images: Images, options: Namespace) -> dict[str, Any]:
    epochs: list[dict[str, float]] = peer["epochs"]
    equal = _first_as_good(epochs, ours, "image_auroc")
    counted = equal or epochs[-1]
    stop = _early_stop(epochs)
    return {
        "name": "fit",
        "ours": round(ours["cpu"], 1),
        "peer": round(counted["cpu"], 1),
        "ratio": significant(counted["cpu"] / ours["cpu"]),
        "unit": "CPU-s",
        "conditions": {
            "peer": "anomalib Cflow through its Engine, training only",
            "ours": f"recipe {options.recipe}: decode, encode, fit, calibrate, store",
            "images": ours["images"],
            "data": images.source,
            "ours_auroc": [ours["image_auroc"], ours["pixel_auroc"]],
            "peer_auroc": [counted["image_auroc"], counted["pixel_auroc"]],
            "peer_epochs": counted["epoch"],
            "peer_reached_ours": equal is not None,
            "ratio_at_equal_pixel_auroc": _ratio(_first_as_good(epochs, ours, "pixel_auroc"), ours),
            "ratio_at_early_stop": _ratio(stop, ours),
            "wall_s": [ours["wall"], counted["wall"]],
            "peer_reused": options.reuse_peer or options.peer_log is not None,
        },
    }


def _first_as_good(epochs: list[dict[str, float]], ours: dict[str, Any], metric: str) -> dict[str, float] | None:
    return next((epoch for epoch in epochs if epoch[metric] >= ours[metric]), None)


def _early_stop(epochs: list[dict[str, float]]) -> dict[str, float] | None:
    """The epoch after which training that waits `_PATIENCE` epochs for a better pixel AUROC would have ended."""
    best, waited = 0.0, 0
    for epoch in epochs:
        best, waited = (epoch["pixel_auroc"], 0) if epoch["pixel_auroc"] > best else (best, waited + 1)
        if waited == _PATIENCE:
            return epoch
    return None


def _ratio(epoch: dict[str, float] | None, ours: dict[str, Any]) -> float | None:
    return None if epoch is None else significant(epoch["cpu"] / ours["cpu"])


if __name__ == "__main__":
    main()
