"""What one worker of a run does: fit categories from the queue until it is empty."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
import ray.train
import torch
from ray.util import get_current_placement_group

from cflow_ray.train.category import fit_category
from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.task import FitSite, Outcome

log = logging.getLogger(__name__)


def fit_worker(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker.

    Nothing is reported through Ray Train, whose report is a barrier over all workers; progress and outcomes go to the
    queue, checkpoints to the registry.
    """
    queue, site = config["queue"], config["site"]
    rank = ray.train.get_context().get_world_rank()
    group = get_current_placement_group().id.hex()  # every group of workers that Ray Train starts has its own
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    ray.get(queue.start.remote(group))
    while (task := ray.get(queue.take.remote(group, rank))) is not None:

        def report(progress: CategoryProgress, category: str = task.category) -> None:
            queue.report.remote(category, progress)

        ray.get(queue.finish.remote(_outcome(task, site, report)))


def _outcome(task: Any, site: FitSite, report: Any) -> Outcome:
    try:
        return fit_category(task, site, report)
    except Exception as error:
        log.exception("fit of %s", task.category)
        return Outcome(task.category, "failed", error=f"{type(error).__name__}: {error}")
