"""`cflow-ray score --url`: a server scores; into a table, or a line an image."""

from __future__ import annotations

import os
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from cflow_ray.cli.command import Output
from cflow_ray.config import AskConfig
from cflow_ray.progress import ProgressBoard


def ask(out: Output, config: AskConfig) -> None:
    """Score the inputs and print what came of it."""
    from cflow_ray.client import Client
    from cflow_ray.score.online import read_token, score_online
    from cflow_ray.store.results import read_results
    from cflow_ray.store.storage import Storage

    token = read_token(config, os.environ)
    with (
        TemporaryDirectory() as unkept,
        Client(config.url, token, config.deadline) as client,
        ProgressBoard(f"asking {config.url}") as board,
    ):
        output = config.output or unkept
        summary = score_online(config, client, output, lambda done, total: board.update("chunks", done, total))
        is_shown = config.output is None and summary.rows > 0
        rows = read_results(Storage(output, config.storage_options)).to_pylist() if is_shown else []
    if config.output is None:
        out({"images": rows}, _table(rows))
    else:
        out(asdict(summary), summary.text)
    summary.check(config.max_error_fraction)


def _table(rows: list[dict[str, Any]]) -> Table:
    """One line an image."""
    table = Table("Image", "Category", "Decision", "Score", "p-value", "Threshold", "Checkpoint")
    for row in rows:
        if row["error"] is not None:
            table.add_row(row["key"], row["category"], f"error: {row['error']}")
            continue
        decision = "anomaly" if row["is_anomaly"] else "normal"
        threshold = "none" if row["threshold"] is None else f"{row['threshold']:.4f}"
        figures = f"{row['score']:.4f}", f"{row['p_value']:.4f}"
        table.add_row(row["key"], row["category"], decision, *figures, threshold, row["checkpoint"])
    return table
