"""`cflow-ray data ...`: data sets before a fit."""

from __future__ import annotations

from typing import Any

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import data_options, with_options
from cflow_ray.config import CheckConfig, load_config
from cflow_ray.progress import ProgressBoard


@click.group()
def data() -> None:
    """Look at data sets before a fit.

    \b
    Example: cflow-ray data check --data s3://line/mvtec
    """


@data.command("check", epilog="Example: cflow-ray data check --data s3://line/visa --layout visa")
@with_options(data_options)
@click.option("--write-table", metavar="FILE", help="Also write the sample table, a .parquet for --layout table.")
@common
def data_check(out: Output, config_file: str | None, **flags: Any) -> int:
    """Read every image and mask of a data set and tell what cannot be read, what is there twice, what has no mask.

    Exit code 1 where something would hurt a fit: unreadable training images, categories without any, the same content
    in train and another split, masks without an image, category names that only spelling tells apart.
    """
    config = load_config(CheckConfig, config_file, settings_of(flags))
    from cflow_ray.data.check import check
    from cflow_ray.data.display import figures_table, findings_table, verdict

    with ProgressBoard("checking") as board:
        report = check(config, lambda done, total: board.update("images", done, total))
    tables = [figures_table(report), *([findings_table(report)] if report.findings else [])]
    reading = f"fit from it with --layout table --data {config.write_table} --root {report.data}"
    written = [f"sample table written; {reading}"] if config.write_table else []
    out(report.as_dict() | {"table": config.write_table}, *tables, verdict(report), *written)
    return int(report.hurts_a_fit)
