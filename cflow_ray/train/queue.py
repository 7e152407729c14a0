"""The queue of categories that the workers of a run pull from, and what it knows of their progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.task import FitTask, Outcome

_DEATHS_TO_SET_ASIDE = 2


@dataclass(frozen=True)
class QueueStatus:
    """A look at a run: what is in hand with its latest progress, what waits, and what is over."""

    in_hand: dict[str, CategoryProgress | None]
    outcomes: dict[str, Outcome]
    waiting: int = 0


Watch = Callable[[QueueStatus], None]
"""Sees a run as it goes on."""


class CategoryQueue:
    """Hands out each category once, in the given order, and again if its worker dies.

    Ray restarts the whole group of workers when one dies or when the cluster grows or shrinks, so what a group had in
    hand goes back when the next one starts. A category in hand at two deaths of its own worker is set aside as failed.
    """

    def __init__(self, tasks: Sequence[FitTask]) -> None:
        self._waiting = list(tasks)
        self._group = ""
        self._in_hand: dict[int, FitTask] = {}
        self._progress: dict[str, CategoryProgress | None] = {}
        self._deaths: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}

    def start(self, group: str) -> None:
        """A worker of this group starts: if it is the group's first, what the last group had in hand goes back."""
        if group == self._group:
            return
        self._group = group
        back = [task for task in self._in_hand.values() if task.category not in self._outcomes]
        self._waiting[:0] = sorted(back, key=lambda task: -task.work)
        self._in_hand.clear()
        self._progress.clear()

    def died(self, rank: int, reason: str) -> None:
        """The worker of this rank died by itself: a strike against what it had in hand."""
        task = self._in_hand.get(rank)
        if task is None:
            return
        self._progress[task.category] = None
        deaths = self._deaths.get(task.category, 0) + 1
        self._deaths[task.category] = deaths
        if deaths >= _DEATHS_TO_SET_ASIDE:
            error = f"set aside: its worker died {deaths} times while fitting it ({reason})"
            self.finish(Outcome(task.category, "failed", error=error))

    def take(self, group: str, rank: int) -> FitTask | None:
        """The next category for a worker; None when there is none left, or where the group is not the present one."""
        if not self._waiting or group != self._group:
            return None
        task = self._waiting.pop(0)
        self._in_hand[rank] = task
        self._progress[task.category] = None
        return task

    def report(self, category: str, progress: CategoryProgress) -> None:
        """The latest progress of a category."""
        if category in self._progress:
            self._progress[category] = progress

    def finish(self, outcome: Outcome) -> None:
        """A category is over, whoever fitted it; a worker that was given up for dead may be late, and right."""
        self._outcomes[outcome.category] = outcome
        self._progress.pop(outcome.category, None)
        self._waiting = [task for task in self._waiting if task.category != outcome.category]
        self._in_hand = {rank: task for rank, task in self._in_hand.items() if task.category != outcome.category}

    def status(self) -> QueueStatus:
        """The state of the run."""
        return QueueStatus(dict(self._progress), dict(self._outcomes), len(self._waiting))


QueueActor = ray.remote(num_cpus=0)(CategoryQueue)
