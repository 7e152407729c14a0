"""The export of a version as a file for other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cflow_ray import __version__
from cflow_ray.config import ExportConfig
from cflow_ray.errors import ConfigError
from cflow_ray.model.export import PACKAGES, export_onnx
from cflow_ray.model.extras import check_installed
from cflow_ray.model.onnx_graph import OPSET
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage, write_file


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far its scores are from torch's."""

    category: str
    version: str
    file: str
    format: str
    opset: int
    bytes: int
    input_size: tuple[int, int]
    threshold: float | None
    """An image is anomalous above it; None where the calibration cannot keep the target."""
    difference: float
    """Largest difference of a map or score from torch's on the images of the check."""


def export_version(config: ExportConfig) -> Exported:
    """Write a version, the best one unless another is named, as one ONNX file; its properties hold the thresholds.

    Raises ConfigError where the extra is not installed or the version scores in tiles, CheckpointError where the file's
    scores differ from torch's; nothing is written then.
    """
    check_installed("an export", PACKAGES, "onnx")
    registry = Registry(Storage(config.registry, config.storage_options))
    category = config.category
    version = registry.resolve(category, config.version) if config.version else registry.best(category)
    manifest = registry.manifest(category, version)
    if manifest.detector.tiling is not None:
        raise ConfigError(
            f"{version} of {category!r} scores in tiles, which one graph cannot; fit without `tiling` to export."
        )
    encoder = registry.encoder(manifest.detector.encoder, manifest.encoder_digest)
    properties = onnx_properties(manifest)
    exported = export_onnx(encoder, registry.detector(category, version), properties)
    write_file(config.output, exported.content, config.storage_options)
    return Exported(
        category=category,
        version=version,
        file=config.output,
        format=config.format,
        opset=OPSET,
        bytes=len(exported.content),
        input_size=manifest.detector.size,
        threshold=_threshold(manifest),
        difference=exported.difference,
    )


def onnx_properties(manifest: Manifest) -> dict[str, str]:
    """What a program needs besides the graph, as ONNX keeps it: names as they are, all else as JSON.

    `input_size` is height and width, to which `crop` (the share of both sides kept by a centre crop) is resized with
    Pillow's filter `resampling`. An image is anomalous where its score exceeds `threshold` (null where the calibration
    cannot keep `target_fpr`); its p-value is (1 + calibration scores not below its own) / (1 + calibration scores).
    """
    detector = manifest.detector
    names = {
        "category": manifest.category,
        "version": manifest.version,
        "encoder": detector.encoder.name,
        "encoder_digest": manifest.encoder_digest,
        "resampling": detector.resampling,
        "cflow_ray_version": __version__,
    }
    values = {
        "input_size": detector.size,
        "crop": detector.crop,
        "threshold": _threshold(manifest),
        "target_fpr": detector.target_fpr,
        "calibration_scores": manifest.calibration_scores,
        "peaks": manifest.peaks,
    }
    return names | {name: json.dumps(value) for name, value in values.items()}


def _threshold(manifest: Manifest) -> float | None:
    calibration = Calibration.of(manifest.peaks, manifest.calibration_scores)
    return calibration.threshold(manifest.detector.target_fpr)
