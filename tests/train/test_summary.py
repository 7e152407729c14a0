"""The table beside the checkpoints: one row a category, whatever became of it."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq

from cflow_ray.evaluation.figures import Metrics
from cflow_ray.store.storage import Storage
from cflow_ray.train.summary import SCHEMA, SUMMARY, write_summary
from cflow_ray.train.task import Outcome


def test_every_outcome_is_a_row(tmp_path: Path) -> None:
    outcomes = [
        Outcome("a", "fitted", "v1-x", Metrics(image_auroc=0.9), 3.5, 800.0, -0.5, True, None, ("left out b.png",)),
        Outcome("b", "failed", error="no training image"),
    ]
    storage = Storage(str(tmp_path))
    write_summary(storage, "fit-1", outcomes)
    table = pq.read_table(io.BytesIO(storage.read(SUMMARY)))
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [(row["run"], row["category"], row["status"], row["version"]) for row in rows] == [
        ("fit-1", "a", "fitted", "v1-x"),
        ("fit-1", "b", "failed", None),
    ]
    assert (rows[0]["image_auroc"], rows[0]["seconds"], rows[0]["peak_mb"], rows[0]["notes"]) == (
        0.9, 3.5, 800.0, ["left out b.png"],
    )  # fmt: skip
    assert rows[1]["error"] == "no training image"
    assert storage.read(f"_runs/fit-1/{SUMMARY}") == storage.read(SUMMARY)
