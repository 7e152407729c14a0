"""`make bench-fit`: CPU-seconds to fit one category, and the peer's to reach the same image AUROC."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.images import Images, gather
from benchmarks.options import parse, parser
from benchmarks.report import RESULTS, publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side

_PATIENCE = 2
_PRICED_EPOCHS = 3
_SAME_AUROC = 2e-3

Epoch = dict[str, float]


def main() -> None:
    """Fit ours with several seeds, then the peer epoch by epoch; the ratio is at its first epoch that is as good."""
    flags = parser("fit one category to equal image AUROC")
    flags.add_argument("--recipe", default="fast", help="our recipe")
    flags.add_argument("--images", type=int, default=200, help="training images")
    flags.add_argument("--epochs", type=int, default=40, help="most epochs of the peer")
    flags.add_argument(
        "--reuse-peer",
        action="store_true",
        help=f"take the peer's AUROCs from the last result, and what they cost from {_PRICED_EPOCHS} epochs run now",
    )
    options = parse(flags)
    if options.quick and options.reuse_peer:
        flags.error("--quick has other images than the result that --reuse-peer takes")
    train, test = (16, 3) if options.quick else (options.images, 10**6)
    options.epochs = 1 if options.quick else options.epochs
    with tempfile.TemporaryDirectory() as folder:
        images = gather(Path(folder), train, test, options.data)
        repriced_peer = _repriced_peer(Path(folder), images, options) if options.reuse_peer else None
        ours = [_fit_ours(Path(folder), images, options, seed) for seed in range(options.rounds)]
        epochs = repriced_peer or _fit_peer(Path(folder), images, options, options.epochs)
        publish(_result(ours, epochs, images, options), options, {"ours": ours, "peer": {"epochs": epochs}})


def _fit_ours(work: Path, images: Images, options: Namespace, seed: int) -> dict[str, Any]:
    root, place = str(images.root), {"category": images.category, "registry": str(work / f"registry-{seed}")}
    detector = {"recipe": options.recipe, "seed": seed}
    settings = {"detector": detector, "device": options.device}
    fitted = run_side(OURS, "ours.fitting", options.threads, root=root, **settings, **place)
    scoring = place | {"device": options.device, "runtime": options.runtime}
    found = fitted | run_side(OURS, "ours.accuracy", options.threads, root=root, scoring=scoring)
    print(json.dumps({"seed": seed, **found}), file=sys.stderr, flush=True)
    return found


def _fit_peer(work: Path, images: Images, options: Namespace, epochs: int) -> list[Epoch]:
    encoder = run_side(OURS, "ours.weights", options.threads, path=str(work / "encoder.pt"))
    place = {"root": str(images.root), "category": images.category, "encoder": encoder}
    settings = {"epochs": epochs, "device": options.device}
    found: list[Epoch] = run_side(ANOMALIB, "peer.fitting", options.threads, **place, **settings)["epochs"]
    return found


def _repriced_peer(work: Path, images: Images, options: Namespace) -> list[Epoch]:
    kept: list[Epoch] = json.loads((RESULTS / "fit.json").read_text(encoding="utf-8"))["detail"]["peer"]["epochs"]
    return repriced(kept, _fit_peer(work, images, options, _PRICED_EPOCHS))


def repriced(kept: list[Epoch], now: list[Epoch]) -> list[Epoch]:
    """Kept epochs at what the first of them cost now: with the same seed their AUROCs are the same but for rounding."""
    if any(abs(a["image_auroc"] - b["image_auroc"]) > _SAME_AUROC for a, b in zip(now, kept, strict=False)):
        sys.exit("the peer's AUROCs are not those of the last result any more; run without --reuse-peer")
    priced = min(len(now), len(kept)) - 1
    price = {clock: now[priced][clock] / kept[priced][clock] for clock in ("cpu", "wall")}
    return [epoch | {clock: round(epoch[clock] * price[clock], 4) for clock in price} for epoch in kept]


def _result(fits: list[dict[str, Any]], epochs: list[Epoch], images: Images, options: Namespace) -> dict[str, Any]:
    figures = ("cpu", "wall", "image_auroc", "pixel_auroc")
    ours = {figure: round(median(fit[figure] for fit in fits), 4) for figure in figures}
    clock = options.clock
    equal = _first_as_good(epochs, ours, "image_auroc")
    counted = equal or epochs[-1]
    stop = _early_stop(epochs)
    return {
        "name": "fit",
        "ours": round(ours[clock], 1),
        "peer": round(counted[clock], 1),
        "ratio": significant(counted[clock] / ours[clock]),
        "unit": options.seconds,
        "conditions": {
            "peer": "anomalib Cflow through its Engine, training only",
            "ours": f"recipe {options.recipe}: decode, encode, fit, calibrate, store; medians of {len(fits)} seeds",
            "images": fits[0]["images"],
            "data": images.source,
            "ours_auroc": [ours["image_auroc"], ours["pixel_auroc"]],
            "peer_auroc": [counted["image_auroc"], counted["pixel_auroc"]],
            "peer_epochs": counted["epoch"],
            "peer_reached_ours": equal is not None,
            "ratio_at_equal_pixel_auroc": _ratio(_first_as_good(epochs, ours, "pixel_auroc"), ours, clock),
            "ratio_at_early_stop": _ratio(stop, ours, clock),
            "wall_s": [ours["wall"], counted["wall"]],
            "peer_epochs_run_now": _PRICED_EPOCHS if options.reuse_peer else len(epochs),
        },
    }


def _first_as_good(epochs: list[Epoch], ours: dict[str, Any], metric: str) -> Epoch | None:
    return next((epoch for epoch in epochs if epoch[metric] >= ours[metric]), None)


def _early_stop(epochs: list[Epoch]) -> Epoch | None:
    """The epoch after which training that waits `_PATIENCE` epochs for a better pixel AUROC would have ended."""
    best, waited = 0.0, 0
    for epoch in epochs:
        best, waited = (epoch["pixel_auroc"], 0) if epoch["pixel_auroc"] > best else (best, waited + 1)
        if waited == _PATIENCE:
            return epoch
    return None


def _ratio(epoch: Epoch | None, ours: dict[str, Any], clock: str) -> float | None:
    return None if epoch is None else significant(epoch[clock] / ours[clock])


if __name__ == "__main__":
    main()
