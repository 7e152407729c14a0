"""What one worker of a run does: fit categories from the queue until it is empty, or a share of one with others.

The driver hands these loops to Ray Train without importing what a fit needs, which is seconds of its start.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch
from ray.util import get_current_placement_group

from cflow_ray.model.team import Processes, Team
from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.task import FitSite, FitTask, Outcome

if TYPE_CHECKING:
    from cflow_ray.train.category import Report

log = logging.getLogger(__name__)


def fit_worker(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker.

    Nothing is reported through Ray Train, whose report is a barrier over all workers; progress and outcomes go to the
    queue, checkpoints to the registry.
    """
    queue, site = config["queue"], config["site"]
    rank = ray.train.get_context().get_world_rank()
    group = _joined_group(queue)
    while (task := ray.get(queue.take.remote(group, rank))) is not None:
        ray.get(queue.finish.remote(_outcome(task, site, _report_to(queue, task))))


def fit_share_worker(config: dict[str, Any]) -> None:
    """The loop of one of the Ray Train workers that fit one category together; the first one deals with the queue.

    A member that fails tells the queue; the group that Ray Train starts then finds nothing left to do.
    """
    from cflow_ray.train.category import fit_category

    queue, site = config["queue"], config["site"]
    team: Team = Processes()
    group = _joined_group(queue)
    task = team.gather(ray.get(queue.take.remote(group, 0)) if team.rank == 0 else None)[0]
    if task is None:
        return
    report = _report_to(queue, task) if team.rank == 0 else lambda progress: None
    outcome = fit_category(task, site, report, team)  # what it raises makes Ray Train start the group anew
    if team.rank == 0 or outcome.status == "failed":
        ray.get(queue.finish.remote(outcome))
    if outcome.status == "failed":
        raise RuntimeError(outcome.error)  # Ray Train ends the whole group, members that wait for this one included


def _joined_group(queue: Any) -> str:
    """The name of the group of workers that this one belongs to, which the queue knows from now on."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    group = get_current_placement_group().id.hex()  # every group of workers that Ray Train starts has its own
    ray.get(queue.start.remote(group))
    return str(group)


def _report_to(queue: Any, task: FitTask) -> Report:
    def report(progress: CategoryProgress) -> None:
        queue.report.remote(task.category, progress)

    return report


def _outcome(task: FitTask, site: FitSite, report: Report) -> Outcome:
    from cflow_ray.train.category import fit_category

    try:
        return fit_category(task, site, report)
    except Exception as error:
        log.exception("fit of %s", task.category)
        return Outcome(task.category, "failed", error=f"{type(error).__name__}: {error}")
