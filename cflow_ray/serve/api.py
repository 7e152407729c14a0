"""The HTTP API over a service: image bytes in, the verdict as JSON out."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from cflow_ray import __version__
from cflow_ray.errors import CheckpointError, ImageError
from cflow_ray.serve.batching import OverloadedError
from cflow_ray.serve.checkpoints import ServedCheckpoint
from cflow_ray.serve.service import ScoringService


class RegionAnswer(BaseModel):
    """A connected part of the map above the threshold: box (left, top, right, bottom) and area in original pixels."""

    box: tuple[int, int, int, int]
    area: float
    peak: float


class ScoreAnswer(BaseModel):
    """The verdict on one image, with the same names as a row of the score table."""

    score: float
    p_value: float
    is_anomaly: bool
    threshold: float | None
    regions: list[RegionAnswer]
    checkpoint: str
    width: int
    height: int


class CategoryAnswer(BaseModel):
    """A category as this server has it; `problem` says why a newer checkpoint was refused."""

    category: str
    checkpoint: str
    input_size: tuple[int, int]
    """Height and width of the network's input."""
    target_fpr: float
    metrics: dict[str, float | None]
    problem: str | None


class HealthAnswer(BaseModel):
    """`ok`, or `degraded` with the reason while the registry cannot be read."""

    status: str
    reason: str | None


def build_api(service: ScoringService) -> FastAPI:
    """The application of one replica."""
    api = FastAPI(title="cflow_ray", version=__version__)

    @api.get("/healthz")
    async def healthz() -> HealthAnswer:
        """Whether the server lives."""
        problem = service.checkpoints.problem
        return HealthAnswer(status="degraded" if problem else "ok", reason=problem)

    @api.get("/v1/categories")
    async def categories() -> list[CategoryAnswer]:
        """Every category that can be scored."""
        return [_describe(served) for served in service.checkpoints.all()]

    @api.post("/v1/score/{category}")
    async def score(category: str, request: Request) -> ScoreAnswer:
        """Score one image, given as the bytes of the request's body."""
        try:
            content = await _read_body(request, service.config.max_body_mb)
            served, verdict, (width, height) = await service.score(category, content)
        except CheckpointError as error:
            raise HTTPException(404, str(error)) from error
        except ImageError as error:
            raise HTTPException(422, str(error)) from error
        except OverloadedError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from error
        return ScoreAnswer(checkpoint=served.manifest.version, width=width, height=height, **asdict(verdict))

    return api


async def _read_body(request: Request, limit_mb: float) -> bytes:
    """The request's body; refused as soon as it is larger than allowed."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_mb * 2**20:
            raise HTTPException(413, f"the body is larger than {limit_mb:g} MB")
    return bytes(body)


def _describe(served: ServedCheckpoint) -> CategoryAnswer:
    manifest = served.manifest
    return CategoryAnswer(
        category=manifest.category,
        checkpoint=manifest.version,
        input_size=manifest.detector.size,
        target_fpr=manifest.detector.target_fpr,
        metrics=manifest.metrics,
        problem=served.problem,
    )
