"""What a route asks of its caller: a token of some role, and how long there is for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cflow_ray.serve.access import Access
from cflow_ray.serve.problems import ProblemError

_bearer = HTTPBearer(auto_error=False, description="A token of `cflow-ray token`; none on the server's own machine.")

DeadlineMs = Annotated[
    int | None,
    Header(alias="X-Deadline-Ms", ge=1, le=3_600_000, description="Milliseconds from arrival until it is too late."),
]


def known_caller(access: Access) -> Callable[..., Awaitable[None]]:
    """A dependency that lets in who may score, and a Problem for anybody else.

    It leaves the caller in the request's state and takes a turn of its token, so a request has it once.
    """

    async def let_in(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> None:
        client = request.client.host if request.client else None
        request.state.caller = access.caller(credentials.credentials if credentials else None, client)

    return let_in


async def administrator(request: Request) -> None:
    """A dependency after `known_caller` that lets in the role `admin`, and a Problem for anybody else."""
    if request.state.caller.role != "admin":
        raise ProblemError("forbidden", "this token may not move pointers; use an administrator's (role admin)")


@asynccontextmanager
async def deadline(request: Request, asked_ms: int | None, longest_seconds: float) -> AsyncIterator[None]:
    """Past it what goes on inside is given up, with a Problem; a client may ask for less than the longest, not more."""
    seconds = longest_seconds if asked_ms is None else min(longest_seconds, asked_ms / 1000)
    try:
        async with asyncio.timeout_at(request.state.arrived + seconds):
            yield
    except TimeoutError as error:
        raise ProblemError("deadline", f"there was no answer within {seconds:g} s") from error
