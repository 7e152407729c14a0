"""What every verb of the command line is told."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cflow_ray.config.data import DataConfig, ReadConfig
from cflow_ray.config.detector import DetectorConfig, Fraction, Recipe, Runtime
from cflow_ray.config.model import Bytes, Model, Uri, merge, validated
from cflow_ray.errors import ConfigError

Maps = Literal["none", "anomalous", "all"]
MapFormat = Literal["png16", "png8", "float16"]
Promotion = Literal["newest", "best-nll", "better-than-current", "never"]


class Resources(Model):
    """What one worker takes of its node."""

    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)
    """Fractions let several workers share a GPU."""
    memory: Annotated[Bytes, Field(ge=0)] = 0
    """Bytes that Ray sets aside for it, e.g. 4GB; 0 leaves memory out of the plan."""

    def as_ray(self) -> dict[str, float]:
        """Under Ray's names, what is 0 left out."""
        return {name: value for name, value in self._named().items() if value > 0}

    def room(self, node: Mapping[str, float]) -> int:
        """How many workers fit a node with these resources."""
        return min(int(node.get(name, 0) // value) for name, value in self.as_ray().items())

    def __str__(self) -> str:
        """As an error says it."""
        return ", ".join(f"{value:g} {name}" for name, value in self.as_ray().items())

    def _named(self) -> dict[str, float]:
        return {"CPU": self.cpu, "GPU": self.gpu, "memory": self.memory}


class ClusterConfig(Model):
    """What the run asks of Ray."""

    address: str | None = None
    """Address of a running cluster; null joins $RAY_ADDRESS or starts a local one."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Worker processes at most; auto: one a category, as many of them as the cluster has room for now and later."""
    resources: Resources = Resources()
    """Of every worker."""
    wait: bool = False
    """Begin with the workers that there is room for, none even, where the cluster has too few now, instead of failing."""

    def worker_count(self, nodes: Sequence[Mapping[str, float]], tasks: int) -> int:
        """How many workers a run for so many tasks has at most, if need be once the cluster has grown.

        ConfigError where those that are asked for do not fit nodes with these resources and the run may not `wait`.
        """
        room = self.room(nodes)
        asked = 1 if self.workers == "auto" else self.workers
        if asked > room and not self.wait:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in self.resources.as_ray()}
            has = ", ".join(f"{value:g} {name}" for name, value in total.items())
            raise ConfigError(
                f"{asked} workers of {self.resources} do not fit the cluster, which has {has} on {len(nodes)} "
                f"nodes, room for {room}. Ask for fewer with --workers or --resources, or let the run --wait for nodes."
            )
        return tasks if self.workers == "auto" else min(self.workers, tasks)

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many workers fit nodes with these resources."""
        return sum(self.resources.room(node) for node in nodes)

    def init_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray.init`; a local cluster starts without dashboard, one joined stays as it is."""
        arguments: dict[str, Any] = {"ignore_reinit_error": True, "logging_level": "ERROR", "log_to_driver": False}
        if self.address or os.environ.get("RAY_ADDRESS"):
            return arguments | {"address": self.address or "auto"}
        # "local": with no address at all, Ray would join the cluster that a file in its folder names, running or long dead.
        cpus = max(2, math.ceil(os.cpu_count() or 2))
        return arguments | {"address": "local", "include_dashboard": False, "num_cpus": cpus}


class RunConfig(Model):
    """What every verb takes."""

    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the file system behind the URIs, as fsspec names them (e.g. endpoint_url, key, secret)."""
    cluster: ClusterConfig = ClusterConfig()


class CategoryConfig(DetectorConfig):
    """What one category of a fit can be told."""

    workers: int = Field(default=1, ge=1)
    """That fit it together, each a share of every step."""

    @property
    def detector(self) -> DetectorConfig:
        """All but the workers."""
        return DetectorConfig.model_validate(self.model_dump(exclude={"workers"}))


class FitConfig(RunConfig, DataConfig):
    """`cflow-ray fit`: fit several categories in one run and promote their checkpoints."""

    registry: Uri
    defaults: DetectorConfig = DetectorConfig()
    categories: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Overrides per category, e.g. {screw: {input_size: 512}}; the names listed here are the ones that are fitted,
    unless `all` is set. With `workers: 4` so many workers fit a category together, each a share of every step."""
    all: bool = False
    """Fit every category of the data set; those listed in `categories` with their overrides."""
    seeds: int = Field(default=1, ge=1)
    """Fits per category, with the seeds `seed`, `seed` + 1, ...; the one with the best held-out likelihood counts."""
    promote: Promotion = "newest"
    """Which version becomes the best: the new one, the one with the lowest held-out negative log-likelihood of all that
    were fitted from the same data, the new one if it is better than the current on the same images, or none."""
    cache_mb: int = Field(default=4096, ge=0)
    """Memory of a worker for encoded features; past it they lie in a memory map in `scratch`."""
    scratch: str | None = None
    """Folder on the worker's node for that memory map; null takes the node's temporary folder."""
    save_seconds: float = Field(default=60, ge=0)
    """How often the state of a fit is kept for a successor; 0: never."""
    force: bool = False
    """Fit again even where a finished version with the same data and configuration exists."""

    def category(self, name: str) -> CategoryConfig:
        """The resolved settings of one category: defaults, then its overrides."""
        merged = merge(self.defaults.model_dump(), self.categories.get(name) or {})
        return validated(CategoryConfig, merged, where=f"categories.{name}")

    def detector(self, category: str) -> DetectorConfig:
        """The resolved configuration of one category's detector."""
        return self.category(category).detector

    def chosen(self) -> tuple[str, ...]:
        """The categories that are asked for; empty for all of the data set."""
        return self.only or (() if self.all else tuple(self.categories))

    @model_validator(mode="after")
    def _overrides_are_valid(self) -> Self:
        for category in self.categories:
            self.category(category)
        return self

    @field_validator("categories", mode="before")
    @classmethod
    def _names_alone_are_enough(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if overrides is None else overrides for name, overrides in value.items()}


class CheckConfig(RunConfig, DataConfig):
    """`cflow-ray data check`: look at a data set before a fit."""

    write_table: Uri | None = None
    """File, path or URI, for the sample table that layout `table` reads."""

    @field_validator("write_table")
    @classmethod
    def _is_parquet(cls, file: str | None) -> str | None:
        if file is not None and not file.lower().endswith(".parquet"):
            raise ValueError("the sample table is written as Parquet: give a name that ends in .parquet")
        return file


class PackConfig(RunConfig, DataConfig):
    """`cflow-ray pack`: write the images of a data set, or image files as they lie, into tar shards with an index."""

    data: Uri = ""
    """Path or URI of the data set's root or table; empty where `inputs` are given."""
    inputs: tuple[Uri, ...] = ()
    """Instead of `data`: image files, folders or globs of them, or manifests; paths or URIs."""
    output: Uri
    name: str | None = Field(default=None, pattern=r"^\w[\w.-]*$")
    """What the shards' names begin with; null takes the split (`all` for every one), for inputs `images`."""
    split: str | None = "test"
    """Which split to pack; `all` or null packs every image."""
    shard_size: Annotated[Bytes, Field(ge=4096)] = 256 * 10**6
    """Bytes of a shard, as a number or as text like 64MB."""

    @field_validator("split")
    @classmethod
    def _all_is_null(cls, split: str | None) -> str | None:
        return None if split == "all" else split

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.data) == bool(self.inputs):
            raise ValueError("give either a data set as --data or image files as INPUT")
        if not self.inputs:
            return self
        for name in DataConfig.model_fields:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` goes with a data set (--data), not with inputs")
        if over := [uri for uri in self.inputs if f"{self.output}/".startswith(f"{uri.rstrip('/')}/")]:
            raise ValueError(f"the output {self.output} lies in the input {over[0]}; give an output elsewhere")
        return self


class ScoreConfig(RunConfig, ReadConfig):
    """`cflow-ray score`: score image archives into a Parquet table."""

    inputs: tuple[Uri, ...] = Field(min_length=1)
    """Archives, images, folders or globs of them, or manifests; paths or URIs."""
    registry: Uri
    output: Uri
    category: str | None = None
    """One category for all records; overrides the pattern."""
    category_pattern: str = "{category}/"
    """How a record's key names its category; a key that does not fit becomes a row with `error`."""
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Versions to use instead of the promoted ones, e.g. {screw: v3}."""
    maps: Maps = "none"
    map_format: MapFormat = "png16"
    """How a heat map is stored: a grey PNG of 16 or 8 bits, or float16 as NumPy's .npy."""
    map_size: int | None = Field(default=None, ge=1)
    """Most pixels of a stored map's longer side, to which a larger one is averaged down; null keeps the network's."""
    target_fpr: Fraction | None = None
    """Replaces the checkpoints' own target."""
    chunk_records: int = Field(default=64, ge=1)
    """Records of one unit of work, which is one Parquet part."""
    retry_errors: bool = False
    """Do chunks again that have records which could not be read (`error_kind` unreadable)."""
    max_error_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """With more rows with `error` than this share of all the exit code is 1, after everything was written."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Images of one pass; auto doubles it from 4 while that makes an actor faster and memory lasts."""
    runtime: Runtime = "auto"
    """What executes network and flow; auto is the fastest that is installed."""

    @field_validator("category_pattern")
    @classmethod
    def _names_the_category(cls, pattern: str) -> str:
        if pattern.count("{category}") != 1:
            raise ValueError("the pattern must hold {category} exactly once, e.g. '{category}/'")
        return pattern


class RegistryConfig(RunConfig):
    """`cflow-ray models ...`: a registry."""

    registry: Uri


class ImportConfig(RegistryConfig):
    """`cflow-ray models import`: a checkpoint of another program as a new version, not calibrated yet."""

    file: Uri
    category: str
    later_freia: bool = False
    """The flow was trained with FrEIA's code since 17 August 2023, which computes others from the same weights."""
    detector: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over those of the file, e.g. {input_size: 512, top_fraction: 0}."""

    def resolved(self, assumed: Mapping[str, Any], named: Mapping[str, Any]) -> DetectorConfig:
        """The detector's configuration: what the file leaves open, what it names, then the settings given here."""
        merged = merge(merge(assumed, named), self.detector)
        return validated(DetectorConfig, merged, where="detector")


class ExportConfig(RegistryConfig):
    """`cflow-ray models export`: a version as one file for other programs."""

    category: str
    version: str | None = None
    """Null takes the promoted one."""
    format: Literal["onnx"] = "onnx"
    output: Uri
    """The file to write, a path or URI."""


class CalibrateConfig(RegistryConfig, DataConfig):
    """`cflow-ray models calibrate`: peaks and calibration scores of a version from normal images."""

    category: str
    version: str | None = None
    """Null takes the newest version where that is not calibrated yet, else the promoted one."""
    seed: int = Field(default=0, ge=0)
    """Draws which images give the peaks and which the calibration scores."""
    cache_mb: int = Field(default=4096, ge=0)
    """Memory for encoded features; past it they lie in a memory map in the temporary folder."""


class EvaluateConfig(RunConfig, DataConfig):
    """`cflow-ray evaluate`: metrics of a score table against a data set's labels and masks."""

    results: Uri
    paper_score: bool = False
    """Also the paper's score, whose scale is the maximum over the test set; to compare with published numbers only."""
    registry: Uri | None = None
    """Where the detectors are that the paper's score is computed with anew."""


class DriftConfig(RunConfig):
    """`cflow-ray drift`: score tables against the calibration of the versions that made them."""

    results: tuple[Uri, ...] = Field(min_length=1)
    """Outputs of `score`; one that is named twice counts once."""
    registry: Uri | None = None
    """Where the calibration scores are; null: the registry that each table's plan names."""
    only: tuple[str, ...] = ()
    """Categories; empty for all."""
    day_pattern: str | None = None
    """Where a record's key names its day, anywhere in it, e.g. /{day}/ with {day} as YYYY-MM-DD or YYYYMMDD; null: every
    row of a table is of the day (UTC) on which its job was planned."""
    target_fpr: Fraction | None = None
    """Up to which p-value an image counts as an alarm; null: each version's own target."""
    alpha: Fraction = 0.01
    """Largest chance that a report on undrifted lines says `refit due` of any category; the same for `watch`."""
    min_distance: float = Field(default=0.1, ge=0, lt=1)
    """Kolmogorov-Smirnov distance that is no reason for a refit; so much a day's anomalies may make up, too."""
    min_images: int = Field(default=30, ge=1)
    """Images of a day below which nothing is said of it."""
    last_days: int = Field(default=3, ge=1)
    """Latest days of which more than half decide on the category."""
    fail_on_drift: bool = False
    """Exit code 1 where a refit is due."""

    @field_validator("results")
    @classmethod
    def _counts_once(cls, results: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(results))

    @field_validator("day_pattern")
    @classmethod
    def _names_the_day(cls, pattern: str | None) -> str | None:
        if pattern is not None and pattern.count("{day}") != 1:
            raise ValueError("the pattern must hold {day} exactly once, e.g. 'line3/{day}/'")
        return pattern


class ServeConfig(RunConfig):
    """`cflow-ray serve`: the HTTP server over a registry."""

    registry: Uri
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    replicas: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Most images of one pass through the model."""
    runtime: Runtime = "auto"
    """What executes network and flow; auto is the fastest that is installed."""
    capacity_mb: int = Field(default=2048, ge=1)
    """Memory for loaded detectors of one replica; the least recently used leave first."""
    reload_seconds: float = Field(default=5.0, gt=0)
    """How often the registry's pointers are read again."""
    max_body_mb: float = Field(default=32, gt=0)
    max_waiting: int = Field(default=256, ge=1)
    """Images that may wait for the model; more are answered 503 with Retry-After."""


class DemoConfig(Model):
    """`cflow-ray demo`: the whole job on data that need no download."""

    output: Uri = Field(default="demo", validate_default=True)
    data: str = "textures"
    """`textures`, `elpv`, or the root of a data set in MVTec AD layout."""
    only: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the demo's server; 0 takes a free one."""
    recipe: Recipe = "fast"
    target_fpr: Fraction = 0.05
    cluster: ClusterConfig = ClusterConfig()
    storage_options: dict[str, Any] = Field(default_factory=dict)


class StatusConfig(RunConfig):
    """`cflow-ray results status`: how far a scoring job is."""

    output: Uri
    """What `score` was given as `output`."""
    rows: bool = False
    """Also read the rows: errors by kind, anomalies by category."""


class CompactConfig(RunConfig):
    """`cflow-ray results compact`: small parts of a score table into large ones."""

    output: Uri
    part_size: Annotated[Bytes, Field(ge=1)] = 256 * 10**6
    """Bytes from which on a part is left alone, as a number or as text like 64MB; so much memory is needed."""


class DiffConfig(RunConfig):
    """`cflow-ray results diff`: two score tables over the same images."""

    a: Uri
    b: Uri
    by: Literal["key", "image_id"] = "key"
    """What names an image; `image_id` also names its shard, for archives in which keys come more than once."""
    limit: int = Field(default=20, ge=0)
    """Images to list; `write` takes all."""
    write: Uri | None = None
    """Parquet file for all differences."""
    fail_on_change: bool = False
    """Exit with 1 where anything differs but scores."""
