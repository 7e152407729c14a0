"""A detector with its encoder as one ONNX model, checked against torch before it is handed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cflow_ray.errors import CheckpointError, ConfigError
from cflow_ray.model.detector import Detector
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.extras import imported
from cflow_ray.model.graph import FindingGraph
from cflow_ray.model.onnx_graph import onnx_model
from cflow_ray.model.region import covered
from cflow_ray.model.tiling import Layout

# Shapes: B images, L levels of h x w locations, H x W pixels of the network's input.

INPUT = "image"
OUTPUTS = ("map", "score")
PACKAGES = ("onnx", "onnxruntime")
"""What an export needs; the extra `onnx` brings it."""

_BOUND = 1e-4  # of maps and scores, and of log-likelihoods as a share of themselves above 1 nat


@dataclass(frozen=True)
class OnnxDetector:
    """A serialised ONNX model: `image` uint8 (B, 3, H, W) to `map` (B, H, W) and `score` (B,), float32."""

    content: bytes
    difference: float
    """Largest difference of a map or score from torch's on the images of the check."""


def export_onnx(encoder: Encoder, detector: Detector, properties: Mapping[str, str]) -> OnnxDetector:
    """The model of a detector with `properties` as its metadata; the batch is free, H x W is the input size.

    Level weights, smoothing, region of interest and top fraction are inside. onnxruntime has to give torch's maps and
    scores within 1e-4, and its log-likelihoods too, as maps are 1 wherever an image is like no normal one. Raises
    CheckpointError where it does not, ConfigError for a detector that scores in tiles or cannot be exported.
    """
    onnx = imported("onnx")

    if detector.config.tiling is not None:
        raise ConfigError("a detector that scores in tiles is no single graph; fit without tiling to export.")
    images = _images_of_check(detector.config.size)
    likelihoods = tuple(f"likelihood_{level}" for level in range(detector.config.encoder.levels))
    expected = _by_torch(encoder, detector, images)
    sizes = tuple((level.shape[1], level.shape[2]) for level in expected[2:])
    graph = FindingGraph(encoder, detector, sizes)
    try:
        model = onnx.load_from_string(onnx_model(graph, [images[:2]], [INPUT], [*OUTPUTS, *likelihoods], dynamic=True))
    except Exception as error:  # the exporter raises what it likes
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{detector.config.encoder.name} cannot be exported: {reason}") from error
    onnx.helper.set_model_props(model, dict(properties))
    for dimension, side in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], detector.config.size, strict=True):
        dimension.dim_value = side  # the exporter loses track of it
    _check(model.SerializeToString(), images, expected)
    del model.graph.output[len(OUTPUTS) :]
    content: bytes = model.SerializeToString()
    return OnnxDetector(content, _check(content, images, expected[: len(OUTPUTS)]))


def _images_of_check(size: tuple[int, int]) -> Tensor:
    """Five images (5, 3, H, W), the same for all detectors: coarse to fine structures drawn at random."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(1, 3, side, side, generator=generator) for side in (2, 4, 8, 16, 64)]
    resized = [functional.interpolate(image, size, mode="bilinear", align_corners=True) for image in drawn]
    return (255 * torch.cat(resized)).round().byte()


@torch.no_grad()
def _by_torch(encoder: Encoder, detector: Detector, images: Tensor) -> list[Tensor]:
    """Maps (B, H, W), scores (B,) and every level's log-likelihoods (B, h, w)."""
    pyramid = encoder(covered(images, detector.region_HW))
    layout = Layout.of(detector.config.size, detector.config.input)
    maps_BHW = torch.stack([detector.whole(map_HW[None], layout) for map_HW in detector.maps(pyramid)])
    scores_B = torch.tensor([detector.score(map_HW) for map_HW in maps_BHW])
    return [maps_BHW, scores_B, *detector.likelihoods(pyramid)]


def _check(content: bytes, images: Tensor, expected: Sequence[Tensor]) -> float:
    """Largest difference of maps and scores, in a batch and alone; raises CheckpointError beyond the bound."""
    onnxruntime = imported("onnxruntime")

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (slice(0, len(images)), slice(0, 1)):
        found = session.run(None, {INPUT: images[batch].numpy()})
        differences = [_difference(one, level[batch].numpy()) for one, level in zip(found, expected, strict=True)]
        worst = float(np.max(differences))  # of which any may be NaN
        if not worst <= _BOUND:
            raise CheckpointError(
                f"onnxruntime gives other values than torch, by {worst:.0e} where {_BOUND:.0e} is allowed; nothing was "
                "written. Please report the encoder."
            )
        largest = max(largest, *differences[: len(OUTPUTS)])
    return largest


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
