"""Our fits without Ray: every category of a data set alone, in as many plain processes side by side as a run has workers.

Side by side because memory bandwidth and clock are then those that the run's workers have.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from benchmarks.meter import Meter, answer
from cflow_ray.config import FitConfig
from cflow_ray.model.threads import torch_threads
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.plan import plan_fit
from cflow_ray.train.task import FitSite, FitTask


def measure(config: dict[str, Any], workers: int) -> dict[str, Any]:
    """CPU and wall seconds of every category's fit, the start of its process excluded."""
    fit = FitConfig.model_validate(config)
    plan = plan_fit(fit)
    Registry.create(Storage(fit.registry))
    with Meter() as meter, ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        seconds = list(pool.map(partial(_alone, site=plan.site), plan.due))
    fits = {
        task.category: {"images": task.as_dict()["images"]} | each for task, each in zip(plan.due, seconds, strict=True)
    }
    return {"fits": fits, "wall": round(meter.wall, 2)}


def _alone(task: FitTask, site: FitSite) -> dict[str, float]:
    with torch_threads(1), Meter() as meter:
        outcome = fit_category(task, site, lambda progress: None)
    if outcome.status != "fitted":
        raise RuntimeError(f"{task.category}: {outcome.error}")
    return meter.as_dict()


if __name__ == "__main__":
    answer(measure)
