"""Versions of detectors that are never run, and copies of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Generator

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry


def add_untried_version(
    registry: Registry,
    category: str,
    *,
    input_size: int = 64,
    target_fpr: float,
    scores: Sequence[float],
    peaks: Sequence[float] = (0.0,),
) -> str:
    """A new version, not promoted, with these calibration scores and peaks; returns its name."""
    config = DetectorConfig(
        encoder=EncoderConfig(name="resnet18", strides=(8,)),
        flow=FlowConfig(blocks=2, condition_channels=4),
        input_size=input_size,
        target_fpr=target_fpr,
    )
    decoder = Decoder(2, config.flow, Generator().manual_seed(0))

    def manifest(version: str) -> Manifest:
        return Manifest(
            category=category,
            version=version,
            detector=config,
            encoder_digest="",
            channels=(2,),
            peaks=tuple(peaks),
            calibration_scores=tuple(sorted(scores)),
        )

    return registry.add(category, Fitted(config, (decoder,), Calibration.of(peaks, scores)), manifest)


def copy_version(registry: Path, source: str, target: str) -> Path:
    """A finished version, `category/version`, under another name, which its manifest says too; it is not promoted."""
    shutil.copytree(registry / source, registry / target)
    category, version = target.split("/")
    manifest = registry / target / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"category": category, "version": version}))
    return registry / target
