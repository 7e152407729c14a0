"""`/v1/score`: images in, verdicts out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from cflow_ray.answers import ItemAnswer, ScoreAnswer, ScoresAnswer, TimingsAnswer
from cflow_ray.errors import CflowRayError
from cflow_ray.serve.admission import Place
from cflow_ray.serve.callers import DeadlineMs, deadline
from cflow_ray.serve.checkpoints import ServedCheckpoint
from cflow_ray.serve.problems import ProblemError
from cflow_ray.serve.service import Scored, ScoringService, Wishes
from cflow_ray.serve.uploads import Upload, is_multipart, read_body, read_uploads

_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_MANY = {"schema": {"type": "object", "properties": {"image": _FILES}, "required": ["image"]}}
_MIXED = {
    "schema": {
        "type": "object",
        "properties": {
            "category": {"type": "string", "description": "Of the files after it; may be repeated between files."},
            "image": _FILES,
        },
        "required": ["category", "image"],
    }
}
_IMAGE = {"schema": {"type": "string", "format": "binary"}}


class ScoreQuery(BaseModel):
    """What is asked for beyond the verdict."""

    model_config = ConfigDict(extra="forbid")

    map: Literal["png", "none"] = Field("none", description="Add the anomaly map as a picture.")
    overlay: bool = Field(False, description="Add the image with map and regions drawn over it.")
    target_fpr: float | None = Field(
        None, gt=0, lt=1, description="Judge at this rate of false alarms instead of the checkpoint's own."
    )

    @property
    def wishes(self) -> Wishes:
        """As the service takes them."""
        return Wishes(self.target_fpr, self.map == "png", self.overlay)


def scoring_routes(service: ScoringService) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/v1/score", tags=["score"])

    @router.post(
        "/{category}",
        response_model_exclude_unset=True,
        openapi_extra=_body({"image/*": _IMAGE, "application/octet-stream": _IMAGE, "multipart/form-data": _MANY}),
    )
    async def score(
        category: str, request: Request, query: Annotated[ScoreQuery, Query()], deadline_ms: DeadlineMs = None
    ) -> ScoreAnswer | ScoresAnswer:
        """Score one image, or several as a multipart form, with the category's best checkpoint."""
        several = is_multipart(request)
        served = service.checkpoints[category]
        async with _admitted(service, request, deadline_ms) as place:
            scoring = _Scoring(service, request, query.wishes)
            if several:
                return await scoring.all(await read_uploads(request, service.config, category), place)
            return await scoring.one(served, await read_body(request, service.config))

    @router.post("", response_model_exclude_unset=True, openapi_extra=_body({"multipart/form-data": _MIXED}))
    async def score_mixed(
        request: Request, query: Annotated[ScoreQuery, Query()], deadline_ms: DeadlineMs = None
    ) -> ScoresAnswer:
        """Score images of several categories: a text field `category` holds for the files after it."""
        if not is_multipart(request):
            raise ProblemError("unsupported-media", "send multipart/form-data, or name the category in the path")
        async with _admitted(service, request, deadline_ms) as place:
            scoring = _Scoring(service, request, query.wishes)
            return await scoring.all(await read_uploads(request, service.config, None), place)

    return router


def _body(content: dict[str, Any]) -> dict[str, Any]:
    """The request's body for OpenAPI, which FastAPI does not see."""
    return {"requestBody": {"required": True, "content": content}}


@asynccontextmanager
async def _admitted(service: ScoringService, request: Request, deadline_ms: int | None) -> AsyncIterator[Place]:
    """Room for one image while its bytes come and it is scored, until the deadline."""
    with service.room.place() as place:
        place.hold(1)
        async with deadline(request, deadline_ms, service.config.deadline_seconds):
            yield place


class _Scoring:
    """The images of one request on their way; made before its body is read."""

    def __init__(self, service: ScoringService, request: Request, wishes: Wishes) -> None:
        self._service = service
        self._request_id: str = request.state.request_id
        self._wishes = wishes
        self._start = time.perf_counter()

    async def one(self, served: ServedCheckpoint, content: bytes) -> ScoreAnswer:
        """The only image of a request, as soon as its body is there."""
        return await self._score(served, content, self._read())

    async def all(self, uploads: Sequence[Upload], place: Place) -> ScoresAnswer:
        """Every image for itself; those of one category with one version, whatever is promoted meanwhile."""
        read_ms = self._read()
        place.hold(len(uploads))
        served = {category: self._served(category) for category in {upload.category for upload in uploads}}
        async with asyncio.TaskGroup() as group:
            items = [group.create_task(self._item(served[upload.category], upload, read_ms)) for upload in uploads]
        return ScoresAnswer(images=tuple(item.result() for item in items))

    async def _item(self, served: ServedCheckpoint | ProblemError, upload: Upload, read_ms: float) -> ItemAnswer:
        try:
            if isinstance(served, ProblemError):
                raise served
            answer = await self._score(served, upload.content, read_ms)
        except (CflowRayError, ProblemError) as error:
            problem = error if isinstance(error, ProblemError) else ProblemError.of(error)
            self._service.metrics.problems.labels(problem.kind).inc()
            return ItemAnswer(name=upload.name, answer=None, problem=problem.answer(self._request_id))
        return ItemAnswer(name=upload.name, answer=answer, problem=None)

    async def _score(self, served: ServedCheckpoint, content: bytes, read_ms: float) -> ScoreAnswer:
        return _answer(await self._service.score(served, content, self._wishes), read_ms)

    def _served(self, category: str) -> ServedCheckpoint | ProblemError:
        try:
            return self._service.checkpoints[category]
        except CflowRayError as error:
            return ProblemError.of(error)

    def _read(self) -> float:
        """Milliseconds until the body was there."""
        seconds = time.perf_counter() - self._start
        self._service.metrics.stage_seconds.labels("read").observe(seconds)
        return 1000 * seconds


def _answer(scored: Scored, read_ms: float) -> ScoreAnswer:
    category, checkpoint = scored.served.key
    pictures: dict[str, Any] = {"map_png": scored.map_png, "overlay_png": scored.overlay_png}
    return ScoreAnswer(
        category=category,
        checkpoint=checkpoint,
        width=scored.width,
        height=scored.height,
        frame=scored.frame,
        timings=TimingsAnswer(read_ms=read_ms, **asdict(scored.timings)),
        **asdict(scored.verdict),
        **{name: content for name, content in pictures.items() if content is not None},
    )
