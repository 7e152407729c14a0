"""Every refusal as RFC 9457 problem details: one kind, one status, one title."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cflow_ray.answers import KIND_PREFIX, MEDIA_TYPE_OF_PROBLEMS, ProblemAnswer
from cflow_ray.errors import CflowRayError, CheckpointError, ImageError, StorageError
from cflow_ray.serve.admission import OverloadedError
from cflow_ray.serve.checkpoints import UnknownCategoryError

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1  # a full replica answers several images in this time
_STORE_RETRY_SECONDS = 5  # the store was given as long before it was said to be out of reach


class Kind(NamedTuple):
    """The status and title of a kind of problem."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "invalid-request": Kind(422, "The request cannot be understood"),
    "bad-image": Kind(422, "The image cannot be decoded"),
    "unauthorized": Kind(401, "A token is needed"),
    "forbidden": Kind(403, "The token does not allow this"),
    "not-found": Kind(404, "There is nothing here"),
    "unknown-category": Kind(404, "No such category is served"),
    "method-not-allowed": Kind(405, "The method is not allowed here"),
    "timeout": Kind(408, "The body did not arrive in time"),
    "too-large": Kind(413, "The request is too large"),
    "unsupported-media": Kind(415, "The media type is not supported"),
    "rate-limited": Kind(429, "Too many requests of this token"),
    "internal": Kind(500, "The server failed"),
    "overloaded": Kind(503, "The server has too much in hand"),
    "unavailable": Kind(503, "The checkpoint cannot be reached"),
    "deadline": Kind(504, "The deadline passed"),
}
"""By the last part of `type`."""


class ProblemError(Exception):
    """A refusal on its way to the client; `members` are further members of the answer."""

    def __init__(self, kind: str, detail: str, *, retry_after: int | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.members = members

    @property
    def status(self) -> int:
        """Of the HTTP answer."""
        return KINDS[self.kind].status

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.kind == "unauthorized" else {})

    def answer(self, request_id: str) -> ProblemAnswer:
        """As the body says it."""
        status, title = KINDS[self.kind]
        return ProblemAnswer(
            type=KIND_PREFIX + self.kind,
            title=title,
            status=status,
            detail=self.detail,
            request_id=request_id,
            **self.members,
        )

    def response(self, request_id: str) -> JSONResponse:
        """The HTTP answer."""
        content = self.answer(request_id).model_dump(mode="json")
        return JSONResponse(content, self.status, self.headers, media_type=MEDIA_TYPE_OF_PROBLEMS)

    @classmethod
    def of(cls, error: CflowRayError) -> ProblemError:
        """An expected error as a client should see it."""
        match error:
            case UnknownCategoryError():
                return cls("unknown-category", str(error), known=error.known)
            case OverloadedError():
                return cls("overloaded", str(error), retry_after=_RETRY_SECONDS)
            case ImageError(kind="too_large"):
                return cls("too-large", str(error))
            case ImageError():
                return cls("bad-image", str(error), reason=error.kind)
            case CheckpointError() | StorageError():
                return cls("unavailable", str(error), retry_after=_STORE_RETRY_SECONDS)
            case _:  # none that a request should meet
                log.error("%s", error, exc_info=error)
                return cls("internal", str(error))


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": "; ".join(kind.title for kind in KINDS.values() if kind.status == status),
        "content": {MEDIA_TYPE_OF_PROBLEMS: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}},
    }
    for status in sorted({kind.status for kind in KINDS.values()})
}
"""For the OpenAPI of every route."""


def answer_problems(api: FastAPI) -> None:
    """Let the application answer each of its errors, FastAPI's own too, as a problem."""

    async def refused(request: Request, problem: ProblemError) -> JSONResponse:
        request.state.problem = problem.kind
        return problem.response(request.state.request_id)

    async def expected(request: Request, error: CflowRayError) -> JSONResponse:
        return await refused(request, ProblemError.of(error))

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
        response = await refused(request, ProblemError(kind, f"{request.method} {request.url.path}: {error.detail}"))
        response.headers.update(error.headers or {})  # which methods are allowed
        return response

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        return await refused(request, ProblemError("invalid-request", "; ".join(wrong)))

    api.exception_handler(ProblemError)(refused)
    api.exception_handler(CflowRayError)(expected)
    api.exception_handler(HTTPException)(http)
    api.exception_handler(RequestValidationError)(invalid)
