"""What a fit will do before it does anything: which categories are due, in which order, and which are settled already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from cflow_ray.config import DetectorConfig, FitConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.samples import DataSet, spelled_alike
from cflow_ray.errors import CflowRayError, ConfigError, DataError
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.store.registry import Registry, check_category_name
from cflow_ray.store.storage import Storage, read_file
from cflow_ray.train.likelihood import likeliest, mean_nll
from cflow_ray.train.task import FitSite, FitTask, Outcome
from cflow_ray.train.work import work_of


@dataclass(frozen=True)
class FitPlan:
    """The work of one run."""

    site: FitSite
    due: tuple[FitTask, ...]
    """Longest first, so that the tail of the run is short."""
    settled: tuple[Outcome, ...] = ()
    """Categories that need no fit (`reused`) or cannot be fitted (`failed`)."""


def plan_fit(config: FitConfig) -> FitPlan:
    """Read the data set and the registry, if there is one yet; writes nothing.

    Raises DataError for unknown categories and where none can be fitted, ConfigError for names that only spelling tells
    apart. A category that cannot be fitted among others is an outcome of its own.
    """
    data_set = read_data_set(config, config.storage_options)
    wanted = data_set.chosen(config.chosen())
    if config.all:
        data_set.chosen(config.categories)  # overrides of a category that is not there are a slip of the pen
    registry = Registry.if_there(Storage(config.registry, config.storage_options))
    _refuse_overlapping([*wanted, *(registry.categories() if registry else ())])
    sizes, files = data_set.root.sizes(), _Files(config.storage_options)
    due: list[FitTask] = []
    settled: list[Outcome] = []
    for category in wanted:
        try:
            task = _task(data_set, category, config, sizes, files)
        except CflowRayError as error:
            settled.append(Outcome(category, "failed", error=str(error)))
            continue
        reused = _reused(registry, task) if registry and not config.force else None
        if reused is None:
            due.append(task)
        else:
            settled.append(reused)
    if not due and all(outcome.status == "failed" for outcome in settled):
        raise DataError("; ".join(f"{outcome.category}: {outcome.error}" for outcome in settled))
    return FitPlan(_site(data_set.root.uri, config), tuple(sorted(due, key=lambda task: -task.work)), tuple(settled))


def _refuse_overlapping(names: Iterable[str]) -> None:
    """Names that a person, a file system or a URL would take for one."""
    for first, second, *_ in spelled_alike(names):
        raise ConfigError(
            f"the categories {first!r} and {second!r} differ only in spelling; rename one of them, in the data set or "
            "in the registry."
        )


def _task(data_set: DataSet, category: str, config: FitConfig, sizes: Mapping[str, int], files: _Files) -> FitTask:
    check_category_name(category)
    if not data_set.normals(category):
        raise ConfigError(f"no training image in {config.data}; add normal images to its train split.")
    settings, samples = config.category(category), tuple(data_set.of(category))
    detector, images_digest = settings.detector, data_set.digest(category, sizes)
    return FitTask(
        category,
        samples,
        detector,
        _digest(images_digest, detector, files),
        seeds=config.seeds,
        workers=settings.workers,
        work=work_of(samples, detector, config.seeds),
        images_digest=images_digest,
    )


def _digest(of_images: str, detector: DetectorConfig, files: _Files) -> str:
    """Names what a category is fitted from: its images and, where they are files, the encoder's weights and the region."""
    named = [uri for uri in (detector.encoder.weights_file, detector.region) if uri is not None]
    if not named:
        return of_images
    return hashlib.sha256(":".join([of_images, *map(files.digest, named)]).encode()).hexdigest()


class _Files:
    """Files that a configuration names, each read once."""

    def __init__(self, storage_options: Mapping[str, Any]) -> None:
        self._storage_options = storage_options
        self._digests: dict[str, str] = {}

    def digest(self, uri: str) -> str:
        """SHA-256 of the content."""
        if uri not in self._digests:
            self._digests[uri] = hashlib.sha256(read_file(uri, self._storage_options)).hexdigest()
        return self._digests[uri]


def _reused(registry: Registry, task: FitTask) -> Outcome | None:
    """The best of the finished versions of all seeds; None where one of them has yet to be fitted."""
    versions = [registry.finished(task.category, task.data_digest, detector) for detector in task.detectors()]
    manifests = [manifest for manifest in versions if manifest is not None]
    if len(manifests) < len(versions):
        return None
    best = likeliest(manifests)
    pointer = registry.pointer_if_there(task.category)
    return Outcome(
        task.category,
        "reused",
        best.version,
        Metrics.from_dict(best.metrics),
        round(sum(manifest.fit_seconds for manifest in manifests), 1),
        nll=mean_nll(best),
        promoted=pointer is not None and pointer.version == best.version,
    )


def _site(data_root: str, config: FitConfig) -> FitSite:
    return FitSite(
        data_root,
        config.registry,
        config.storage_options,
        run=f"fit-{uuid4().hex[:8]}",
        promote=config.promote,
        save_seconds=config.save_seconds,
        cache_bytes=config.cache_mb * 2**20,
        scratch=config.scratch,
        force=config.force,
        gpus=config.cluster.resources.gpu,
    )
