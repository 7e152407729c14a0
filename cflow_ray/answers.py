"""What the HTTP API answers, as the server writes it and the client reads it; imports neither torch nor Ray."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

MEDIA_TYPE_OF_PROBLEMS = "application/problem+json"
KIND_PREFIX = "urn:cflow-ray:problem:"
"""What the `type` of a problem begins with; its kind follows."""


def _decoded(value: Any) -> Any:
    return b64decode(value, validate=True) if isinstance(value, str) else value


Png = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda content: b64encode(content).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}),
]
"""A PNG file: bytes in Python, base64 in JSON."""


class Answer(BaseModel):
    """Base of all answers: immutable; a field that a newer server adds is passed over."""

    model_config = ConfigDict(frozen=True)


class RegionAnswer(Answer):
    """A connected part of the map above the threshold: box (left, top, right, bottom) and area in original pixels."""

    box: tuple[int, int, int, int]
    area: float
    peak: float
    """The map's largest value inside, in [0, 1)."""


class TimingsAnswer(Answer):
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


class ScoreAnswer(Answer):
    """The verdict on one image, with the same names as a row of the score table."""

    category: str
    checkpoint: str
    score: float
    p_value: float
    is_anomaly: bool
    threshold: float | None
    """What the score must exceed; null where the calibration cannot support the false-alarm rate."""
    regions: tuple[RegionAnswer, ...]
    width: int
    height: int
    frame: tuple[int, int, int, int] | None = None
    """What the map covers of the image: left, top, width, height; null from a server that does not say."""
    timings: TimingsAnswer
    map_png: Png | None = None
    """The anomaly map in 8 bits, value x 255, at the size of the frame; where `map=png` asked for it."""
    overlay_png: Png | None = None
    """The image with heat map and outlines; where `overlay=1` asked for it."""


class ProblemAnswer(BaseModel):
    """Why a request, or one image of it, was refused (RFC 9457); members of its kind are kept as extras."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None

    @property
    def kind(self) -> str:
        """The end of the type: `unknown-category`, `bad-image`, ..."""
        return self.type.removeprefix(KIND_PREFIX)


class ItemAnswer(Answer):
    """One image of a request with several: its verdict, or why it has none."""

    name: str | None
    """Of the file, as the client gave it."""
    answer: ScoreAnswer | None = None
    problem: ProblemAnswer | None = None


class ScoresAnswer(Answer):
    """The items of a request with several images, in its order."""

    images: tuple[ItemAnswer, ...]


class CategoryAnswer(Answer):
    """A category as the server has it; `problem` says why a newer checkpoint was refused."""

    category: str
    checkpoint: str
    input_size: tuple[int, int]
    """Height and width of the network's input."""
    target_fpr: float
    metrics: dict[str, float | None]
    problem: str | None


class PromotedAnswer(Answer):
    """A version that is or was the best."""

    version: str
    promoted_at: str | None = None
    """ISO 8601; known of the present one."""


class CategoryDetailAnswer(CategoryAnswer):
    """The same with what its calibration and the registry say."""

    thresholds: dict[str, float | None]
    """By false-alarm rate, null where the calibration cannot support it."""
    history: tuple[PromotedAnswer, ...]
    """The best and those before it, latest first."""
    versions: tuple[str, ...]
    """All that could be promoted, oldest first."""


class PromoteRequest(Answer):
    """Which version shall answer from now on."""

    version: str = Field(min_length=1)


class HealthAnswer(Answer):
    """`ok`, or `degraded` with the reason while the registry cannot be read."""

    status: str
    reason: str | None
