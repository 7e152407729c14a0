"""The HTTP API of a replica: its routes, who may take them, and how it answers what goes wrong."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI, Response

from cflow_ray import __version__
from cflow_ray.answers import HealthAnswer
from cflow_ray.serve.callers import known_caller
from cflow_ray.serve.category_routes import category_routes
from cflow_ray.serve.envelope import Envelope
from cflow_ray.serve.metrics import CONTENT_TYPE
from cflow_ray.serve.page import page_router
from cflow_ray.serve.problems import RESPONSES, ProblemError, answer_problems
from cflow_ray.serve.scoring_routes import scoring_routes
from cflow_ray.serve.service import ScoringService

_ABOUT = """Anomaly detectors, one per product category: images in, score, p-value and regions out.
Every refusal is problem details of RFC 9457."""


def build_api(service: ScoringService, tells_id: bool = True) -> FastAPI:
    """The application of one replica; without `tells_id` a proxy puts the request's id on the answer."""
    api = FastAPI(
        title="cflow_ray",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    answer_problems(api)
    api.add_middleware(Envelope, metrics=service.metrics, tells_id=tells_id)
    known = [Depends(known_caller(service.access))]
    for router in (scoring_routes(service), category_routes(service), _metrics_route(service)):
        api.include_router(router, dependencies=known, responses=RESPONSES)
    api.include_router(_health_routes(service))
    api.include_router(page_router())  # it asks its reader for a token itself
    return api


def _metrics_route(service: ScoringService) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What this replica counts, for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _health_routes(service: ScoringService) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def healthz() -> HealthAnswer:
        """Whether the server lives."""
        return HealthAnswer(status="degraded" if service.problem else "ok", reason=service.problem)

    @router.get("/readyz", responses={503: RESPONSES[503]})
    async def readyz() -> HealthAnswer:
        """Whether there is anything to score with."""
        if not service.checkpoints.all():
            raise ProblemError("unavailable", service.problem or "no category can be scored yet", retry_after=1)
        return await healthz()

    return router
