"""Ray Data's settings in the process that starts a job."""

from __future__ import annotations

import logging

from ray.data import DataContext
from ray.exceptions import RayTaskError

from cflow_ray.errors import CflowRayError


def job_context() -> DataContext:
    """The context of this process, without bars and notes of Ray's own, and with errors as they were raised."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    for noisy in ("ray.data", "ray._private.authentication"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return context


def own_error(error: RayTaskError) -> CflowRayError | None:
    """The expected failure that ended a task, if it was one, without what Ray adds to its message."""
    cause = error.cause
    if not isinstance(cause, CflowRayError):
        return None
    cause.args = (str(cause).partition("\nFailed to apply UDF")[0], *cause.args[1:])
    return cause
