"""What the scoring measurements start from: images, a fitted registry, and the encoder's weights for the peers."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.images import Images, gather
from benchmarks.sides import OURS, run_side

BATCH = 32
_SCORED, _SCORED_QUICKLY = 96, 8
SMALL_FIT = {"recipe": "fast", "calibration": "split"}
_TRAIN = 24  # a detector's speed and size do not depend on what it was fitted from


@dataclass(frozen=True)
class Prepared:
    """Settings that the sides take: `shared` are both sides', `scoring` is ours, `encoder` the peers'."""

    images: Images
    shared: dict[str, Any]
    scoring: dict[str, Any]
    encoder: dict[str, Any]


def prepare(work: Path, options: Namespace) -> Prepared:
    """Gather images, fit a small category, export the encoder."""
    images = gather(work, train=_TRAIN, test=3 if options.quick else 20, data=options.data)
    place = {"category": images.category, "registry": str(work / "registry")}
    root = str(images.root)
    run_side(OURS, "ours.fitting", options.threads, root=root, detector=SMALL_FIT, **place)
    encoder = run_side(OURS, "ours.weights", options.threads, path=str(work / "encoder.pt"))
    files = images.files("test", _SCORED_QUICKLY if options.quick else _SCORED)
    shared = {"root": root, "files": files, "batch": min(BATCH, len(files))}
    return Prepared(images, shared, {**place, "device": options.device, "runtime": options.runtime}, encoder)


def copy_category(registry: Path, source: str, target: str) -> None:
    """The checkpoint of one category as that of another: what a decoder costs does not depend on its weights."""
    shutil.copytree(registry / source, registry / target)
    for manifest in (registry / target).glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"category": target}))
