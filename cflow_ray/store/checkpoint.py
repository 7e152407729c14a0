"""One detector as a directory: weights in safetensors, everything else in `manifest.json`; written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Self

import safetensors
import safetensors.torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from cflow_ray import __version__
from cflow_ray.config import DetectorConfig, Model
from cflow_ray.errors import CheckpointError
from cflow_ray.model.detector import Detector
from cflow_ray.model.flow import FREIA_VERSION, Decoder
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 1
_WEIGHTS = "decoders.safetensors"
_MANIFEST = "manifest.json"


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
    """Log-likelihood per dimension of each level's peak, in nats."""
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
    fit_seconds: float = 0.0
    packages: dict[str, str] = Field(default_factory=installed_packages)

    @model_validator(mode="after")
    def _one_of_each_per_level(self) -> Self:
        levels = len(self.detector.encoder.strides)
        if not levels == len(self.channels) == len(self.peaks):
            raise ValueError(f"{levels} strides, {len(self.channels)} channels and {len(self.peaks)} peaks")
        return self


def save_checkpoint(storage: Storage, detector: Detector, manifest: Manifest, attachments: Mapping[str, bytes]) -> None:
    """Write a checkpoint into an empty directory; the manifest comes last, so what lacks one is no checkpoint.

    `attachments` are files for people that scoring does not need, by name.
    """
    state = {
        f"level{level}.{name}": tensor.contiguous()
        for level, decoder in enumerate(detector.decoders)
        for name, tensor in decoder.state().items()  # type: ignore[operator]
    }
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


def load_checkpoint(storage: Storage, manifest: Manifest | None = None) -> Detector:
    """The detector of a checkpoint; raises CheckpointError where weights and manifest do not fit each other."""
    manifest = manifest or read_manifest(storage)
    try:
        state = safetensors.torch.load(storage.read(_WEIGHTS))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{storage.join(_WEIGHTS)} is damaged: {error}. Promote another version.") from error
    decoders = [Decoder(channels, manifest.detector.flow) for channels in manifest.channels]
    try:
        for level, decoder in enumerate(decoders):
            decoder.load_state(_level_state(state, level))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{storage.join(_WEIGHTS)} does not fit its manifest: {reason}") from error
    calibration = Calibration.of(manifest.peaks, manifest.calibration_scores)
    return Detector(manifest.detector, decoders, calibration, manifest.encoder_digest)


def _level_state(state: dict[str, Tensor], level: int) -> dict[str, Tensor]:
    prefix = f"level{level}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
