"""A checkpoint's manifest: all of it but its weights. Reading one needs no torch."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from cflow_ray import __version__
from cflow_ray.config import DetectorConfig, Model
from cflow_ray.errors import CheckpointError
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 1
FREIA_VERSION = "0.2"
"""The release whose likelihoods our checkpoints hold; FrEIA's git head computes others from the same weights."""
_MANIFEST = "manifest.json"


def installed_packages() -> dict[str, str]:
    """Versions of the packages that decide a score."""
    names = ("torch", "timm", "FrEIA", "numpy", "pillow")
    found = {"cflow_ray": __version__} | {name: version(name) for name in names}
    for optional in ("onnxruntime", "openvino"):
        with suppress(PackageNotFoundError):
            found[optional] = version(optional)
    return found


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
    """Ascending scores of normal images that did not train; of folds, brought to the level of the kept model."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Metrics on the labelled test images, none of which has chosen anything."""
    nll: tuple[float, ...] = ()
    """Held-out negative log-likelihood per dimension of each level, in nats."""
    training_images: int = 0
    seed: int = 0
    """The category's own seed, derived from the run's."""
    data_digest: str = ""
    """Of all that a fit made weights and calibration from: images, encoder's weights, region; empty where none did."""
    weights_data_digest: str = ""
    """Of the images alone that the weights were fitted on; empty where not known."""
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


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint, which counts from then on."""
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
