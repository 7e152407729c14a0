"""Fixtures of the store's tests: an empty tree on every kind of storage, and detectors small enough to write by the dozen."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

CHANNELS = (6, 5)

MakeFitted = Callable[..., Fitted]
Describe = Callable[..., Callable[[str], Manifest]]
AddVersions = Callable[..., list[str]]
AddScoringVersion = Callable[..., tuple[str, Fitted]]


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """An empty tree: a local folder and, with the same test, fsspec's memory."""
    if request.param == "local":
        yield Storage(str(tmp_path / "tree"))
        return
    tree = Storage(f"memory://{uuid.uuid4().hex}/tree")
    yield tree
    for path in tree.files():
        tree.remove(path)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    """An empty local tree."""
    return Storage(str(tmp_path / "local"))


@pytest.fixture
def registry(storage: Storage) -> Registry:
    """An empty registry on every kind of storage."""
    return Registry.create(storage)


@pytest.fixture
def make_fitted() -> MakeFitted:
    """Drawn decoders of 6 and 5 channels, for a network that nobody loads, as a fit would give them.

    Where the configuration names a region of interest it is drawn, too.
    """

    def make(seed: int = 0, scores: Sequence[float] = (0.1, 0.2, 0.3, 0.4), **changes: Any) -> Fitted:
        generator = torch.Generator().manual_seed(seed)
        encoder = EncoderConfig(name="resnet18", strides=(8, 16))
        flow = FlowConfig(blocks=2, condition_channels=8)
        config = DetectorConfig(**{"encoder": encoder, "flow": flow, "input_size": 64} | changes)
        decoders = tuple(Decoder(channels, config.flow, generator) for channels in CHANNELS)
        peaks = torch.randn(len(CHANNELS), generator=generator, dtype=torch.float64).tolist()
        region_HW = None if config.region is None else torch.rand(config.size, generator=generator) < 0.5
        return Fitted(config, decoders, Calibration.of(peaks, scores), region_HW)

    return make


@pytest.fixture
def describe() -> Describe:
    """How a fit's manifest is made once its version is known."""

    def describe_fitted(
        fitted: Fitted, category: str = "screw", encoder_digest: str = "none"
    ) -> Callable[[str], Manifest]:
        return lambda version: Manifest(
            category=category,
            version=version,
            detector=fitted.config,
            encoder_digest=encoder_digest,
            channels=CHANNELS,
            peaks=fitted.calibration.peaks,
            calibration_scores=fitted.calibration.scores,
            metrics={"image_auroc": 0.875, "pixel_auroc": None},
        )

    return describe_fitted


@pytest.fixture
def add_scoring_version(describe: Describe) -> AddScoringVersion:
    """Adds a version of screw for 64 x 64 pixels behind an encoder, whose weights it keeps; gives its name and decoders."""

    def add(registry: Registry, encoder: Encoder, state: Mapping[str, Tensor]) -> tuple[str, Fitted]:
        flow = FlowConfig(blocks=2, condition_channels=8)
        decoders = tuple(Decoder(C, flow, torch.Generator().manual_seed(C)) for C in encoder.channels)
        digest = registry.add_encoder(state)
        config = DetectorConfig(encoder=encoder.config, flow=flow, input_size=64)
        fitted = Fitted(config, decoders, Calibration.of([-1.0, -1.0], [0.5]))

        def manifest(version: str) -> Manifest:
            given = describe(fitted, encoder_digest=digest)(version).model_dump()
            return Manifest.model_validate(given | {"channels": encoder.channels})

        return registry.add("screw", fitted, manifest), fitted

    return add


@pytest.fixture
def add_versions(registry: Registry, make_fitted: MakeFitted, describe: Describe) -> AddVersions:
    """Adds versions of a category to the registry, none of them promoted; returns their names."""

    def add(category: str = "screw", count: int = 1) -> list[str]:
        made = [make_fitted(seed) for seed in range(count)]
        return [registry.add(category, fitted, describe(fitted)) for fitted in made]

    return add
