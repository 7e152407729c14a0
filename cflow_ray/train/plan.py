"""What a fit will do before it does anything: which categories are due, in which order, and which are settled already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from cflow_ray.config import FitConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.samples import DataSet, spelled_alike
from cflow_ray.errors import CflowRayError, ConfigError, DataError
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.store.registry import Registry, check_category_name
from cflow_ray.store.storage import Storage, split_uri
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
    registry = Registry.if_there(Storage(config.registry, config.storage_options))
    _refuse_overlapping([*wanted, *(registry.categories() if registry else ())])
    sizes = data_set.root.sizes()
    due: list[FitTask] = []
    settled: list[Outcome] = []
    for category in wanted:
        try:
            task = _task(data_set, category, config, sizes)
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


def _task(data_set: DataSet, category: str, config: FitConfig, sizes: Mapping[str, int]) -> FitTask:
    check_category_name(category)
    if not data_set.normals(category):
        raise ConfigError(f"no training image in {config.data}; add normal images to its train split.")
    settings, samples = config.category(category), tuple(data_set.of(category))
    detector = settings.detector
    return FitTask(
        category,
        samples,
        detector,
        _digest(data_set.digest(category, sizes), detector.region, config.storage_options),
        seeds=config.seeds,
        workers=settings.workers,
        work=work_of(samples, detector, config.seeds),
    )


def _digest(of_images: str, region: str | None, storage_options: Mapping[str, Any]) -> str:
    """Names what a category is fitted from: its images and, where there is one, its region of interest."""
    if region is None:
        return of_images
    folder, name = split_uri(region)
    content = Storage(folder, storage_options).read(name)
    return hashlib.sha256(of_images.encode() + content).hexdigest()


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
