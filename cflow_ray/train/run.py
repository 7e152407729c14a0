"""Ray Train runs over the categories of a plan: one for all, and one each for those that several workers fit together."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cflow_ray.config import ClusterConfig, FitConfig, Range
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.plan import FitPlan, plan_fit
from cflow_ray.train.promotion import promote_reused
from cflow_ray.train.queue import QueueActor, QueueStatus, Watch
from cflow_ray.train.strikes import StrikeOnDeath
from cflow_ray.train.summary import write_summary
from cflow_ray.train.task import FitSite, FitTask, Outcome
from cflow_ray.train.worker import fit_share_worker, fit_worker

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_CATEGORIES_NAMED = 5
_GROUP_RESTARTS = 100  # a category stops the run at two deaths of its own; this only bounds a cluster that is broken


def fit(config: FitConfig, watch: Watch = lambda status: None) -> list[Outcome]:
    """Fit the categories of a data set, each into a checkpoint of the registry; one outcome a category.

    A category with a finished version of the same data and configuration is reused unless `force`. Raises DataError,
    ConfigError or StorageError before any fit starts; what goes wrong within one category is its outcome. The outcomes
    lie in the registry's `fit_summary.parquet` as well.
    """
    plan = plan_fit(config)
    parts = _parts(plan, config.cluster) if plan.due else []
    registry = Registry.create(Storage(config.registry, config.storage_options))
    registry.storage.write(f"_runs/{plan.site.run}/config.json", config.model_dump_json(indent=2).encode())
    settled = [promote_reused(registry, outcome, config.promote) for outcome in plan.settled]
    watch(QueueStatus({}, {outcome.category: outcome for outcome in settled}))
    fitted = [outcome for part in parts for outcome in _train(part, plan.site, config, watch)]
    outcomes = sorted([*settled, *fitted], key=lambda outcome: outcome.category)
    write_summary(registry.storage, plan.site.run, outcomes)
    return outcomes


@dataclass(frozen=True)
class _Part:
    """Categories of a run with the workers that fit them."""

    name: str
    """Of the run as Ray shows it; used once."""
    tasks: tuple[FitTask, ...]
    workers: int
    """At most."""
    loop: Callable[[dict[str, Any]], None]


def _parts(plan: FitPlan, cluster: ClusterConfig) -> list[_Part]:
    """Join or start the cluster: a part for each category that wants several workers, and one of all others.

    ConfigError where one has no room. Ray Train begins with the workers that there is room for, once that is one.
    """
    ray.init(**cluster.init_arguments())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    parts = []
    for task in (task for task in plan.due if task.workers > 1):
        of_task = cluster.model_copy(update={"workers": Range(min=task.workers, max=task.workers)})
        parts.append(
            _Part(
                run_name(plan.site.run, [task.category]),
                (task,),
                of_task.worker_count(nodes, task.workers),
                fit_share_worker,
            )
        )
    alone = tuple(task for task in plan.due if task.workers == 1)
    if alone:
        name = run_name(plan.site.run, [task.category for task in alone])
        parts.append(_Part(name, alone, cluster.worker_count(nodes, len(alone)), fit_worker))
    room, most = cluster.room(nodes), max(part.workers for part in parts)
    if room < most and cluster.wait:
        log.info("the cluster has room for %d of %d workers; the others start once nodes join", room, most)
    return parts


def run_name(run: str, categories: Sequence[str]) -> str:
    """What Ray's dashboard calls a run, and what its folder is called: its first categories, and how many more there are."""
    shown = "-".join(re.sub(r"[^\w.]+", "_", category) for category in categories[:_CATEGORIES_NAMED])
    more = len(categories) - _CATEGORIES_NAMED
    return f"{run}-{shown}{f'-and-{more}-more' if more > 0 else ''}"


def _train(part: _Part, site: FitSite, config: FitConfig, watch: Watch) -> list[Outcome]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = QueueActor.options(scheduling_strategy=here).remote(part.tasks)  # it lives as long as its driver's node
    trainer = TorchTrainer(
        part.loop,
        train_loop_config={"queue": queue, "site": site},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=(1, part.workers),  # the group shrinks when a node is lost, and grows with the cluster
            elastic_resize_monitor_interval_s=_seconds_between_resizes(config.save_seconds),
            resources_per_worker=config.cluster.resources.as_ray(),
            use_gpu=config.cluster.resources.gpu > 0,
        ),
        run_config=_run_config(part, config, queue),
    )
    with _Watching(queue, watch):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            log.error("the run ended early: %s", error)
    return _all_outcomes(part.tasks, ray.get(queue.status.remote()))


def _all_outcomes(tasks: tuple[FitTask, ...], status: QueueStatus) -> list[Outcome]:
    unfinished = [task.category for task in tasks if task.category not in status.outcomes]
    lost = [Outcome(name, "failed", error="the run ended before this category was fitted") for name in unfinished]
    return [*status.outcomes.values(), *lost]


def _seconds_between_resizes(save_seconds: float) -> float:
    """A group that grows starts anew from the savepoints; 27 s after a node's start it had work (2 cores, Ray 2.60).

    So that a cluster that grows node by node does not keep its fits from getting anywhere, the group grows after two
    savepoints of every category at the earliest; without savepoints, after ten minutes.
    """
    return 2 * (save_seconds or 300)


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
            try:
                self._watch(ray.get(self._queue.status.remote()))
            except Exception:  # whoever watches must not be the end of a night's fits
                log.exception("the run goes on unwatched")
                return


def _run_config(part: _Part, config: FitConfig, queue: Any) -> RunConfig:
    """Ray Train's own files go below the registry, which all nodes reach, under a name that is used once."""
    runs = Storage(config.registry, config.storage_options).child("_runs")
    return RunConfig(
        name=part.name,
        storage_path=runs.root,
        storage_filesystem=runs.arrow_file_system,
        failure_config=FailureConfig(max_failures=_GROUP_RESTARTS),
        callbacks=[StrikeOnDeath(queue, together=part.loop is fit_share_worker)],
    )
