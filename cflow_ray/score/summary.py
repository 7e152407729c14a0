"""What a job did, and what its table holds when it is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from cflow_ray.errors import DataError
from cflow_ray.score.plan import Plan
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.manifest import installed_packages
from cflow_ray.store.results import PartName, read_columns
from cflow_ray.store.storage import Storage

_SUMMARY = "_summary.json"
SUCCESS = "_SUCCESS"
"""Marks an output whose table is whole."""
_STAGES = ("read", "decode", "score", "write")


@dataclass
class Totals:
    """Sums over chunks."""

    chunks: int = 0
    rows: int = 0
    anomalies: int = 0
    errors_by_kind: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    """Of each stage, over all workers."""
    bytes_read: int = 0
    bytes_written: int = 0

    def add_chunk(self, chunk: Mapping[str, Any]) -> None:
        """Count what a scoring actor says of a chunk."""
        self.chunks += 1
        for name in ("rows", "anomalies", "bytes_read", "bytes_written"):
            setattr(self, name, getattr(self, name) + chunk[name])
        for stage in _STAGES:
            self.seconds[stage] += chunk[f"{stage}_seconds"]
        self.errors_by_kind.update(json.loads(chunk["errors_by_kind"]))

    @classmethod
    def of_parts(cls, results: Storage, parts: Iterable[PartName]) -> Totals:
        """The rows that earlier runs have written, of which two columns are read."""
        totals = cls()
        for table in computed_ahead(partial(read_columns, results, columns=("is_anomaly", "error_kind")), parts):
            totals.rows += table.num_rows
            totals.anomalies += sum(value is True for value in table["is_anomaly"].to_pylist())
            totals.errors_by_kind.update(value for value in table["error_kind"].to_pylist() if value is not None)
        return totals


@dataclass(frozen=True)
class JobSummary:
    """What the table holds, and what this run added to it."""

    output: str
    rows: int
    errors: int
    errors_by_kind: dict[str, int]
    anomalies: int
    chunks: int
    chunks_already_done: int
    rows_of_this_run: int
    seconds: float
    """Of this run, from the plan to the last row."""
    images_per_second: float
    """Of this run."""
    seconds_by_stage: dict[str, float]
    """Of this run, summed over its workers."""
    bytes_read: int
    bytes_written: int
    checkpoints: dict[str, str]

    @property
    def text(self) -> str:
        """In one line."""
        return (
            f"{self.rows} rows, {self.errors} with error, {self.anomalies} anomalies in {self.seconds:.1f} s; "
            f"table in {self.output}"
        )

    def check(self, max_error_fraction: float) -> None:
        """Raises DataError where a larger share of the rows has an error."""
        if self.rows and self.errors / self.rows > max_error_fraction:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.errors_by_kind.items())
            raise DataError(
                f"{self.errors} of {self.rows} rows have an error, more than the share of {max_error_fraction:g} "
                f"that is allowed ({kinds})."
            )


def finish(results: Storage, plan: Plan, before: Totals, chunks_before: int, run: Totals, seconds: float) -> JobSummary:
    """Write the summary and the mark that the table is whole."""
    kinds = before.errors_by_kind + run.errors_by_kind
    summary = JobSummary(
        output=results.uri,
        rows=before.rows + run.rows,
        errors=kinds.total(),
        errors_by_kind=dict(kinds.most_common()),
        anomalies=before.anomalies + run.anomalies,
        chunks=chunks_before + run.chunks,
        chunks_already_done=chunks_before,
        rows_of_this_run=run.rows,
        seconds=seconds,
        images_per_second=run.rows / seconds,
        seconds_by_stage=run.seconds,
        bytes_read=run.bytes_read,
        bytes_written=run.bytes_written,
        checkpoints={category: checkpoint.version for category, checkpoint in plan.checkpoints.items()},
    )
    content = {**asdict(summary), "packages": installed_packages()}
    results.write(_SUMMARY, json.dumps(content, indent=2).encode())
    results.write(SUCCESS, b"")
    return summary
