"""`cflow-ray drift`: whether categories still score as they did when they were calibrated."""

from __future__ import annotations

from typing import Any

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import category_option
from cflow_ray.config import DriftConfig, load_config
from cflow_ray.progress import ProgressBoard


@click.command(epilog="Example: cflow-ray drift s3://line/scores/2026-11-22 s3://line/scores/2026-11-23")
@click.argument("results", nargs=-1, metavar="RESULTS...")
@click.option("--registry", metavar="URI", help="Registry with the calibrations [the one each table was scored from].")
@category_option
@click.option("--day-pattern", metavar="PATTERN", help="How keys name their day, e.g. /{day}/ [the day of the job].")
@click.option("--target-fpr", type=float, metavar="RATE", help="Promised rate of alarms [each version's own].")
@click.option("--alpha", type=float, metavar="RATE", help="Chance of a false `refit due` in a report [0.01].")
@click.option("--min-distance", type=float, metavar="D", help="Kolmogorov-Smirnov distance that does not matter [0.1].")
@click.option("--min-images", type=int, metavar="N", help="Fewest images of a day that is judged [30].")
@click.option("--last-days", type=int, metavar="N", help="Latest days, most of which decide on a category [3].")
@click.option("--fail-on-drift", is_flag=True, default=None, help="Exit code 1 where a refit is due.")
@common
def drift(out: Output, config_file: str | None, **flags: Any) -> int:
    """Compare score tables, by category and day, with the calibration of the version that scored them.

    Says which categories are due for a refit; docs/drift.md has the rule.
    """
    config = load_config(DriftConfig, config_file, settings_of(flags, own_names=("target_fpr",)))
    from cflow_ray.evaluation.drift import drift as find_drift
    from cflow_ray.evaluation.drift_table import drift_tables, left_out

    with ProgressBoard("comparing") as board:
        report = find_drift(config, lambda done, total: board.update("shards", done, total))
    out(report.as_dict(), *drift_tables(report), *left_out(report))
    return int(config.fail_on_drift and bool(report.refit_due))
