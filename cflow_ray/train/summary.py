"""The table of a run's outcomes that lies beside the checkpoints: one row a category."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cflow_ray.evaluation.figures import FIGURES
from cflow_ray.store.storage import Storage
from cflow_ray.train.task import Outcome

SUMMARY = "fit_summary.parquet"

SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("version", pa.string()),
        ("promoted", pa.bool_()),
        ("seconds", pa.float64()),
        ("peak_mb", pa.float64()),
        ("nll", pa.float64()),
        *((name, pa.float64()) for name in FIGURES),
        ("error", pa.string()),
        ("notes", pa.list_(pa.string())),
    ]
)


def write_summary(registry: Storage, run: str, outcomes: Sequence[Outcome]) -> None:
    """Write the table of the latest run at the registry's root, and for good in the run's own folder."""
    rows = [{"run": run, "category": outcome.category, **outcome.as_dict()} for outcome in outcomes]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
    for path in (SUMMARY, f"_runs/{run}/{SUMMARY}"):
        registry.write(path, buffer.getvalue())
