"""The fit of a data set: which categories are due, one Ray Train run over them, and their outcomes."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from cflow_ray.config import FitConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.samples import DataSet
from cflow_ray.errors import CheckpointError, DataError
from cflow_ray.evaluation.metrics import Metrics
from cflow_ray.model.progress import FitProgress
from cflow_ray.store.registry import Registry, check_category_name
from cflow_ray.store.storage import Storage, split_uri
from cflow_ray.train.category import FitSite, FitTask, Outcome, fit_category
from cflow_ray.train.queue import QueueActor, QueueStatus

log = logging.getLogger(__name__)

Watch = Callable[[QueueStatus], None]

_SECONDS_BETWEEN_LOOKS = 0.5
_GROUP_RESTARTS = 100  # a category stops the run at two deaths of its own; this only bounds a cluster that is broken


def fit(config: FitConfig, watch: Watch = lambda status: None) -> list[Outcome]:
    """Fit the categories of a data set, each into a promoted checkpoint of the registry; one outcome a category.

    A category with a finished version of the same data and configuration is reused unless `force`. Raises DataError,
    ConfigError or StorageError before any fit starts; what goes wrong within one category is its outcome.
    """
    tasks, site, sizes = _plan(config)
    registry = Registry.create(Storage(config.registry, config.storage_options))
    reused = [] if config.force else [outcome for task in tasks if (outcome := _finished(registry, task))]
    known = {outcome.category for outcome in reused}
    due = sorted((task for task in tasks if task.category not in known), key=lambda t: -_work(t, sizes))
    if not due:
        return reused
    watch(QueueStatus({}, {outcome.category: outcome for outcome in reused}))
    return sorted([*reused, *_run(due, site, config, watch)], key=lambda outcome: outcome.category)


def _plan(config: FitConfig) -> tuple[list[FitTask], FitSite, Mapping[str, int]]:
    data_set = read_data_set(config, config.storage_options)
    sizes = data_set.root.sizes()
    wanted = data_set.chosen(config.only or tuple(config.categories))
    for category in wanted:
        check_category_name(category)
        if not data_set.normals(category):
            raise DataError(
                f"{category!r} has no training image in {config.data}; add normal images to its train split."
            )
    tasks = [
        FitTask(
            category,
            tuple(data_set.of(category)),
            config.detector(category),
            _digest(data_set, category, config, sizes),
        )
        for category in wanted
    ]
    return tasks, _site(data_set.root.uri, config), sizes


def _digest(data_set: DataSet, category: str, config: FitConfig, sizes: Mapping[str, int]) -> str:
    """Names what a category is fitted from: its images and, where there is one, its region of interest."""
    digest = data_set.digest(category, sizes)
    region = config.detector(category).region
    if region is None:
        return digest
    folder, name = split_uri(region)
    content = Storage(folder, config.storage_options).read(name)
    return hashlib.sha256(digest.encode() + content).hexdigest()


def _site(data_root: str, config: FitConfig) -> FitSite:
    return FitSite(data_root, config.registry, config.storage_options, config.cache_mb * 2**20, config.scratch)


def _work(task: FitTask, sizes: Mapping[str, int]) -> int:
    """How long a category will take, relative to the others: images times pixels of the input."""
    return len(task.samples) * math.prod(task.detector.size)


def _finished(registry: Registry, task: FitTask) -> Outcome | None:
    for version in reversed(registry.versions(task.category)):
        try:
            manifest = registry.manifest(task.category, version)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        if manifest.data_digest == task.data_digest and manifest.detector == task.detector:
            return Outcome(task.category, "reused", version, Metrics.from_dict(manifest.metrics), manifest.fit_seconds)
    return None


def _run(tasks: list[FitTask], site: FitSite, config: FitConfig, watch: Watch) -> list[Outcome]:
    ray.init(**config.cluster.init_arguments())
    queue = QueueActor.remote(tasks)
    trainer = TorchTrainer(
        fit_worker,
        train_loop_config={"queue": queue, "site": site},
        scaling_config=ScalingConfig(
            num_workers=config.cluster.worker_count(ray.cluster_resources().get("CPU", 0), len(tasks)),
            resources_per_worker={"CPU": config.cluster.cpus_per_worker},
        ),
        run_config=_run_config(config, queue),
    )
    with _Watching(queue, watch):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            log.error("the run ended early: %s", error)
    outcomes: dict[str, Outcome] = ray.get(queue.status.remote()).outcomes
    unfinished = [task.category for task in tasks if task.category not in outcomes]
    lost = [Outcome(name, "failed", error="the run ended before this category was fitted") for name in unfinished]
    return [*outcomes.values(), *lost]


def fit_worker(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker: fit categories from the queue until it is empty.

    Nothing is reported through Ray Train, whose report is a barrier over all workers; progress and outcomes go to the
    queue, checkpoints to the registry.
    """
    queue, site = config["queue"], config["site"]
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    ray.get(queue.start.remote(rank))
    while (task := ray.get(queue.take.remote(rank))) is not None:

        def report(progress: FitProgress, category: str = task.category) -> None:
            queue.report.remote(category, progress)

        try:
            outcome = fit_category(task, site, report)
        except Exception as error:
            log.exception("fit of %s", task.category)
            outcome = Outcome(task.category, "failed", error=f"{type(error).__name__}: {error}")
        ray.get(queue.finish.remote(rank, outcome))


class _StrikeOnDeath(UserCallback):  # type: ignore[misc]
    """Tells the queue which workers died by themselves; runs in Ray Train's controller."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            ray.get(self._queue.died.remote(rank, type(error).__name__))


class _Watching:
    """Shows the queue's status to `watch` twice a second while the run goes on."""

    def __init__(self, queue: Any, watch: Watch) -> None:
        self._queue, self._watch = queue, watch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._watch(ray.get(self._queue.status.remote()))

    def _look(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            self._watch(ray.get(self._queue.status.remote()))


def _run_config(config: FitConfig, queue: Any) -> RunConfig:
    """Ray Train's own files go below the registry, which all nodes reach, under a name that is used once."""
    runs = Storage(config.registry, config.storage_options).child("_runs")
    return RunConfig(
        name=f"fit-{uuid.uuid4().hex[:8]}",
        storage_path=runs.root,
        storage_filesystem=runs.arrow_file_system,
        failure_config=FailureConfig(max_failures=_GROUP_RESTARTS),
        callbacks=[_StrikeOnDeath(queue)],
    )
