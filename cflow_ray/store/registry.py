"""The registry: every version of every category's checkpoint, and one small pointer a category to the best.

Whoever only asks which versions there are, and what their manifests say, does without torch: 3 CPU-seconds and 400 MB that
come with the first weights.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cflow_ray.config import DetectorConfig, EncoderConfig, Model, Runtime
from cflow_ray.errors import CheckpointError, StorageError
from cflow_ray.store.manifest import FORMAT_VERSION, Manifest, check_format, describe_damage, read_manifest
from cflow_ray.store.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

    from cflow_ray.model.bank import DetectorBank
    from cflow_ray.model.detector import Detector
    from cflow_ray.model.encoder import Encoder
    from cflow_ray.model.encoder_model import EncoderModel
    from cflow_ray.model.fitted import Fitted
    from cflow_ray.store.encoders import EncoderStore

log = logging.getLogger(__name__)

_ROOT = "registry.json"
_POINTER = "best.json"
_ENCODERS = "_encoders"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")


class Pointer(Model):
    """Which version of a category is best now, and which were before, latest last."""

    format_version: int = FORMAT_VERSION
    version: str
    history: tuple[str, ...] = ()
    promoted: str = ""


CheckpointKey = tuple[str, str]
"""A category and the full name of a version."""


@dataclass(frozen=True)
class Version:
    """One finished checkpoint as a listing shows it."""

    category: str
    version: str
    promoted: bool
    manifest: Manifest


class Registry:
    """`<root>/<category>/<version>/` for checkpoints, `<root>/<category>/best.json` for the pointer.

    Versions are named `v<number>-<random>`, so two writers never meet; a name may be given by its unambiguous start
    (`v3`). A version counts once its manifest is there. Encoder weights are kept once, under their digest.
    """

    def __init__(self, storage: Storage) -> None:
        """An existing registry; raises CheckpointError where there is none, or one of another format."""
        self.storage = storage
        content = storage.read_if_there(_ROOT)
        if content is None:
            raise CheckpointError(
                f"{storage.uri} is no registry (it has no {_ROOT}). Run: cflow-ray fit --registry {storage.uri} ..."
            )
        try:
            check_format(json.loads(content).get("format_version"), storage.join(_ROOT))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{storage.join(_ROOT)} is damaged: {error}") from error

    @classmethod
    def create(cls, storage: Storage) -> Registry:
        """The registry at a root, made if it is not there; fails before any work where the root cannot be written."""
        if storage.read_if_there(_ROOT) is None:
            storage.write(_ROOT, json.dumps({"format_version": FORMAT_VERSION}).encode())
        return cls(storage)

    @classmethod
    def if_there(cls, storage: Storage) -> Registry | None:
        """The registry at a root; None where there is none yet. A damaged one is a CheckpointError."""
        return cls(storage) if storage.is_file(_ROOT) else None

    def categories(self) -> list[str]:
        """Categories with a promoted checkpoint, sorted."""
        return [name for name in self.names() if self.storage.is_file(f"{name}/{_POINTER}")]

    def names(self) -> list[str]:
        """Categories with a folder, promoted or not, sorted: one listing."""
        return [name for name in self.storage.folders() if _NAME.fullmatch(name)]

    def versions(self, category: str) -> list[str]:
        """Finished versions of a category, oldest first."""
        found = [
            name for name in self.storage.folders(category) if self.storage.is_file(f"{category}/{name}/manifest.json")
        ]
        return sorted(found, key=_number)

    def best(self, category: str) -> str:
        """The promoted version; raises CheckpointError with the known categories where there is none."""
        return self.pointer(category).version

    def pointer(self, category: str) -> Pointer:
        """The pointer of a category."""
        pointer = self.pointer_if_there(category)
        if pointer is None:
            raise CheckpointError(self._why_none_is_promoted(category))
        return pointer

    def _why_none_is_promoted(self, category: str) -> str:
        if versions := self.versions(category) if _NAME.fullmatch(category) else []:
            return (
                f"no version of {category!r} is promoted; there are {', '.join(versions)}. Run: cflow-ray models promote "
                f"{category} VERSION, or, where it was imported, cflow-ray models calibrate {category}"
            )
        known = ", ".join(self.categories()) or "none"
        return (
            f"no checkpoint for {category!r}; the registry holds {known}. Run: cflow-ray fit ... --category {category}"
        )

    def pointer_if_there(self, category: str) -> Pointer | None:
        """The same; None where no version was promoted yet."""
        path = f"{category}/{_POINTER}"
        written = self.storage.read_if_there(path) if _NAME.fullmatch(category) else None
        if written is None:
            return None
        try:
            content = json.loads(written)
            check_format(content.get("format_version"), self.storage.join(path))
            return Pointer.model_validate(content)
        except (ValueError, AttributeError) as error:
            reason = describe_damage(error)
            raise CheckpointError(
                f"{self.storage.join(path)} is damaged: {reason}. Delete it, then promote."
            ) from error

    def resolve(self, category: str, version: str) -> str:
        """The full name of a version given by its start."""
        versions = self.versions(category)
        matches = [name for name in versions if name == version or name.startswith(f"{version}-")]
        if len(matches) != 1:
            found = "several versions" if matches else "no version"
            raise CheckpointError(f"{found} {version!r} of {category!r}; there are {', '.join(versions) or 'none'}.")
        return matches[0]

    def promote(self, category: str, version: str) -> Pointer:
        """Make a version the best; the pointer moves in one write. What was best goes into the history."""
        version = self.resolve(category, version)
        if not self.manifest(category, version).is_calibrated:
            raise CheckpointError(
                f"{version} of {category!r} is not calibrated and cannot score yet. "
                f"Run: cflow-ray models calibrate {category} {version} --data ... --registry {self.storage.uri}"
            )
        current = self.pointer_if_there(category)
        if current is not None and current.version == version:
            return current
        history = (*current.history, current.version) if current is not None else ()
        return self._move(category, Pointer(version=version, history=history, promoted=_now()))

    def rollback(self, category: str) -> Pointer:
        """Make the version that was best before the best again."""
        current = self.pointer(category)
        if not current.history:
            raise CheckpointError(
                f"{category!r} has no earlier version to go back to; its only one is {current.version}."
            )
        version = self.resolve(category, current.history[-1])
        return self._move(category, Pointer(version=version, history=current.history[:-1], promoted=_now()))

    def manifest(self, category: str, version: str) -> Manifest:
        """The manifest of a version."""
        return read_manifest(self._at(category, version))

    def detector(self, category: str, version: str) -> Detector:
        """The detector of a version."""
        from cflow_ray.store.checkpoint import load_checkpoint

        return load_checkpoint(self._at(category, version))

    def fitted(self, category: str, version: str) -> Fitted:
        """FrEIA's decoders of a version, calibrated or not."""
        from cflow_ray.store.checkpoint import load_fitted

        return load_fitted(self._at(category, version))

    def encoder(self, config: EncoderConfig, weights_digest: str) -> Encoder:
        """The encoder of a configuration with the stored weights of a digest; a mismatch is refused."""
        return self._encoders.encoder(config, weights_digest)

    def encoder_model(self, config: EncoderConfig, weights_digest: str, size: tuple[int, int]) -> EncoderModel | None:
        """The same encoder for one input size as a model, where `add_encoder_model` has kept one."""
        return self._encoders.model(config, weights_digest, size)

    def bank(
        self, capacity_bytes: int = 2 * 2**30, device: str = "cpu", runtime: Runtime = "torch"
    ) -> DetectorBank[CheckpointKey]:
        """A bank that loads detectors and encoders from here, keyed by (category, version).

        `runtime` takes as many threads as torch has now; raises ConfigError where it is not installed.
        """
        from cflow_ray.model.bank import DetectorBank
        from cflow_ray.model.runtime_choice import open_runtime

        opened = open_runtime(runtime, device)
        return DetectorBank(
            lambda key: self.detector(*key), self.encoder, capacity_bytes, device, opened, self.encoder_model
        )

    def add_encoder(self, state: Mapping[str, Tensor]) -> str:
        """Keep an encoder's weights; returns their digest."""
        return self._encoders.add(state)

    def add_encoder_model(self, encoder: Encoder, weights_digest: str, size: tuple[int, int]) -> EncoderModel | None:
        """Keep the model of an encoder for one input size, where it can be made and is not there yet; returns it.

        Who scores with onnxruntime or OpenVINO then starts in half the time and three quarters of the memory.
        """
        return self._encoders.add_model(encoder, weights_digest, size)

    def add(
        self,
        category: str,
        fitted: Fitted,
        describe: Callable[[str], Manifest],
        attachments: Mapping[str, bytes] | None = None,
    ) -> str:
        """Write a new version of a category and return its name; `describe` makes its manifest from that name."""
        from cflow_ray.store.checkpoint import save_checkpoint

        check_category_name(category)
        number = 1 + max((_number(name)[0] for name in self.storage.folders(category)), default=0)
        version = f"v{number}-{uuid.uuid4().hex[:6]}"
        save_checkpoint(self._at(category, version), fitted, describe(version), attachments or {})
        return version

    def finished(self, category: str, data_digest: str, detector: DetectorConfig) -> Manifest | None:
        """The newest version that was fitted from these data with this configuration; a damaged one does not count."""
        for version in reversed(self.versions(category)):
            try:
                manifest = self.manifest(category, version)
            except CheckpointError as error:
                log.warning("%s", error)
                continue
            if manifest.data_digest == data_digest and manifest.detector == detector:
                return manifest
        return None

    def listing(self) -> list[Version]:
        """Every finished version of every category, one without a promoted version too."""
        found = []
        for category in self.names():
            pointer = self.pointer_if_there(category)
            best = pointer.version if pointer else None
            for version in self.versions(category):
                found.append(Version(category, version, version == best, self.manifest(category, version)))
        return found

    @property
    def _encoders(self) -> EncoderStore:
        from cflow_ray.store.encoders import EncoderStore

        return EncoderStore(self.storage.child(_ENCODERS))

    def _at(self, category: str, version: str) -> Storage:
        return self.storage.child(f"{category}/{version}")

    def _move(self, category: str, pointer: Pointer) -> Pointer:
        self.storage.write(f"{category}/{_POINTER}", pointer.model_dump_json(indent=2).encode())
        return pointer


def check_category_name(category: str) -> None:
    """Refuse a name that cannot be a folder of the registry."""
    if not _NAME.fullmatch(category):
        raise StorageError(
            f"{category!r} cannot name a category: letters, digits, space, '.', '_' and '-' only, at most 100, "
            "starting with a letter or digit."
        )


def _number(version: str) -> tuple[int, str]:
    match = re.match(r"v(\d+)", version)
    return (int(match[1]) if match else 0), version


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
