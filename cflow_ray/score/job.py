"""A job on its output: what is done, what is left, and the summary in the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from cflow_ray.config import TableConfig
from cflow_ray.errors import MissingFileError
from cflow_ray.score.plan import Plan
from cflow_ray.score.spans import Pending, pending, unreadable_parts
from cflow_ray.score.summary import JobSummary, Totals, finish
from cflow_ray.store.results import finished_parts
from cflow_ray.store.storage import Storage

_LOOKS = 20


@dataclass(frozen=True)
class Job:
    """A plan, and what of it was done before."""

    plan: Plan
    results: Storage
    rest: Pending
    before: Totals
    run: Totals = field(default_factory=Totals)
    """What this run adds."""
    start: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, plan: Plan, results: Storage, config: TableConfig, start: float) -> Job:
        """The job of a plan whose parts so far lie in the results; it began at `start` of the monotonic clock.

        Where the table is compacted meanwhile, and a part that was listed is gone, it looks again.
        """
        look_again = Retrying(
            retry=retry_if_exception_type(MissingFileError), stop=stop_after_attempt(_LOOKS), reraise=True
        )
        return look_again(cls._as_found, plan, results, config, start)

    @classmethod
    def _as_found(cls, plan: Plan, results: Storage, config: TableConfig, start: float) -> Job:
        ledger = finished_parts(results)
        again = unreadable_parts(results, ledger) if config.retry_errors else frozenset()
        rest = pending(plan, ledger, again, results)
        before = Totals.of_parts(results, (part for part in ledger if part not in again))
        return cls(plan, results, rest, before, start=start)

    def finish(self) -> JobSummary:
        """Write the summary and the mark that the table is whole."""
        seconds = time.monotonic() - self.start
        return finish(self.results, self.plan, self.before, self.rest.done, self.run, seconds)
