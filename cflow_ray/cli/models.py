"""`cflow-ray models`: list, inspect, choose, import, export and calibrate checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import category_option, data_options, with_options
from cflow_ray.config import CalibrateConfig, ExportConfig, ImportConfig, RegistryConfig, load_config
from cflow_ray.progress import ProgressBoard


@click.group()
def models() -> None:
    """List, inspect and choose checkpoints.

    \b
    Example: cflow-ray models list --registry s3://line/registry
    """


def _models_command(name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command over a registry; `registry` arrives opened."""

    def decorate(command: Callable[..., Any]) -> click.Command:
        @click.option("--registry", "uri", metavar="URI", help="The registry.")
        @common
        @wraps(command)
        def opened(out: Output, config_file: str | None, uri: str | None, **arguments: Any) -> Any:
            storage_option = arguments.pop("storage_option")
            settings = settings_of({"registry": uri, "storage_option": storage_option})
            config = load_config(RegistryConfig, config_file, settings)
            from cflow_ray.store.registry import Registry
            from cflow_ray.store.storage import Storage

            return command(out=out, registry=Registry(Storage(config.registry, config.storage_options)), **arguments)

        return models.command(name, epilog=f"Example: {example}")(opened)

    return decorate


@_models_command("list", "cflow-ray models list --registry s3://line/registry")
def models_list(out: Output, registry: Any) -> None:
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
def models_show(out: Output, registry: Any, category: str, version: str | None) -> None:
    """The manifest of a category's best version, or of the one given."""
    name = registry.resolve(category, version) if version else registry.best(category)
    values = registry.manifest(category, name).model_dump(mode="json")
    out(values, json.dumps(values, indent=2))


@_models_command("promote", "cflow-ray models promote screw v3 --registry s3://line/registry")
@click.argument("category")
@click.argument("version")
def models_promote(out: Output, registry: Any, category: str, version: str) -> None:
    """Make a version the best; servers take it over within seconds."""
    pointer = registry.promote(category, version)
    out({"category": category, **pointer.model_dump(mode="json")}, f"{category}: best is now {pointer.version}")


@_models_command("rollback", "cflow-ray models rollback screw --registry s3://line/registry")
@click.argument("category")
def models_rollback(out: Output, registry: Any, category: str) -> None:
    """Make the version that was best before the best again."""
    pointer = registry.rollback(category)
    out({"category": category, **pointer.model_dump(mode="json")}, f"{category}: best is now {pointer.version}")


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
@common
def models_import(out: Output, config_file: str | None, **flags: Any) -> None:
    """Take over a checkpoint of the official CFLOW-AD code (.pt) or of anomalib 2.x (.ckpt); FILE is a path or URI.

    The version has the file's likelihoods. It is not promoted: it scores once `models calibrate` has seen normal images.
    """
    config = load_config(ImportConfig, config_file, settings_of(flags, detector="detector"))
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
@common
def models_export(out: Output, config_file: str | None, **flags: Any) -> None:
    """Write a category's best version, or the one given, as a file for other programs.

    The graph takes uint8 RGB images (batch, 3, height, width) of the input size and gives maps and scores; its metadata
    hold the thresholds. It is checked against torch before it is written. Needs pip install 'cflow-ray[onnx]'.
    """
    config = load_config(ExportConfig, config_file, settings_of(flags))
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
@with_options([option for option in data_options if option is not category_option])
@click.option("--registry", metavar="URI", help="The registry.")
@click.option("--seed", type=int, help="Draws which images give peaks, which scores [0].")
@common
def models_calibrate(out: Output, config_file: str | None, **flags: Any) -> None:
    """Peaks and p-values of a version from the category's normal training images, as a new version that is promoted.

    Give images that the weights were not fitted on, at least 8: half of them give the peaks, half the scores. Without
    VERSION it is the newest where that is not calibrated yet, else the promoted one.
    """
    config = load_config(CalibrateConfig, config_file, settings_of(flags, own_names=("seed",)))
    from cflow_ray.calibrate import calibrate

    with ProgressBoard("calibrating") as board:
        found = calibrate(config, lambda done, total: board.update("images", done, total))
    text = (
        f"{found.category}: {found.version} has the weights of {found.calibrated} and a calibration on {found.images} "
        "images; it is promoted"
    )
    out(asdict(found), text, *found.notes)
