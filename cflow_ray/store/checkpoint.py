"""One detector as a directory: weights in safetensors, everything else in its manifest; written once."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cflow_ray.errors import CheckpointError
from cflow_ray.model.detector import Detector
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.parameters import state_shapes
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.manifest import FREIA_VERSION, Manifest, read_manifest, write_manifest
from cflow_ray.store.storage import Storage

_WEIGHTS = "decoders.safetensors"
_REGION = "region"


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
    write_manifest(storage, manifest)


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
