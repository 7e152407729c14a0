"""What the API answers, as OpenAPI shows it."""

from __future__ import annotations

from pydantic import BaseModel

from cflow_ray.serve.problems import ProblemAnswer


class RegionAnswer(BaseModel):
    """A connected part of the map above the threshold: box (left, top, right, bottom) and area in original pixels."""

    box: tuple[int, int, int, int]
    area: float
    peak: float


class TimingsAnswer(BaseModel):
    """Milliseconds that the image took, stage by stage."""

    read_ms: float
    """For the whole request to arrive."""
    decode_ms: float
    wait_ms: float
    """For its detector to be loaded and the model to come free."""
    model_ms: float
    """Of the whole batch it was scored in."""
    judge_ms: float
    """Pictures included."""


class ScoreAnswer(BaseModel):
    """The verdict on one image, with the same names as a row of the score table."""

    category: str
    checkpoint: str
    score: float
    p_value: float
    is_anomaly: bool
    threshold: float | None
    """Null where the calibration cannot support the rate of false alarms; then nothing is an anomaly."""
    regions: list[RegionAnswer]
    width: int
    height: int
    timings: TimingsAnswer
    map_png: str | None = None
    """With `map=png`, base64: the map, 0 to 1 as 0 to 255, in the size of what it covers of the image."""
    overlay_png: str | None = None
    """With `overlay=1`, base64: the image with map and outlines."""


class ItemAnswer(BaseModel):
    """What became of one image of several: an answer, or the problem it has."""

    name: str | None
    """Of the file, as the client gave it."""
    answer: ScoreAnswer | None = None
    problem: ProblemAnswer | None = None


class ScoresAnswer(BaseModel):
    """Every image of a multipart request, in its order."""

    images: list[ItemAnswer]


class CategoryAnswer(BaseModel):
    """A category as this server has it; `problem` says why a newer checkpoint was refused."""

    category: str
    checkpoint: str
    input_size: tuple[int, int]
    """Height and width of the network's input."""
    target_fpr: float
    metrics: dict[str, float | None]
    problem: str | None


class PromotedAnswer(BaseModel):
    """A version that is or was the best."""

    version: str
    promoted_at: str | None
    """Known of the present one."""


class CategoryDetailAnswer(CategoryAnswer):
    """The same with what the registry keeps of it."""

    thresholds: dict[str, float | None]
    """By rate of false alarms; null where the calibration cannot support it."""
    history: list[PromotedAnswer]
    """Latest first."""
    versions: list[str]
    """All there are, oldest first."""


class PromoteRequest(BaseModel):
    """Which version is to be the best."""

    version: str
    """Its name or the unambiguous start of it, `v3`."""


class HealthAnswer(BaseModel):
    """`ok`, or `degraded` with the reason while registry or tokens cannot be read."""

    status: str
    reason: str | None
