"""The images of a request, read from its body within bounds of size, count and time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from cflow_ray.config import ServeConfig
from cflow_ray.serve.problems import ProblemError

_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last is what curl says of any body
_PARTS = "multipart/form-data"
_CATEGORY = "category"
_LONGEST_FIELD = 1000  # bytes of a text field


@dataclass(frozen=True)
class Upload:
    """One image of a multipart body."""

    category: str
    name: str | None
    content: bytes


def is_multipart(request: Request) -> bool:
    """Whether the body holds several parts; a Problem where it is neither that nor an image."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == _PARTS:
        return True
    if media_type in _RAW or media_type.startswith("image/"):
        return False
    raise ProblemError(
        "unsupported-media", f"{media_type} is no image; send image/*, application/octet-stream or {_PARTS}"
    )


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """The whole body; a Problem where it is too large, too slow or broken off."""
    async with _in_time(config.body_seconds):
        return b"".join([part async for part in _bounded(request, config.max_body_mb)])


async def read_uploads(request: Request, config: ServeConfig, category: str | None) -> list[Upload]:
    """The images of a multipart body in their order; a Problem where that cannot be read.

    Without a `category` for all of them a text field of that name holds for the files after it.
    """
    parser = _Parts(request.headers, _bounded(request, config.max_body_mb), config.max_images)
    try:
        async with _in_time(config.body_seconds):
            form = await parser.parse()
    except MultiPartException as error:
        raise ProblemError("invalid-request", f"the multipart body is damaged: {error.message}") from error
    if not parser.is_whole:
        raise ProblemError("invalid-request", "the multipart body ends before its last boundary")
    uploads, field_of_its_own = list[Upload](), category is None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if category is None:
                raise ProblemError("invalid-request", f"a text field {_CATEGORY!r} must stand before the first file")
            uploads.append(Upload(category, value.filename or None, await value.read()))
        elif field_of_its_own and name == _CATEGORY:
            category = value
        else:
            raise ProblemError("invalid-request", f"the text field {name[:100]!r} has no meaning here")
    if not uploads:
        raise ProblemError("invalid-request", "the multipart body holds no file")
    if len(uploads) > config.max_images:
        raise _too_many(config.max_images)
    return uploads


class _Parts(MultiPartParser):
    """Starlette's parser, which keeps files in memory, bounds the parts and tells a body that was cut off."""

    spool_max_size = 2**40  # the body is bounded already, and no image should come to lie on a disk

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_images: int) -> None:
        super().__init__(headers, stream, max_files=math.inf, max_fields=math.inf, max_part_size=_LONGEST_FIELD)
        self.is_whole = False
        self._max_images = max_images
        self._parts = 0

    def on_part_begin(self) -> None:
        """Count it, so that a body of a million empty parts ends early."""
        self._parts += 1
        if self._parts > 2 * self._max_images:  # a file, and the category before it
            raise _too_many(self._max_images)
        super().on_part_begin()

    def on_end(self) -> None:
        """The last boundary was there."""
        self.is_whole = True


def _too_many(limit: int) -> ProblemError:
    return ProblemError("too-large", f"the request holds more than {limit} images; send them in several (max_images)")


async def _bounded(request: Request, limit_mb: float) -> AsyncGenerator[bytes, None]:
    """The body part by part; a ProblemError as soon as it is known to be too large, or the client is gone."""
    limit, total = limit_mb * 2**20, 0
    too_large = ProblemError("too-large", f"the body is larger than {limit_mb:g} MB (max_body_mb)")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    try:
        async for part in request.stream():
            total += len(part)
            if total > limit:
                raise too_large
            yield part
    except ClientDisconnect as error:
        raise ProblemError("invalid-request", "the body broke off") from error


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    """A Problem where the body takes longer than this."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ProblemError("timeout", f"the body took longer than {seconds:g} s (body_seconds)") from error
