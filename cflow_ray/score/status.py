"""How far a scoring job is: its plan against the listing of its output, and on request what the rows say."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from cflow_ray.config import StatusConfig
from cflow_ray.errors import DataError, MissingFileError
from cflow_ray.score.plan import Plan, read_plan
from cflow_ray.score.spans import chunk_firsts, length_of
from cflow_ray.score.summary import SUCCESS
from cflow_ray.store.results import PartName, finished_parts, read_tables
from cflow_ray.store.storage import Storage

_SHARDS_SHOWN = 20


@dataclass
class Progress:
    """What is planned and what is done, of a shard or of all."""

    chunks: int = 0
    chunks_done: int = 0
    records: int = 0
    records_done: int = 0

    def count(self, records: int, is_done: bool) -> None:
        """Count a chunk of so many records in."""
        self.chunks += 1
        self.records += records
        if is_done:
            self.chunks_done += 1
            self.records_done += records

    @property
    def pending(self) -> int:
        """Chunks that are not done."""
        return self.chunks - self.chunks_done


@dataclass
class RowCounts:
    """What the rows that are there say."""

    rows: int = 0
    failed: int = 0
    """Rows with `error`."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed rows by `error_kind`."""
    anomalies: Counter[str] = field(default_factory=Counter)
    """Anomalies by category; a category with rows and no anomaly has 0."""

    def add(self, rows: pa.Table) -> None:
        """Count rows in."""
        failed = rows.filter(pc.is_valid(rows["error"]))
        self.rows += rows.num_rows
        self.failed += failed.num_rows
        self.errors += _counts(pc.fill_null(failed["error_kind"], "unknown"))
        found = rows.filter(rows["is_anomaly"])["category"]
        self.anomalies.update(dict.fromkeys(rows["category"].unique().drop_null().to_pylist(), 0))
        self.anomalies.update(_counts(found))


@dataclass
class Status:
    """A scoring job as its output tells it."""

    output: str
    created: datetime
    checkpoints: dict[str, str]
    finished: bool
    """Whether `_SUCCESS` is there: a run came to its end."""
    total: Progress = field(default_factory=Progress)
    shards: int = 0
    unfinished: dict[str, Progress] = field(default_factory=dict)
    """By id, the shards that are not whole."""
    of_unknown_length: list[str] = field(default_factory=list)
    """Streamed shards that were not read to their end yet: only what is done of them is counted."""
    rows: RowCounts | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": self.output,
            "created": self.created.isoformat(),
            "finished": self.finished,
            "checkpoints": self.checkpoints,
            **asdict(self.total),
            "chunks_pending": self.total.pending,
            "shards": self.shards,
            "of_unknown_length": self.of_unknown_length,
            "unfinished": {shard: asdict(progress) for shard, progress in self.unfinished.items()},
            "rows": vars(self.rows) if self.rows else None,
        }


def status(config: StatusConfig) -> Status:
    """How far the job of an output is; no part is read but for `rows`.

    Raises DataError where the output holds no plan.
    """
    output = Storage(config.output, config.storage_options)
    plan = _plan_of(output)
    ledger = finished_parts(output)
    found = Status(
        output=output.uri,
        created=plan.created,
        checkpoints={category: checkpoint.version for category, checkpoint in plan.checkpoints.items()},
        finished=output.is_file(SUCCESS),
        shards=len(plan.shards),
    )
    for shard in plan.shards:
        records = length_of(shard, output)
        progress = Progress()
        for first in chunk_firsts(plan, ledger, shard.id, records):
            is_done = PartName(shard.id, first) in ledger
            count = min(plan.chunk_records, records - first) if records is not None else plan.chunk_records
            progress.count(count, is_done)
            found.total.count(count, is_done)
        if records is None:
            found.of_unknown_length.append(shard.id)
        if progress.pending or records is None:
            found.unfinished[shard.id] = progress
    if config.rows:
        found.rows = RowCounts()
        for table in read_tables(output, ("category", "is_anomaly", "error", "error_kind")) if ledger.shards else ():
            found.rows.add(table)
    return found


def status_report(status: Status) -> list[str | Table]:
    """What a person reads: the state on a line, the shards that are not whole, and what the rows say."""
    done = status.total
    state = "finished" if status.finished and not status.unfinished else "not finished"
    line = (
        f"{status.output}: {state}, {done.chunks_done} of {done.chunks} chunks and {done.records_done} of "
        f"{done.records} records done, {done.pending} chunks pending; planned {status.created:%Y-%m-%d %H:%M} UTC"
    )
    checkpoints = ", ".join(f"{category} {version}" for category, version in status.checkpoints.items())
    parts: list[str | Table] = [line, f"checkpoints: {checkpoints}"]
    if status.of_unknown_length:
        parts.append(f"{len(status.of_unknown_length)} streamed shards were not read to their end yet")
    if status.unfinished:
        parts.append(_shards_table(status))
    if status.rows is not None:
        parts.append(f"{status.rows.rows} rows, {status.rows.failed} with error")
        parts.append(_counts_table("Category", "Anomalies", status.rows.anomalies))
        if status.rows.errors:
            parts.append(_counts_table("Error", "Rows", status.rows.errors))
    return parts


def _plan_of(output: Storage) -> Plan:
    try:
        return read_plan(output)
    except MissingFileError as error:
        raise DataError(
            f"{output.uri} holds no scoring job: there is no plan. Run: cflow-ray score ... --output {output.uri}"
        ) from error


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def _shards_table(status: Status) -> Table:
    left_out = len(status.unfinished) - _SHARDS_SHOWN
    caption = f"and {left_out} more shards; --json names all" if left_out > 0 else None
    table = Table("Shard", "Chunks done", "of", "Records done", "of", caption=caption)
    for shard, done in list(status.unfinished.items())[:_SHARDS_SHOWN]:
        table.add_row(shard, *(str(n) for n in (done.chunks_done, done.chunks, done.records_done, done.records)))
    return table


def _counts_table(kind: str, what: str, counts: Counter[str]) -> Table:
    table = Table(kind, what)
    for name, count in sorted(counts.items()):
        table.add_row(name, str(count))
    return table
