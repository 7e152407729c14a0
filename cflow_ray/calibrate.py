"""The calibration of a version from normal images: for weights that were imported, or that meet new normals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cflow_ray.config import CalibrateConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.normals import CategoryImages
from cflow_ray.data.samples import DataSet, Sample
from cflow_ray.data.scratch import FeatureCache
from cflow_ray.errors import CheckpointError, DataError
from cflow_ray.model.calibration import calibrated
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.partition import SMALLEST_CATEGORY
from cflow_ray.model.runtime_choice import fast_encoder
from cflow_ray.model.seeds import category_seed
from cflow_ray.store.manifest import Manifest, installed_packages
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

Watch = Callable[[int, int], None]
"""Told how many images are read, of how many."""


@dataclass(frozen=True)
class Recalibrated:
    """A promoted version with the weights of an earlier one and a calibration of its own."""

    category: str
    version: str
    calibrated: str
    """The version whose weights it has."""
    images: int
    smallest_target: float
    """The smallest false-alarm rate that can be promised."""
    target_fpr: float
    threshold: float | None
    notes: tuple[str, ...]


def calibrate(config: CalibrateConfig, watch: Watch = lambda done, total: None) -> Recalibrated:
    """Give a version peaks and calibration scores from the category's normal training images, and promote the result.

    The images should be new to the weights: scores of images that the weights were fitted on are too low, and so are
    the p-values they make. Raises DataError below 8 readable images.
    """
    registry = Registry(Storage(config.registry, config.storage_options))
    version = _version(registry, config)
    manifest = registry.manifest(config.category, version)
    data = read_data_set(config.model_copy(update={"only": (config.category,)}), config.storage_options)
    data.chosen([config.category])
    images = CategoryImages(data.root, manifest.detector)
    fitted = _calibrated(registry, manifest, images, data.normals(config.category), config, watch)
    described = manifest.model_copy(
        update={
            "peaks": fitted.calibration.peaks,
            "calibration_scores": fitted.calibration.scores,
            "nll": fitted.nll,
            "metrics": {},  # they were the old calibration's
            "data_digest": "",  # so that no fit takes it for its own
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": f"{version} calibrated on {config.data}",
            "packages": installed_packages(),
        }
    )
    name = registry.add(config.category, fitted, lambda version: described.model_copy(update={"version": version}))
    registry.promote(config.category, name)
    target = manifest.detector.target_fpr
    return Recalibrated(
        category=config.category,
        version=name,
        calibrated=version,
        images=len(data.normals(config.category)) - len(images.unreadable),
        smallest_target=fitted.calibration.smallest_target,
        target_fpr=target,
        threshold=fitted.calibration.threshold(target),
        notes=(*images.unreadable.values(), fitted.calibration.support(target), *_familiar(manifest, data)),
    )


def _version(registry: Registry, config: CalibrateConfig) -> str:
    """The version asked for, else the newest where that awaits calibration or none is promoted, else the promoted one."""
    if config.version is not None:
        return registry.resolve(config.category, config.version)
    versions = registry.versions(config.category)
    if not versions:
        raise CheckpointError(
            f"no version of {config.category!r} in {config.registry}. "
            f"Run: cflow-ray models import FILE --registry {config.registry} --category {config.category}"
        )
    newest, promoted = versions[-1], registry.pointer_if_there(config.category)
    if promoted is None or not registry.manifest(config.category, newest).is_calibrated:
        return newest
    return promoted.version


def _familiar(manifest: Manifest, data: DataSet) -> tuple[str, ...]:
    """Whether the weights were fitted on these very images, as far as the manifest knows."""
    fitted_on = manifest.weights_data_digest
    if not fitted_on or fitted_on != data.digest(manifest.category, data.root.sizes()):
        return ()
    return (
        "the weights were fitted on these images, so new ones will score higher; calibrate on images of their own.",
    )


def _calibrated(
    registry: Registry,
    manifest: Manifest,
    images: CategoryImages,
    normals: list[Sample],
    config: CalibrateConfig,
    watch: Watch,
) -> Fitted:
    if len(normals) < SMALLEST_CATEGORY:
        raise DataError(
            f"{len(normals)} normal training images of {config.category!r} in {config.data}; at least "
            f"{SMALLEST_CATEGORY} are needed to calibrate."
        )
    encoder = registry.encoder(manifest.detector.encoder, manifest.encoder_digest)
    model = registry.add_encoder_model(encoder, manifest.encoder_digest, manifest.detector.size)
    keep = FeatureCache(config.cache_mb * 2**20).keep
    fitted = registry.fitted(config.category, manifest.version)
    with fast_encoder(encoder, model, manifest.detector.size) as fast:
        features = images.encoded(_watched(normals, watch), fast, lambda image_3HW: (), keep, fitted.region_HW)
    seed = category_seed(config.seed, config.category)
    return calibrated(fitted, features, seed)


def _watched(samples: list[Sample], watch: Watch) -> Iterator[Sample]:
    for number, sample in enumerate(samples, start=1):
        yield sample
        watch(number, len(samples))
