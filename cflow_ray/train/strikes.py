"""Who died: what Ray Train's controller tells the queue of categories.

A module of its own, which imports nothing of the fit: the controller's process would spend seconds of a run's start on it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback


class StrikeOnDeath(UserCallback):  # type: ignore[misc]
    """Tells the queue which workers died by themselves; runs in Ray Train's controller."""

    def __init__(self, queue: Any, together: bool) -> None:
        """`together`: the category in hand is that of all workers, so that one strike counts for all that died."""
        self._queue = queue
        self._together = together

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called with the workers that failed, by rank."""
        deaths = {rank: type(error).__name__ for rank, error in worker_exceptions.items()}
        if self._together:
            deaths = {0: ", ".join(sorted(set(deaths.values())))}
        for rank, reason in deaths.items():
            ray.get(self._queue.died.remote(rank, reason))
