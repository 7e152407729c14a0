"""The import of another program's checkpoint into a registry: decoders, encoder weights, and what decides its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cflow_ray.config import DetectorConfig, ImportConfig
from cflow_ray.errors import CheckpointError, ConfigError
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.foreign import ForeignCheckpoint, of_later_freia, parse_foreign
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry, check_category_name
from cflow_ray.store.storage import Storage, read_file

_FREIA_IS_UNKNOWN = (
    "the file does not say which FrEIA it was trained with; 0.2 is taken, as the official code asks for. "
    "If it was FrEIA's code since 17 August 2023, import with --later-freia."
)


@dataclass(frozen=True)
class Imported:
    """A version that was imported and has to be calibrated before it can score."""

    category: str
    version: str
    program: str
    """`official` or `anomalib`."""
    encoder: str
    input_size: tuple[int, int]
    channels: tuple[int, ...]
    notes: tuple[str, ...]
    """What the file leaves open and how it was taken."""


def import_checkpoint(config: ImportConfig) -> Imported:
    """Write a foreign checkpoint as a new version, which is not promoted, and its encoder's weights.

    Raises CheckpointError where the file cannot be used as it is, ConfigError where the settings do not fit it;
    nothing is written then.
    """
    check_category_name(config.category)
    foreign = parse_foreign(read_file(config.file, config.storage_options), config.file)
    if config.later_freia:
        if foreign.program != "official":
            raise ConfigError(f"{config.file} is anomalib's, which has a FrEIA of its own; leave --later-freia out.")
        foreign = of_later_freia(foreign)
    detector = config.resolved(foreign.assumed, {**foreign.named, "flow": foreign.flow.model_dump()})
    _check_fit(foreign, detector, config.file)
    registry = Registry.create(Storage(config.registry, config.storage_options))
    encoder_digest = registry.add_encoder(foreign.encoder)

    def describe(version: str) -> Manifest:
        return Manifest(
            category=config.category,
            version=version,
            detector=detector,
            encoder_digest=encoder_digest,
            channels=foreign.channels,
            peaks=(),
            calibration_scores=(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            origin=f"{foreign.program} checkpoint {config.file}",
        )

    version = registry.add(config.category, _fitted(foreign, detector), describe)
    return Imported(
        category=config.category,
        version=version,
        program=foreign.program,
        encoder=detector.encoder.name,
        input_size=detector.size,
        channels=foreign.channels,
        notes=tuple(_notes(foreign, config)),
    )


def _fitted(foreign: ForeignCheckpoint, detector: DetectorConfig) -> Fitted:
    decoders = tuple(Decoder(channels, detector.flow) for channels in foreign.channels)
    for decoder, state in zip(decoders, foreign.decoders, strict=True):
        decoder.load_state(state)
    return Fitted(detector, decoders, Calibration((), ()))


def _check_fit(foreign: ForeignCheckpoint, detector: DetectorConfig, file: str) -> None:
    """The settings go with what the file holds: its flow, its network, the channels of the levels, a size it takes."""
    name = detector.encoder.name
    if detector.flow != foreign.flow or detector.region is not None:
        raise ConfigError("flow and region cannot be set for an import; leave them out of `detector`.")
    try:
        encoder = Encoder(detector.encoder, foreign.encoder)
    except CheckpointError as error:
        raise CheckpointError(
            f"the encoder in {file} is no {name}: {error} Name the network with --encoder."
        ) from error
    if encoder.channels != foreign.channels:
        raise CheckpointError(
            f"the decoders in {file} have {_listed(foreign.channels)} channels, the levels of {name} have "
            f"{_listed(encoder.channels)}; name the network with --encoder."
        )
    encoder.check_size(detector.size)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _notes(foreign: ForeignCheckpoint, config: ImportConfig) -> Iterator[str]:
    for setting, value in _leaves(foreign.assumed):
        if not _is_given(setting, config.detector):
            yield f"the file does not name {'.'.join(setting)}; {value} is taken, the default of the program it is from"
    if foreign.program == "official" and not config.later_freia:
        yield _FREIA_IS_UNKNOWN


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _is_given(setting: tuple[str, ...], tree: Any) -> bool:
    for name in setting:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
