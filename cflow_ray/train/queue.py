"""The queue of categories that the workers of a run pull from, and what it knows of their progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from cflow_ray.model.progress import FitProgress
from cflow_ray.train.category import FitTask, Outcome

_DEATHS_TO_SET_ASIDE = 2


@dataclass(frozen=True)
class QueueStatus:
    """A look at a run: what is in hand with its latest progress, and what is over."""

    in_hand: dict[str, FitProgress | None]
    outcomes: dict[str, Outcome]


class CategoryQueue:
    """Hands out each category once, in the given order, and again if its worker dies.

    Ray restarts the whole group of workers when one dies, so a worker that starts puts back what its rank had in
    hand. A category in hand at two deaths of its own worker is set aside as failed.
    """

    def __init__(self, tasks: Sequence[FitTask]) -> None:
        self._waiting = list(tasks)
        self._in_hand: dict[int, FitTask] = {}
        self._progress: dict[str, FitProgress | None] = {}
        self._deaths: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}

    def start(self, rank: int) -> None:
        """A worker of this rank starts: what the rank had in hand goes back to the head of the queue."""
        task = self._in_hand.pop(rank, None)
        if task is not None and task.category not in self._outcomes:
            self._waiting.insert(0, task)

    def died(self, rank: int, reason: str) -> None:
        """The worker of this rank died by itself: a strike against what it had in hand."""
        task = self._in_hand.get(rank)
        if task is None:
            return
        deaths = self._deaths.get(task.category, 0) + 1
        self._deaths[task.category] = deaths
        if deaths >= _DEATHS_TO_SET_ASIDE:
            error = f"set aside: its worker died {deaths} times while fitting it ({reason})"
            self.finish(rank, Outcome(task.category, "failed", error=error))

    def take(self, rank: int) -> FitTask | None:
        """The next category for a worker; None when there is none left."""
        if not self._waiting:
            return None
        task = self._waiting.pop(0)
        self._in_hand[rank] = task
        self._progress[task.category] = None
        return task

    def report(self, category: str, progress: FitProgress) -> None:
        """The latest progress of a category."""
        self._progress[category] = progress

    def finish(self, rank: int, outcome: Outcome) -> None:
        """A category is over."""
        self._outcomes[outcome.category] = outcome
        self._progress.pop(outcome.category, None)
        self._in_hand.pop(rank, None)

    def status(self) -> QueueStatus:
        """The state of the run."""
        return QueueStatus(dict(self._progress), dict(self._outcomes))


QueueActor = ray.remote(num_cpus=0)(CategoryQueue)
