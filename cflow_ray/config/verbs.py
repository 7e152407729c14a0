"""What the verbs of the command line are told that fit, pack, score, serve and keep versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cflow_ray.config.cluster import ClusterConfig, Range, Replicas, RunConfig
from cflow_ray.config.data import MAX_PIXELS, DataConfig, ReadConfig
from cflow_ray.config.detector import DetectorConfig, Fraction, Recipe, Runtime
from cflow_ray.config.model import Bytes, Model, Uri, absolute_uri, merge, validated

Maps = Literal["none", "anomalous", "all"]
MapFormat = Literal["png16", "png8", "float16"]
Promotion = Literal["newest", "best-nll", "better-than-current", "never"]


class CategoryConfig(DetectorConfig):
    """What one category of a fit can be told."""

    workers: int = Field(default=1, ge=1)
    """That fit it together, each a share of every step."""

    @model_validator(mode="after")
    def _normalises_pixels_of_0_to_1(self) -> Self:
        """Values for pixels of 0 to 255 would make all images alike, without a word."""
        for name, values in (("mean", self.encoder.mean), ("std", self.encoder.std)):
            if values is not None and not 0 <= min(values) <= max(values) <= 1:
                raise ValueError(f"encoder.{name} is {list(values)}, and pixels are 0 to 1; divide it by 255")
        return self

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
    scratch: Uri | None = None
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
        validated(CategoryConfig, self.defaults.model_dump(), where="defaults")
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

    data: Annotated[str, BeforeValidator(lambda uri: absolute_uri(uri) if uri != "" else uri)] = ""
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


class TableConfig(RunConfig, ReadConfig):
    """What images become a score table, and what of them it keeps, whoever scores them."""

    inputs: tuple[Uri, ...] = Field(min_length=1)
    """Archives, images, folders or globs of them, or manifests; paths or URIs."""
    category: str | None = None
    """One category for all records; overrides the pattern."""
    category_pattern: str = "{category}/"
    """How a record's key names its category; a key that does not fit becomes a row with `error`."""
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

    @field_validator("category_pattern")
    @classmethod
    def _names_the_category(cls, pattern: str) -> str:
        if pattern.count("{category}") != 1:
            raise ValueError("the pattern must hold {category} exactly once, e.g. '{category}/'")
        return pattern


class ScoreConfig(TableConfig):
    """`cflow-ray score`: score image archives into a Parquet table."""

    registry: Uri
    output: Uri
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Versions to use instead of the promoted ones, e.g. {screw: v3}."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Images of one pass; auto doubles it from 4 while that makes an actor faster and memory lasts."""
    runtime: Runtime = "auto"
    """What executes network and flow; auto is the fastest that is installed."""


class AskConfig(TableConfig):
    """`cflow-ray score --url`: let a server score images."""

    url: str
    output: Uri | None = None
    """Folder of the score table; null prints a line an image and keeps nothing."""
    token_file: Uri | None = None
    """File, path or URI, that holds the access token; null takes $CFLOW_RAY_TOKEN, if any."""
    in_flight: int = Field(default=8, ge=1, le=16)
    """Images that are with the server at once."""
    deadline: float = Field(default=30, gt=0)
    """Seconds for one image, tries and waits together."""

    @property
    def registry(self) -> str:
        """Where a plan says that the versions are: with the server."""
        return self.url

    @model_validator(mode="after")
    def _has_no_workers(self) -> Self:
        if self.cluster != ClusterConfig():
            raise ValueError(
                "a server scores (url), so no cluster or workers are needed; `in_flight` says how many at once"
            )
        return self


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


class ServeConfig(RunConfig):
    """`cflow-ray serve`: the HTTP server over a registry."""

    registry: Uri
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    tokens: Uri | None = None
    """YAML file of the bearer tokens that are let in, read again while the server runs; the same text may stand in the
    environment variable CFLOW_RAY_TOKENS. Without either only clients on the server's own machine are answered."""
    replicas: Replicas = Range()
    """A number, or bounds like `1:4` between which the load decides."""
    scale_up_seconds: float = Field(default=10, ge=0)
    """How long more must be asked for than the replicas can do before there is another."""
    scale_down_seconds: float = Field(default=300, ge=0)
    """How long less must be asked for before there is one replica less."""
    batch_size: int = Field(default=16, ge=1)
    """Most images of one pass through the model."""
    runtime: Runtime = "auto"
    """What executes network and flow; auto is the fastest that is installed."""
    capacity_mb: int = Field(default=2048, ge=1)
    """Memory for loaded detectors of one replica; the least recently used leave first."""
    reload_seconds: float = Field(default=5.0, gt=0)
    """How often the registry's pointers and the tokens are read again."""
    max_body_mb: float = Field(default=32, gt=0)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Of one image; a larger one is not decoded."""
    max_images: int = Field(default=64, ge=1)
    """Of one request."""
    max_waiting: int = Field(default=256, ge=1)
    """Images that one replica has in hand; more are answered 503 with Retry-After."""
    body_seconds: float = Field(default=20, gt=0)
    """For a request's body to arrive."""
    deadline_seconds: float = Field(default=30, gt=0)
    """For a request from its arrival to its answer; a client may ask for less."""

    @model_validator(mode="after")
    def _lets_in_the_largest_request(self) -> Self:
        if self.max_images > self.max_waiting:
            raise ValueError(f"max_waiting, {self.max_waiting}, keeps out requests of max_images, {self.max_images}")
        return self


ClientName = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
"""Of the holder of a token, for the access log."""
Role = Literal["score", "admin"]
"""`admin` may promote and roll back too."""
Rate = Annotated[float, Field(gt=0)] | None
"""Requests a second in the mean, of each replica; null sets no bound."""


class TokenConfig(RunConfig):
    """`cflow-ray token`: a bearer token for the server."""

    name: ClientName
    role: Role = "score"
    rate: Rate = None


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

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str) -> str:
        return data if data in ("textures", "elpv") else str(absolute_uri(data))
