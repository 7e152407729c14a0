"""One detector as a directory: weights in safetensors, everything else in `manifest.json`; written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from cflow_ray import __version__
from cflow_ray.config import DetectorConfig, Model
from cflow_ray.errors import CheckpointError
from cflow_ray.model.detector import Detector
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.parameters import FREIA_VERSION, state_shapes
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 1
_WEIGHTS = "decoders.safetensors"
_MANIFEST = "manifest.json"
_REGION = "region"


def installed_packages() -> dict[str, str]:
    """Versions of the packages that decide a score."""
    names = ("torch", "timm", "FrEIA", "numpy", "pillow")
    return {"cflow_ray": __version__} | {name: version(name) for name in names}


class Manifest(Model):
    """All of a checkpoint but its weights."""

    format_version: int = FORMAT_VERSION
    category: str
    version: str
    detector: DetectorConfig
    encoder_digest: str
    """SHA-256 of the encoder's weights, under which the registry holds them."""
    channels: tuple[int, ...]
    """Channels of the encoder's levels."""
    freia_version: str = FREIA_VERSION
    peaks: tuple[float, ...]
    """Log-likelihood per dimension of each level's peak, in nats; empty before the calibration of imported weights."""
    calibration_scores: tuple[float, ...]
    """Ascending scores of normal images that chose nothing."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Metrics on the labelled test images, last step, no test image having chosen anything."""
    nll: tuple[float, ...] = ()
    """Held-out negative log-likelihood per dimension of each level, in nats."""
    training_images: int = 0
    seed: int = 0
    """The category's own seed, derived from the run's."""
    data_digest: str = ""
    created: str = ""
    origin: str = ""
    """Where weights or calibration come from that no fit of this registry made: a file, or an earlier version."""
    fit_seconds: float = 0.0
    packages: dict[str, str] = Field(default_factory=installed_packages)

    @model_validator(mode="after")
    def _one_of_each_per_level(self) -> Self:
        levels = self.detector.encoder.levels
        if len(self.channels) != levels or len(self.peaks) not in (0, levels):
            raise ValueError(f"{levels} levels, {len(self.channels)} channels and {len(self.peaks)} peaks")
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether this version can score; imported weights cannot before `models calibrate`."""
        return bool(self.peaks)


def save_checkpoint(storage: Storage, fitted: Fitted, manifest: Manifest, attachments: Mapping[str, bytes]) -> None:
    """Write a checkpoint into an empty directory; the manifest comes last, so what lacks one is no checkpoint.

    `attachments` are files for people that scoring does not need, by name.
    """
    state = {
        f"level{level}.{name}": tensor.contiguous()
        for level, decoder in enumerate(fitted.decoders)
        for name, tensor in decoder.state(fitted.config.dtype).items()
    }
    if fitted.region_HW is not None:
        state[_REGION] = fitted.region_HW.to(torch.uint8).contiguous()
    storage.write(_WEIGHTS, safetensors.torch.save(state, metadata={"freia": FREIA_VERSION}))
    for name, content in attachments.items():
        storage.write(name, content)
    storage.write(_MANIFEST, manifest.model_dump_json(indent=2).encode())


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of a checkpoint; raises CheckpointError where it is of another format or does not parse."""
    try:
        content: dict[str, Any] = json.loads(storage.read(_MANIFEST))
        check_format(content.get("format_version"), storage.join(_MANIFEST))
        manifest = Manifest.model_validate(content)
    except (ValueError, AttributeError) as error:
        where = storage.join(_MANIFEST)
        raise CheckpointError(f"{where} is damaged ({describe_damage(error)}); promote another version.") from error
    if manifest.freia_version != FREIA_VERSION:
        raise CheckpointError(
            f"{storage.uri} was fitted with FrEIA {manifest.freia_version}, whose likelihoods differ from those of "
            f"{FREIA_VERSION} here; fit it again."
        )
    return manifest


def describe_damage(error: Exception) -> str:
    """On one line, why a JSON file is not what it should be."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return str(error)


def check_format(given: object, where: str) -> None:
    """Refuse another format version than the one this release writes."""
    if given != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format version {given!r}; this release reads {FORMAT_VERSION}. Install a matching cflow-ray."
        )


def load_checkpoint(storage: Storage) -> Detector:
    """The detector of a checkpoint, read and folded without building FrEIA's modules.

    Raises CheckpointError where weights and manifest do not fit each other, or the version is not calibrated yet.
    """
    manifest = read_manifest(storage)
    if not manifest.is_calibrated:
        raise CheckpointError(
            f"{storage.uri} holds imported weights without calibration. "
            f"Run: cflow-ray models calibrate {manifest.category} {manifest.version} --data ... --registry ..."
        )
    states, region_HW = _read_states(storage, manifest)
    flow = manifest.detector.flow
    decoders = [FoldedDecoder(channels, flow, state) for channels, state in zip(manifest.channels, states, strict=True)]
    calibration = Calibration.of(manifest.peaks, manifest.calibration_scores)
    return Detector(manifest.detector, decoders, calibration, manifest.encoder_digest, region_HW)


def load_fitted(storage: Storage) -> Fitted:
    """FrEIA's decoders of a checkpoint, calibrated or not; for what goes on from the weights, not for scoring."""
    from cflow_ray.model.flow import Decoder  # noqa: PLC0415  # with FrEIA, which scoring does without

    manifest = read_manifest(storage)
    states, region_HW = _read_states(storage, manifest)
    decoders = tuple(Decoder(channels, manifest.detector.flow) for channels in manifest.channels)
    for decoder, state in zip(decoders, states, strict=True):
        decoder.load_state(state)
    calibration = Calibration.of(manifest.peaks, manifest.calibration_scores)
    return Fitted(manifest.detector, decoders, calibration, region_HW)


def _read_states(storage: Storage, manifest: Manifest) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    """Every level's decoder state, checked against the manifest, and the region of interest."""
    where = storage.join(_WEIGHTS)
    try:
        stored = safetensors.torch.load(storage.read(_WEIGHTS))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{where} is damaged: {error}. Promote another version.") from error
    needed = {
        f"level{level}.{name}": shape
        for level, channels in enumerate(manifest.channels)
        for name, shape in state_shapes(channels, manifest.detector.flow).items()
    }
    if manifest.detector.region is not None:
        needed[_REGION] = manifest.detector.size
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    wrong = sorted({*needed.items()} ^ {*found.items()})
    if wrong:
        name = wrong[0][0]
        raise CheckpointError(
            f"{where} does not fit its manifest: {name} is {found.get(name, 'missing')}, the manifest asks for "
            f"{needed.get(name, 'no such tensor')}; promote another version."
        )
    region_HW = stored.pop(_REGION, None)
    return _by_level(stored, len(manifest.channels)), None if region_HW is None else region_HW.bool()


def _by_level(state: Mapping[str, Tensor], levels: int) -> list[dict[str, Tensor]]:
    prefixes = [f"level{level}." for level in range(levels)]
    return [
        {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]
