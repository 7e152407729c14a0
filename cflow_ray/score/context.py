"""Ray Data's settings in the process that starts a job."""

from __future__ import annotations

import logging

from ray.data import DataContext


def quiet_context() -> DataContext:
    """The context of this process, without bars and notes of Ray's own."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for noisy in ("ray.data", "ray._private.authentication"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return context
