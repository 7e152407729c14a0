"""The API as the page and the client rely on it, over a real registry and bank, small enough to be read: no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from threading import Lock, Thread
from time import perf_counter
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from cflow_ray.answers import (
    KIND_PREFIX,
    MEDIA_TYPE_OF_PROBLEMS,
    CategoryAnswer,
    CategoryDetailAnswer,
    HealthAnswer,
    PromotedAnswer,
    PromoteRequest,
    ScoreAnswer,
)
from cflow_ray.data.images import encode_map, prepare
from cflow_ray.errors import CheckpointError, ImageError
from cflow_ray.model.scoring import Calibration, judge
from cflow_ray.serve.page import page_router
from cflow_ray.store.registry import Registry
from tests.stores import free_port

RATES = (0.01, 0.05, 0.1, 0.3)


class RefusedError(Exception):
    """A problem on its way out."""

    def __init__(self, status: int, kind: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.content = {"type": KIND_PREFIX + kind, "title": kind, "status": status, "detail": detail, **more}


class Backend:
    """What answers: the versions that the registry's pointers name now."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._bank = registry.bank()
        self._lock = Lock()

    def score(self, category: str, content: bytes, with_map: bool, target_fpr: float | None) -> ScoreAnswer:
        detector, version = self._detector(category)
        start = perf_counter()
        try:
            image = prepare(content, detector.config.input)
        except ImageError as error:
            raise RefusedError(422, "bad-image", str(error), reason=error.kind) from error
        with self._lock:
            (finding,) = self._bank.score_batch([image.pixels_3HW], [(category, version)])
        rate = target_fpr or detector.config.target_fpr
        verdict = judge(finding.score, finding.map_HW, detector.calibration, rate, image.frame)
        return ScoreAnswer(
            category=category,
            checkpoint=version,
            width=image.width,
            height=image.height,
            frame=image.frame,
            timings={
                "read_ms": 0,
                "decode_ms": 0,
                "wait_ms": 0,
                "model_ms": 1e3 * (perf_counter() - start),
                "judge_ms": 0,
            },
            map_png=encode_map(finding.map_HW, "png8") if with_map else None,
            **asdict(verdict),
        )

    def describe(self, category: str) -> CategoryAnswer:
        manifest = self.registry.manifest(category, self.registry.best(category))
        return CategoryAnswer(
            category=category,
            checkpoint=manifest.version,
            input_size=manifest.detector.size,
            target_fpr=manifest.detector.target_fpr,
            metrics=manifest.metrics,
            problem=None,
        )

    def detail(self, category: str) -> CategoryDetailAnswer:
        detector, _ = self._detector(category)
        calibration: Calibration = detector.calibration
        pointer = self.registry.pointer(category)
        return CategoryDetailAnswer(
            **self.describe(category).model_dump(),
            thresholds={str(rate): calibration.threshold(rate) for rate in RATES},
            history=[PromotedAnswer(version=version) for version in (pointer.version, *reversed(pointer.history))],
            versions=self.registry.versions(category),
        )

    def _detector(self, category: str) -> tuple[Any, str]:
        known = self.registry.categories()
        if category not in known:
            raise RefusedError(
                404, "unknown-category", f"no category {category!r}; known: {', '.join(known)}", known=known
            )
        version = self.registry.best(category)
        return self._bank.detector((category, version)), version


def contract_app(registry: Registry, admins: Sequence[str] = (), users: Sequence[str] = ()) -> FastAPI:
    """The contract over a registry; only an administrator's token moves pointers, and where users have tokens, too,
    every call needs one."""
    backend = Backend(registry)
    api = FastAPI()

    def token_of(request: Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else ""

    def known(request: Request) -> None:
        if users and token_of(request) not in {*admins, *users}:
            raise RefusedError(401, "unauthorized", "this server wants a token: Authorization: Bearer ...")

    def admin(request: Request) -> None:
        if token_of(request) not in admins:
            raise RefusedError(403, "forbidden", "this token may not move pointers; use an administrator's")

    routes = APIRouter(prefix="/v1", dependencies=[Depends(known)])

    @routes.get("/categories")
    def categories() -> list[CategoryAnswer]:
        return [backend.describe(category) for category in registry.categories()]

    @routes.get("/categories/{category}")
    def category(category: str) -> CategoryDetailAnswer:
        return backend.detail(category)

    @routes.post("/score/{category}")
    async def score(category: str, request: Request, map: str = "none", target_fpr: float | None = None) -> ScoreAnswer:
        content = await request.body()
        return await run_in_threadpool(backend.score, category, content, map == "png", target_fpr)

    @routes.post("/categories/{category}/promote", dependencies=[Depends(admin)])
    def promote(category: str, wanted: PromoteRequest) -> CategoryDetailAnswer:
        registry.promote(category, wanted.version)
        return backend.detail(category)

    @routes.post("/categories/{category}/rollback", dependencies=[Depends(admin)])
    def rollback(category: str) -> CategoryDetailAnswer:
        registry.rollback(category)
        return backend.detail(category)

    @api.get("/healthz")
    def healthz() -> HealthAnswer:
        return HealthAnswer(status="ok", reason=None)

    @api.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error.content, error.status, media_type=MEDIA_TYPE_OF_PROBLEMS)

    @api.exception_handler(CheckpointError)
    async def impossible(request: Request, error: CheckpointError) -> JSONResponse:
        return await refused(request, RefusedError(422, "invalid-request", str(error)))

    api.include_router(routes)
    api.include_router(page_router())
    return api


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an application that uvicorn runs in a thread of this process."""
    config = uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join(30)
