"""`cflow-ray results`: how far a scoring job is, its table's parts, and what differs between two tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.config import CompactConfig, DiffConfig, StatusConfig, load_config
from cflow_ray.progress import ProgressBoard


@click.group()
def results() -> None:
    """What became of a scoring job: its state, its table in large parts, its difference from another.

    \b
    Example: cflow-ray results status s3://line/scores/2026-11-23
    """


@results.command("status", epilog="Example: cflow-ray results status s3://line/scores/2026-11-23 --rows")
@click.argument("output", required=False)
@click.option("--rows", is_flag=True, default=None, help="Also read the rows: errors by kind, anomalies by category.")
@common
def results_status(out: Output, config_file: str | None, **flags: Any) -> None:
    """Chunks and records that are done and pending, and the shards that are not whole; reads the listing alone."""
    config = load_config(StatusConfig, config_file, settings_of(flags))
    from cflow_ray.score.status import status, status_report

    found = status(config)
    out(found.as_dict(), *status_report(found))


@results.command("compact", epilog="Example: cflow-ray results compact s3://line/scores/2026-11-23 --part-size 256MB")
@click.argument("output", required=False)
@click.option("--part-size", metavar="SIZE", help="Parts of this size and more are left alone [256MB].")
@common
def results_compact(out: Output, config_file: str | None, **flags: Any) -> None:
    """Merge the small parts of a score table into large ones, a shard at a time, without changing a row.

    The job may still run, and compaction be stopped or started twice: readers of this package and reruns of `score`
    find every record once. Other readers may see rows twice while it runs.
    """
    config = load_config(CompactConfig, config_file, settings_of(flags))
    from cflow_ray.store.compaction import compact
    from cflow_ray.store.storage import Storage

    with ProgressBoard("compacting") as board:
        summary = compact(
            Storage(config.output, config.storage_options),
            config.part_size,
            lambda done, total: board.update("shards", done, total),
        )
    text = (
        f"{summary.parts_written} parts written ({summary.rows} rows, {summary.bytes_written / 1e6:.1f} MB), "
        f"{summary.parts_removed} removed in {summary.shards} shards of {summary.output}"
    )
    out(asdict(summary), text)


@results.command("diff", epilog="Example: cflow-ray results diff s3://line/scores/v3 s3://line/scores/v4 --limit 50")
@click.argument("a", required=False)
@click.argument("b", required=False)
@click.option("--by", type=click.Choice(["key", "image_id"]), help="What names an image in both [key].")
@click.option("--limit", type=int, metavar="N", help="Images to list [20].")
@click.option("--write", metavar="FILE", help="Parquet file for all images that differ, a path or URI.")
@click.option("--fail-on-change", is_flag=True, default=None, help="Exit with 1 where anything but scores differs.")
@common
def results_diff(out: Output, config_file: str | None, **flags: Any) -> int:
    """Two score tables over the same images: which decisions changed, which scores moved most."""
    config = load_config(DiffConfig, config_file, settings_of(flags))
    from cflow_ray.evaluation.difference import diff
    from cflow_ray.evaluation.report import difference_report

    difference = diff(config)
    out(difference.as_dict(config.limit), *difference_report(difference, config.limit))
    return int(config.fail_on_change and difference.differs)
