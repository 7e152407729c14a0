"""What the verbs that read score tables are told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cflow_ray.config.cluster import RunConfig
from cflow_ray.config.data import DataConfig
from cflow_ray.config.detector import Fraction
from cflow_ray.config.model import Bytes, Uri


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
