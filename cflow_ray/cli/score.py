"""`cflow-ray pack`, `score` and `evaluate`: the archive, its table, its figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cflow_ray.cli.ask import ask
from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import data_options, resources_option, runtime_option, wait_option, with_options
from cflow_ray.config import AskConfig, EvaluateConfig, PackConfig, ScoreConfig, load_config, read_settings, validated
from cflow_ray.progress import ProgressBoard


@click.command(epilog="Example: cflow-ray pack --data s3://line/mvtec --output s3://line/shards --shard-size 256MB")
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@with_options(data_options)
@click.option("--output", metavar="URI", help="Folder of the shards; a pack that was stopped goes on there.")
@click.option("--split", metavar="NAME", help="Split of the data set to pack; `all` packs every image [test].")
@click.option("--name", metavar="NAME", help="What the shards are called [the split; images].")
@click.option("--shard-size", metavar="SIZE", help="Size of a shard, which each worker holds in memory [256MB].")
@click.option("--workers", type=int, metavar="N", help="Shards at once [as many as the cluster has room for].")
@common
def pack(out: Output, config_file: str | None, **flags: Any) -> None:
    """Pack images into tar shards with an index each and a manifest that `score` takes.

    The images are those of a data set (--data), or INPUT: image files, folders or globs of them, manifests. Record keys
    are their paths below the root or the input.
    """
    config = load_config(PackConfig, config_file, settings_of(flags))
    from cflow_ray.score.packing import pack as pack_images

    with ProgressBoard("packing") as board:
        packed = pack_images(config, lambda done, total: board.update("images", done, total))
    kept = f", {packed.kept} of them from before" if packed.kept else ""
    out(asdict(packed), f"{packed.records} images in {len(packed.shards)} shards{kept}; manifest {packed.manifest}")


@click.command(
    epilog="Example: cflow-ray score s3://line/shards --registry s3://line/registry --output s3://line/scores/2026-11-23"
)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--registry", metavar="URI", help="Registry with the checkpoints.")
@click.option("--output", metavar="URI", help="Folder of the score table; a job that was stopped goes on there.")
@click.option("--url", metavar="URL", help="Let the server there score, instead of --registry; see below.")
@click.option("--token-file", metavar="FILE", help="With --url: file with the access token [$CFLOW_RAY_TOKEN].")
@click.option("--in-flight", type=int, metavar="N", help="With --url: images that are with the server at once [8].")
@click.option("--deadline", type=float, metavar="SECONDS", help="With --url: for one image, with all tries [30].")
@click.option("--category", metavar="NAME", help="One category for all records.")
@click.option("--category-pattern", metavar="PATTERN", help="How keys name their category [{category}/].")
@click.option(
    "--checkpoint", multiple=True, metavar="C=VERSION", help="Use this version instead of the best; repeatable."
)
@click.option("--category-field", metavar="NAME", help="Field of side-cars or manifests, or column, with the category.")
@click.option("--image-column", metavar="NAME", help="Column of image bytes in Parquet files [the only one].")
@click.option("--key-column", metavar="NAME", help="Column of record keys in Parquet files [key, path, ...].")
@click.option("--max-image-size", metavar="SIZE", help="Largest image that is read [256MB].")
@click.option("--max-pixels", type=int, metavar="N", help="Most pixels that are decoded [89478485].")
@click.option("--maps", type=click.Choice(["none", "anomalous", "all"]), help="Which heat maps to store [none].")
@click.option("--map-format", type=click.Choice(["png16", "png8", "float16"]), help="How maps are stored [png16].")
@click.option("--map-size", type=int, metavar="PIXELS", help="Longer side of stored maps [the network's].")
@click.option("--target-fpr", type=float, metavar="RATE", help="False-alarm rate instead of the checkpoints' own.")
@click.option("--batch-size", metavar="N|auto", help="Images of one pass through the encoder [16]; auto finds it.")
@click.option("--chunk-records", type=int, metavar="N", help="Records of one Parquet part [64].")
@click.option("--retry-errors", is_flag=True, default=None, help="Do chunks again that have unreadable records.")
@click.option(
    "--max-error-fraction", type=float, metavar="SHARE", help="More rows with error make the exit code 1 [1]."
)
@runtime_option
@click.option(
    "--workers", metavar="N|MIN:MAX|auto", help="Scoring actors [auto: as many as there is room for, now and later]."
)
@resources_option
@click.option("--gpus-per-worker", type=float, metavar="SHARE", help="GPUs of one scoring actor, e.g. 0.25 [0].")
@wait_option
@common
def score(out: Output, config_file: str | None, **flags: Any) -> None:
    """Score image archives into a Parquet table, one row a record.

    INPUT is a .tar, .tar.gz, .zip or .parquet file, an image, a folder or glob of them, or a manifest (.txt, .csv,
    .parquet). An image that cannot be scored is a row with `error`; a rerun with the same output does only what is
    missing.

    With --url a running server scores, and neither Ray nor a registry is needed here; without --output it prints a line
    an image.
    """
    settings = read_settings(config_file, settings_of(flags, own_names=("target_fpr",)))
    where = config_file or "the flags"
    if settings.get("url") is not None:
        ask(out, validated(AskConfig, settings, where))
        return
    config = validated(ScoreConfig, settings, where)
    from cflow_ray.score.run import score as score_archives

    with ProgressBoard("scoring") as board:
        summary = score_archives(config, lambda done, total: board.update("chunks", done, total))
    out(asdict(summary), summary.text)
    summary.check(config.max_error_fraction)


@click.command(epilog="Example: cflow-ray evaluate s3://line/scores/2026-11-23 --data s3://line/mvtec")
@click.argument("results", required=False)
@with_options(data_options)
@click.option(
    "--paper-score",
    is_flag=True,
    default=None,
    help="Also the paper's score (maximum over the test set; for comparison only); needs --registry.",
)
@click.option("--registry", metavar="URI", help="Registry of the detectors that --paper-score scores with.")
@common
def evaluate(out: Output, config_file: str | None, **flags: Any) -> None:
    """Metrics of a score table against a data set's labels and masks; pixel figures need `score --maps all`."""
    config = load_config(EvaluateConfig, config_file, settings_of(flags))
    from cflow_ray.evaluation.evaluate import evaluate as evaluate_results
    from cflow_ray.evaluation.paper import evaluate_as_the_paper
    from cflow_ray.evaluation.report import figures_table, metrics_table, paper_table

    with ProgressBoard("evaluating") as board:
        metrics = evaluate_results(config, lambda done, total: board.update("categories", done, total))
        paper = evaluate_as_the_paper(config) if config.paper_score else {}
    values: dict[str, Any] = {"categories": {name: m.as_dict() for name, m in metrics.items()}}
    if paper:
        values["paper_score"] = {name: asdict(figures) for name, figures in paper.items()}
    out(values, metrics_table(metrics), figures_table(metrics), *([paper_table(paper)] if paper else []))
