"""The paper's recipe on one category, last step beside the best pass on the test set (labelled as what it is).

Run: python -m benchmarks.reproduction ROOT CATEGORY [--encoder NAME --weights SOURCE --input-size 256 --seed 0]

Every 8 passes (one of the official code's meta epochs) the decoders are set aside; at the end each set is scored twice:
our score, peaks from held-out normals, and the paper's, scaled by the test set. "best on test" chooses the meta epoch
by the test labels, each metric its own, as the paper's table does; it is no estimate of what a user gets.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import write
from cflow_ray.config import DataConfig, DetectorConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import PreparedImage
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import TEST, DataSet
from cflow_ray.evaluation.evaluate import LabelledFindings
from cflow_ray.evaluation.paper import paper_figures
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.context import FitContext
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import encode
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.flow import Decoder
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.seeds import category_seed
from cflow_ray.model.tiling import Layout
from cflow_ray.store.weights import read_weights

_PASSES_OF_A_SET = 8


def main() -> None:
    """Fit, score every set, write the result."""
    options = _options()
    config = DetectorConfig.model_validate(
        {
            "encoder": {"name": options.encoder, "weights": options.weights, "strides": options.strides},
            "input_size": options.input_size,
            "recipe": "paper",
            "calibration": "split",
            "calibration_fraction": 0.01,  # at least 4 images: nearly all others train, as in the paper
            "seed": options.seed,
        }
    )
    name = f"reproduction-{options.category}-{options.encoder}-{options.input_size}"
    result = {"name": name} | reproduce(read_data_set(DataConfig(data=options.root), {}), options.category, config)
    write(result)
    print(json.dumps(result))


def reproduce(data_set: DataSet, category: str, config: DetectorConfig) -> dict[str, Any]:
    """Figures of one fit: of its last pass by either score, and of the best of all looks at the test set."""
    encoder = Encoder(config.encoder, read_weights(config.encoder))
    sets: dict[int, dict[int, dict[str, Tensor]]] = {}

    def set_aside(progress: FitProgress, decoder: Decoder) -> None:
        if progress.step % _PASSES_OF_A_SET == 0:
            sets.setdefault(progress.step, {})[progress.level] = copy.deepcopy(decoder.state())
            print(progress, flush=True)

    start = time.process_time()
    features = encode(encoder, _training_images(data_set, category, config))
    fitted = fit_detector(features, config, category_seed(config.seed, category), FitContext(set_aside))
    seconds = time.process_time() - start
    passes = {step: _figures(data_set, category, encoder, _with(fitted, states)) for step, states in sets.items()}
    last = passes[max(passes)]
    return {
        "fit_cpu_seconds": round(seconds, 1),
        "training_images": len(features),
        "last pass, our score": _our_figures(data_set, category, encoder, fitted),
        "last pass, paper's score": last,
        "best pass on the test set, each metric its own (for comparison only)": {
            name: max(figures[name] for figures in passes.values()) for name in last
        },
        "by pass": passes,
    }


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("category")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="wheel")
    parser.add_argument("--strides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def _training_images(data_set: DataSet, category: str, config: DetectorConfig) -> Iterator[tuple[Tensor, Layout]]:
    for _, image in load_images(data_set.root, data_set.normals(category), config.input):
        if isinstance(image, PreparedImage):
            yield torch.from_numpy(image.pixels_3HW), Layout.of(config.size, config.input)


def _with(fitted: Fitted, states: dict[int, dict[str, Tensor]]) -> Fitted:
    decoders = []
    for level, decoder in enumerate(fitted.decoders):
        earlier = Decoder(decoder.channels, decoder.config)
        earlier.load_state(states[level])
        decoders.append(earlier.requires_grad_(False))
    return Fitted(fitted.config, tuple(decoders), Calibration(fitted.calibration.peaks, ()))


def _figures(data_set: DataSet, category: str, encoder: Encoder, fitted: Fitted) -> dict[str, float]:
    paper = paper_figures(data_set, category, encoder, fitted.detector())
    return {"image_auroc": paper.image_auroc, "pixel_auroc": paper.pixel_auroc or float("nan")}


def _our_figures(data_set: DataSet, category: str, encoder: Encoder, fitted: Fitted) -> dict[str, float | None]:
    detector = fitted.detector()
    bank = DetectorBank[str](lambda _: detector, lambda *_: encoder)
    findings = LabelledFindings(data_set.root)
    for sample, image in load_images(data_set.root, data_set.of(category, TEST), detector.config.input):
        if isinstance(image, PreparedImage):
            (finding,) = bank.score_batch([image.pixels_3HW], [category])
            findings.add(sample, finding.score, finding.map_HW, image.window)
    return findings.metrics().as_dict()


if __name__ == "__main__":
    main()
