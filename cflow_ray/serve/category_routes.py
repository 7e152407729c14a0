"""`/v1/categories`: what is served, and which version of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from cflow_ray.answers import CategoryAnswer, CategoryDetailAnswer, PromotedAnswer, PromoteRequest
from cflow_ray.errors import CheckpointError
from cflow_ray.serve.callers import administrator
from cflow_ray.serve.checkpoints import ServedCheckpoint
from cflow_ray.serve.problems import ProblemError
from cflow_ray.serve.service import ScoringService
from cflow_ray.serve.uploads import read_body

_PROMOTE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": PromoteRequest.model_json_schema()}}}
}
_RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


def category_routes(service: ScoringService) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/v1/categories", tags=["categories"])
    admin = [Depends(administrator)]

    @router.get("")
    async def categories() -> list[CategoryAnswer]:
        """Every category that can be scored."""
        return [CategoryAnswer(**_facts(served)) for served in service.checkpoints.all()]

    @router.get("/{category}")
    async def category(category: str) -> CategoryDetailAnswer:
        """One category with its thresholds, versions and history."""
        return await _detail(service, category)

    @router.post("/{category}/promote", dependencies=admin, openapi_extra=_PROMOTE_BODY)
    async def promote(category: str, request: Request) -> CategoryDetailAnswer:
        """Make a version the best; one that does not load is refused."""
        served = service.checkpoints[category]
        version = _version_in(await read_body(request, service.config))
        try:
            await service.promote(served, version)
        except CheckpointError as error:
            raise ProblemError("invalid-request", str(error)) from error
        return await _detail(service, category)

    @router.post("/{category}/rollback", dependencies=admin)
    async def rollback(category: str) -> CategoryDetailAnswer:
        """Make the version that was best before the best again."""
        served = service.checkpoints[category]
        try:
            await service.rollback(served)
        except CheckpointError as error:
            raise ProblemError("invalid-request", str(error)) from error
        return await _detail(service, category)

    return router


def _version_in(body: bytes) -> str:
    """The version that a body names. FastAPI would read the whole body, of any size, before it asks who sent it."""
    try:
        return PromoteRequest.model_validate_json(body).version
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("body", *first["loc"])))
        raise ProblemError("invalid-request", f"{place}: {first['msg']}") from error


async def _detail(service: ScoringService, category: str) -> CategoryDetailAnswer:
    served = service.checkpoints[category]
    pointer, versions = await service.pointer(served)
    earlier = [PromotedAnswer(version=version, promoted_at=None) for version in reversed(pointer.history)]
    rates = sorted({*_RATES, served.manifest.detector.target_fpr})
    return CategoryDetailAnswer(
        **_facts(served),
        thresholds={f"{rate:g}": served.calibration.threshold(rate) for rate in rates},
        history=(PromotedAnswer(version=pointer.version, promoted_at=pointer.promoted or None), *earlier),
        versions=tuple(versions),
    )


def _facts(served: ServedCheckpoint) -> dict[str, Any]:
    manifest = served.manifest
    return {
        "category": manifest.category,
        "checkpoint": manifest.version,
        "input_size": manifest.detector.size,
        "target_fpr": manifest.detector.target_fpr,
        "metrics": manifest.metrics,
        "problem": served.problem,
    }
