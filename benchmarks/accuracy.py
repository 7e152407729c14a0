"""Accuracy of every recipe on real and drawn defects: the table of the README, one row a fit.

Run: python -m benchmarks.accuracy [--only screw-256,cookie-256] [--encoder resnet18] [--recipes fast,balanced] [--seeds 3]
                                   [--dtype float16]

Every set is encoded once (train and test), then each recipe and seed is fitted from the same features and scored. No
test image chooses anything in a fit. All but 4 to 10 % of the training images train (`calibration_fraction: 0.01`):
accuracy is that of the kept model, whatever calibrates it. Rows that `results/accuracy.json` holds already are kept,
whatever their commit: take out those to measure anew. A fit goes on from its savepoint, so a run that was stopped goes
on: at the same commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.report import RESULTS, commit, write
from benchmarks.sides import CHECKOUT
from cflow_ray.config import DataConfig, DetectorConfig, EncoderConfig
from cflow_ray.data import elpv, synthetic
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import PreparedImage
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.evaluation.evaluate import read_mask
from cflow_ray.evaluation.metrics import compute_metrics
from cflow_ray.model.context import FitContext, State
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features, encode
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.seeds import category_seed
from cflow_ray.model.tiling import Layout
from cflow_ray.store.manifest import installed_packages
from cflow_ray.store.savepoints import StoredSavepoints
from cflow_ray.store.storage import Storage
from cflow_ray.store.weights import read_weights

_DATA = Path(__file__).parent / ".data"
_SAVE_SECONDS = 60
_CPU_SECONDS = "cpu_seconds"
_INSPECTION = CHECKOUT.parent / "shared"
_ROOTS = {"screw": "data/screw", "tile": "data/magnetic_tile", "cookie": "data/cookie"}
_SETS = ("screw-256", "screw-512", "tile-256", "cookie-256", *(f"{name}-256" for name in synthetic.CATEGORIES))
_ELPV = ("mono-256", "poly-256")
_ENCODERS = {
    "tf_efficientnet_lite0": EncoderConfig(),
    "resnet18": EncoderConfig(
        name="resnet18",
        weights=str(_INSPECTION / "weights" / "resnet18_stem_layer1-3.safetensors"),
        strides=(8, 16),  # the file ends after layer3
    ),
}
_FIGURES = ("image_auroc", "pixel_auroc", "aupro", "pixel_f1")


@dataclass(frozen=True)
class EncodedSet:
    """One data set at one size through one encoder."""

    train: Features
    test: Features
    labels: list[int]
    masks: list[NDArray[np.bool_] | None]
    seconds: float
    """CPU seconds of encoding the training images."""


class MeteredSavepoints(StoredSavepoints):
    """Savepoints of a fit that know how many CPU seconds it has taken, those before it was stopped included."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Storage(str(folder)), _SAVE_SECONDS)
        self._began = time.process_time()

    @property
    def cpu_seconds(self) -> float:
        """Since the fit began."""
        return time.process_time() - self._began

    def load(self, part: str) -> State | None:
        """As the state was saved; the seconds until then count."""
        state = super().load(part)
        if state is not None:
            self._began = min(self._began, time.process_time() - float(state.pop(_CPU_SECONDS)))
        return state

    def save(self, part: str, state: State) -> None:
        """With the seconds until now."""
        super().save(part, state | {_CPU_SECONDS: torch.tensor(self.cpu_seconds, dtype=torch.float64)})


def main() -> None:
    """Fit and score what is missing, row by row; each row is written as soon as it is there."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = _known()
    for name in options.only:
        missing = [row for row in _wanted(name, options) if not any(_same(row, known) for known in rows)]
        if not missing:
            continue
        encoded = _encode(name, missing[0]["encoder"])
        for row in missing:
            rows.append(row | _fit(encoded, row) | {"commit": commit(), "gflops": _gflops()})
            write({"name": "accuracy", "threads": options.threads, "rows": rows})
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per set, encoder and recipe; figures in per cent, and CPU seconds of encoding and of fitting.

    A figure is the mean over the seeds, of image AUROC with their range, and the 95 % bootstrap interval over test images,
    its ends averaged over the seeds.
    """
    lines = [
        "| data | encoder | recipe | stored as | seeds | image AUROC | pixel AUROC | AUPRO | pixel F1 | CPU-s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted({_key(row) for row in rows}, key=_place):
        of_key = [row for row in rows if _key(row) == key]
        figures = " | ".join(_figure(of_key, name) for name in _FIGURES)
        seconds = f"{_seconds(of_key, 'encode')} + {_seconds(of_key, 'fit')}"
        lines.append(f"| {' | '.join(key)} | {len(of_key)} | {figures} | {seconds} |")
    return "\n".join(lines)


def _figure(rows: list[dict[str, Any]], name: str) -> str:
    if any(row[name] is None for row in rows):
        return "-"
    shown = f"{100 * mean(row[name] for row in rows):.2f}"
    if name == "image_auroc" and len(rows) > 1:
        shown += " ({:.1f}-{:.1f})".format(*(100 * end(row[name] for row in rows) for end in (min, max)))
    low, high = (100 * mean(row[f"{name}_{end}"] for row in rows) for end in ("low", "high"))
    return f"{shown} [{low:.1f}, {high:.1f}]"


def _seconds(rows: list[dict[str, Any]], of: str) -> str:
    counts = [round(row[f"{of}_cpu_seconds"]) for row in rows]
    return "-".join(str(count) for count in sorted({min(counts), max(counts)}))


def _place(key: tuple[str, ...]) -> tuple[int | str, ...]:
    name, encoder, recipe, dtype = key
    recipes = ("fast", "balanced", "best", "paper")
    return list(_ENCODERS).index(encoder), [*_SETS, *_ELPV].index(name), recipes.index(recipe), dtype


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("set", "encoder", "recipe", "dtype"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*_SETS, *_ELPV])
    parser.add_argument("--encoder", choices=list(_ENCODERS), default="tf_efficientnet_lite0")
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=["fast", "balanced", "best"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the stored matrices")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _wanted(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {"set": name, "encoder": options.encoder, "recipe": recipe, "dtype": options.dtype, "seed": seed}
        for recipe in options.recipes
        for seed in range(options.seeds)
    ]


def _known() -> list[dict[str, Any]]:
    path = RESULTS / "accuracy.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _same(row: dict[str, Any], known: dict[str, Any]) -> bool:
    return all(known[name] == value for name, value in row.items())


def _fit(encoded: EncodedSet, row: dict[str, Any]) -> dict[str, Any]:
    name, size = row["set"].rsplit("-", 1)
    config = DetectorConfig(
        encoder=_ENCODERS[row["encoder"]],
        input_size=int(size),
        recipe=row["recipe"],
        dtype=row["dtype"],
        seed=row["seed"],
        calibration="split",
        calibration_fraction=0.01,
    )
    savepoints = MeteredSavepoints(_DATA / "savepoints" / _identity(name, config))
    context = FitContext(savepoints=savepoints)
    detector = fit_detector(encoded.train, config, category_seed(row["seed"], name), context).detector()
    seconds = {"fit_cpu_seconds": savepoints.cpu_seconds}
    scores, maps = [], []
    for image in range(len(encoded.test)):
        map_HW = detector.maps([level.maps([image]) for level in encoded.test.levels])[0]
        scores.append(detector.score(map_HW))
        maps.append(map_HW.numpy())
    metrics = compute_metrics(scores, encoded.labels, maps, encoded.masks).as_dict()
    figures = {name: None if value is None else round(value, 4) for name, value in metrics.items()}
    savepoints.forget("")
    of_set = {"encode_cpu_seconds": encoded.seconds, "training_images": len(encoded.train)}
    return figures | {name: round(value, 1) for name, value in (seconds | of_set).items()}


def _identity(category: str, config: DetectorConfig) -> str:
    """Of a fit: all that decides its weights. With changes that no commit holds it has no other to go on from."""
    code = commit()
    if code.endswith("+changes"):
        code = uuid4().hex
    known = repr((category, config.model_dump_json(), code, sorted(installed_packages().items())))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _encode(name: str, encoder_name: str) -> EncodedSet:
    category, size = name.rsplit("-", 1)
    config = DetectorConfig(encoder=_ENCODERS[encoder_name], input_size=int(size))
    data_set = _data_set(category)
    encoder = Encoder(config.encoder, read_weights(config.encoder))
    cpu = time.process_time()
    train = encode(encoder, _images(data_set, data_set.normals(category), config, []))
    seconds = time.process_time() - cpu
    tested: list[Sample] = []
    test = encode(encoder, _images(data_set, data_set.of(category, TEST), config, tested))
    masks = [read_mask(data_set.root, sample, config.size) for sample in tested]
    return EncodedSet(train, test, [int(sample.label or 0) for sample in tested], masks, seconds)


def _images(
    data_set: DataSet, samples: list[Sample], config: DetectorConfig, used: list[Sample]
) -> Iterator[tuple[Tensor, Layout]]:
    for sample, image in load_images(data_set.root, samples, config.input):
        assert isinstance(image, PreparedImage), image
        used.append(sample)
        yield torch.from_numpy(image.pixels_3HW), Layout.of(config.size, config.input)


def _data_set(category: str) -> DataSet:
    """The set on disk; drawn and packaged ones are written first, below benchmarks/.data."""
    if category in _ROOTS:
        return read_data_set(DataConfig(data=str(_INSPECTION / _ROOTS[category])), {})
    is_elpv = f"{category}-256" in _ELPV
    folder = _DATA / ("elpv" if is_elpv else "textures")
    if not (folder / category).is_dir():
        files = elpv.elpv_files((category,)) if is_elpv else synthetic.demo_files((category,))
        root = Storage(str(folder))
        for path, content in files:
            root.write(path, content)
    return read_data_set(DataConfig(data=str(folder)), {})


def _gflops() -> float:
    """What a float32 product reaches just now: rows come from machines of unlike speed."""
    side = 1024
    factor = torch.ones(side, side)
    seconds = []
    for _ in range(5):
        cpu = time.process_time()
        torch.mm(factor, factor)
        seconds.append(time.process_time() - cpu)
    return round(2 * side**3 / min(seconds) / 1e9, 1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
